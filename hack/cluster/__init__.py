"""A real Kubernetes of one node on this machine, with no container engine and no registry.

    python -m hack.cluster up | down | status | load IMAGE_ARCHIVE | exec -- COMMAND...

The flow of `up`:

    packages    install the Debian packages that are missing
    toolchain   Go, and with it Kubernetes, CoreDNS and helm, built once into the user's cache folder
    images      archives of the container images that every cluster starts with, made once
    daemons     certificates (pki), configuration files and command lines
    namespaces  start `node` as process 1 of namespaces of its own (network, mount, process, ...)
    lifecycle   wait until it is ready, load the images
    checkout    write .cluster/kubeconfig, which reaches it over loopback

Because process 1 owns every namespace, the kernel itself takes all processes, mounts, interfaces and
firewall rules away when it dies. What is left then is the state folder and the control groups, which `down`
removes, and so does the next `up` after a crash.
"""
