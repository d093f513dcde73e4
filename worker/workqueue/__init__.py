"""The worker of a work queue: consume, handle, settle; and what operator and publisher share with it.

A handler needs three names from here: `Message`, which it is given, and `Retry` and `Reject`, which it may
raise.
"""

__version__ = "0.1.0"

from workqueue.message import Message, Reject, Retry

__all__ = ["Message", "Reject", "Retry", "__version__"]
