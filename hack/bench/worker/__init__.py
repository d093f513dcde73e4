"""How many messages a second a worker takes, beside everything else that people consume with.

The flow of a run:

    cases        what is measured: slots, handler, size of the body, kind of queue, and how often
    contenders   who takes part, and how each is started
    consumers/   one small program for each; all count their messages with the same `tally`
    race         one run of one contender: a full queue, a fresh process, its tally
    figures      rounds in which all take turns, and rows and tables of the medians

RabbitMQ is a real one on loopback. Nobody's configuration is the default where that would not be one message at
a time, acknowledged when it is done.
"""
