"""`python -m hack.demo`: run the product end to end on a real cluster, with real input.

The modules, in the order of a run:

    install     install RabbitMQ, the operator and a WorkQueue with kubectl and helm, as a user does
    following   follow kubectl commands that keep running
    forward     forward RabbitMQ's port to this machine with kubectl
    documents   find the texts to send
    watch       watch the workers and the writes of the replica count
    broker      consume the results and poll how many messages wait
    ledger      compare the results with the expected ones
    board       show the progress live
    scenario    send one document, then all others, and check the results
    report      print the measurements
    recording   record the rows of the table
    animation   draw a recording as the moving picture docs/images/demo.svg

The demo needs access to a cluster (`python -m hack.cluster up`, also with CLUSTER=current). The cluster must have
the images or be able to pull them.
"""
