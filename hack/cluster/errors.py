"""The one error of the tool: whatever goes wrong ends as one of these, and as one sentence for the user."""


class ClusterError(Exception):
    """Says what is wrong and what to do about it."""
