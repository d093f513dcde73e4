"""Run a real single-node Kubernetes on this machine, without a container engine or a registry.

    python -m hack.cluster up | down | status | load IMAGE_ARCHIVE | exec -- COMMAND...

`clusters` selects the cluster: this one, one of kind in docker or podman (CLUSTER=kind), or that of the current
kubectl context (CLUSTER=current). The steps of `up` here, as far as possible at the same time (plan):

    packages    install the Debian packages that are missing
    toolchain   build Kubernetes, CoreDNS and helm with Go, once, into the user's cache folder
    images      make the archives of the container images that every cluster starts with, once
    daemons     write certificates (pki), configuration files and command lines
    namespaces  start `node` as process 1 of new namespaces (network, mount, process, ...)
    lifecycle   wait until the cluster is ready, load the images
    checkout    write .cluster/kubeconfig, which reaches the cluster over loopback

Process 1 owns every namespace. When it dies, the kernel removes all processes, mounts, interfaces and firewall
rules. The state folder and the control groups remain. `down` removes them, and so does the next `up` after a
crash.
"""
