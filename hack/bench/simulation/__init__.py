"""Simulate hours of autoscaling in seconds: a discrete-event simulation with the operator's own `decide`.

    python -m hack.bench --only simulation

The modules, in the order of a run:

    jobs         generate the time and the handler time of each message: synthetic, or recorded
    world        simulate a queue, pods that start and end, and a clock that jumps to the next event
    operator     call the real `decide` when the operator would, and apply its decision
    keda         model KEDA with a HorizontalPodAutoscaler
    oracle       plan pods with full knowledge, as the measure for maxWaitSeconds
    outcome      sum up waiting times, replica-seconds, writes and interrupted jobs
    shards       compute the load of 100,000 queues on several operators, from measured unit costs
    figures      write the tables and plots

All random numbers are seeded. The same code gives the same results on every machine.
"""
