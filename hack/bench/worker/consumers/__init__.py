"""The measured consumers. The arguments of each program are URL, QUEUE, KIND, SLOTS and SECONDS.

The consumers of other projects run in the benchmarks' own environment, which has no package of this project.
"""
