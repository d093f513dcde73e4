"""`python -m hack.demo`: the main job on a real cluster, from start to end, with real input.

The flow:

    install     RabbitMQ, the operator and a WorkQueue, as a user installs them: with kubectl and helm
    following   kubectl commands that go on
    forward     RabbitMQ's port on this machine, through kubectl
    documents   the texts that are sent
    watch       what the cluster shows of the workers, and when the count of replicas was written
    broker      takes the results from their queue, and looks how many messages wait
    ledger      compares results with what they ought to be
    board       shows all of it, live
    scenario    sends one document, then all the others, and compares
    report      says what came of it

Only access to a cluster is needed (`python -m hack.cluster up`, also with CLUSTER=current) that has, or can
pull, the images.
"""
