"""What the operator costs and how fast it is, measured on a real cluster with a real RabbitMQ.

    python -m hack.bench [--quick] [--counts 1,100,1000] [--only wake,...]

The flow of a run:

    site       namespaces, RabbitMQ, the operator from the chart, and a probe pod; all goes away afterwards
    probe      speaks to `inside`, which runs in the probe pod
    inside     one process with one clock that publishes, watches the API server and reads the operator's metrics
    figures    what is measured and how: each figure is a list of samples or one number, with its goal
    report     a table on the terminal, results.json and results.md

Nothing here is a test: figures of a busy machine are worse, and the load is reported with them.
"""
