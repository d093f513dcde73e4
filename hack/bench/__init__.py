"""Measure the cost and the speed of the operator on a real cluster with a real RabbitMQ.

    python -m hack.bench [--quick] [--counts 1,100,1000] [--only wake,...]

The modules, in the order of a run:

    site       install namespaces, RabbitMQ, the operator from the chart, and a probe pod; delete them afterwards
    probe      send commands to `inside`, which runs in the probe pod
    inside     publish, watch the API server and read the operator's metrics, in one process with one clock
    figures    measure each figure: a list of samples or one number, with a goal
    report     print a table, and write NAME.md and NAME.json.gz

These are not tests. A busy machine gives worse figures, so the load average is reported with each.
"""
