"""The consumers that are measured. Each is a program: URL, QUEUE, KIND of queue, SLOTS and SECONDS of a handler.

Those of other projects run in an environment of their own, which has nothing of ours but these files.
"""
