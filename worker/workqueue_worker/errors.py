"""The worker's error tree: everything that this package raises on purpose is a WorkerError.

Place in the flow: raised anywhere in the package, shown to a person by the command line and by the
pod's termination message. Each message says what is wrong, where, and what to do.
"""


class WorkerError(Exception):
    """The root of the tree. `str()` of it is one or more whole sentences for a person."""


class ConfigurationError(WorkerError):
    """The configuration is wrong. Carries every mistake that was found, not only the first.

    Args:
        mistakes: one sentence for each mistake, in the order in which they were found.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class BindingError(WorkerError):
    """The connection data (a URL, a Secret or a folder of files) cannot be used as it is."""


class BrokerError(WorkerError):
    """RabbitMQ refused something, or cannot be reached."""


class HandlerLoadError(WorkerError):
    """The handler cannot be loaded or reached, so that no message may be taken."""


class PublishError(BrokerError):
    """A message was not accepted: it was returned as unroutable, refused, or never confirmed."""
