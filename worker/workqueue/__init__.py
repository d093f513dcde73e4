"""The worker of a work queue. Handlers import three names: `Message`, `Retry` and `Reject`."""

__version__ = "0.1.0"

from workqueue.message import Message, Reject, Retry

__all__ = ["Message", "Reject", "Retry", "__version__"]
