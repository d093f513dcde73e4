"""The worker of a work queue: consume, handle, settle; and what operator and publisher share with it."""

__version__ = "0.1.0"
