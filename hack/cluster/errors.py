"""The error of hack.cluster. The command line prints it as one sentence."""


class ClusterError(Exception):
    """The message says what is wrong and what to do."""
