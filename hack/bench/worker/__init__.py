"""Compare the messages per second of a worker with those of other consumers.

The modules, in the order of a run:

    cases        list the cases: slots, handler, size of the body, queue type, and number of rounds
    contenders   list the contenders and their commands
    consumers/   one small program for each contender; all count with the same `tally`
    race         run one contender once: a full queue, a new process, its tally
    figures      run all contenders in rounds, and report the medians

RabbitMQ is a real one on loopback. Each contender takes one message at a time and acknowledges it after the handler,
even if that is not its default.
"""
