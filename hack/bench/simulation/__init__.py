"""How autoscalers behave over hours, in seconds: a discrete-event simulation around the operator's own `decide`.

    python -m hack.bench --only simulation

The flow of a run:

    jobs         when messages come, and how long each is handled: synthetic, or recorded
    world        a queue, pods that start and end, and a clock that jumps from event to event
    operator     asks the real `decide` when the operator would, and does what it says
    keda         a model of KEDA with a HorizontalPodAutoscaler
    outcome      what it came to: waiting, replica-seconds, writes, interrupted jobs
    shards       what 100,000 queues ask of several operators, from measured unit costs
    figures      tables and plots of all of it

Everything is seeded: the same code gives the same numbers on every machine.
"""
