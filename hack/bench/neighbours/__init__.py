"""Measure what one healthy WorkQueue notices of broken or greedy neighbours.

One operator serves the healthy WorkQueue and its neighbours, with a real API server, a real RabbitMQ, and stub pods.
In each row of the matrix the neighbours have another defect, while the healthy WorkQueue is woken and scaled in many
times. tests/neighbours runs the cheapest form of each row.

    lab          the control plane, RabbitMQ, the stub kubelet and the operator, in a network namespace of their own
    image        the image as a folder: the operator has the Python and packages of a pod
    disturb      the tools of the rows: threads that publish, edit, listen and requeue
    rows         the rows: a name, a title, and what is wrong with the neighbours
    crowd        figures of many WorkQueues in the same lab: storms, idle and busy ones, recurring messages
    probe        wake the healthy WorkQueue and scale it in, in a process of its own
    figures      run the matrix, compare it with a revision before, and make the report
"""
