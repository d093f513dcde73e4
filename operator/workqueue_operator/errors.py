"""The operator's errors.

`reconcile` turns each ReconcileError into a condition, with the error's reason and message.
"""

# OperatorError
# ├── ConfigurationError     the operator's own configuration is invalid
# ├── LeadershipLostError    the Lease is no longer held
# ├── ReconcileError         a WorkQueue cannot be reconciled; has a reason
# └── ClusterError           the API server refused a request or did not answer
#
# Outside the tree, because they are caught close to where they are raised:
# broker.channel.ChannelRefusedError and ChannelLostError, broker.connection.QueueMissingError,
# selftest.SelftestError.

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from workqueue_operator.api.reasons import Reason


class OperatorError(Exception):
    """The base class of the operator's errors."""


class ConfigurationError(OperatorError):
    """The operator's own configuration is invalid.

    Args:
        mistakes: one sentence for each mistake.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class LeadershipLostError(OperatorError):
    """The process tried to write without a valid Lease. It must exit."""


class ReconcileError(OperatorError):
    """A WorkQueue cannot be reconciled; the user may have to act.

    Args:
        reason: of the condition, the Event and the log line.
        message: what is wrong, where, and what to do.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


_WEBHOOK_IS_DOWN: Final = "Internal error occurred: failed calling webhook"
"""An admission webhook that has to be asked does not answer: 500, and nothing was written."""


class ClusterError(OperatorError):
    """The API server refused a request or did not answer it.

    Attributes:
        status: the HTTP status; 0 without an answer.
        retry_after: seconds from the Retry-After header, if any.
    """

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after

    @property
    def not_found(self) -> bool:
        """Whether the object, or its kind, does not exist."""
        return self.status == 404  # noqa: PLR2004 - HTTP

    @property
    def forbidden(self) -> bool:
        """Whether RBAC or an admission controller refused the request."""
        return self.status == 403  # noqa: PLR2004 - HTTP

    @property
    def refused(self) -> bool:
        """Whether the server refused, so that nothing changed. Otherwise the write may have happened."""
        return 400 <= self.status < 500 or self.denied  # noqa: PLR2004 - HTTP

    @property
    def invalid(self) -> bool:
        """Whether the object is invalid. For an unknown field, the server answers 500."""
        return self.status in {400, 422} or self.message.startswith("failed to create typed patch object")

    @property
    def denied(self) -> bool:
        """Whether the server or an admission policy refused the content. It will refuse the same request again.

        A JSON Patch whose `test` operation failed also answers 422. Only the current object tells the two apart.
        """
        return self.forbidden or self.invalid or self.message.startswith(_WEBHOOK_IS_DOWN)

    @property
    def conflict(self) -> bool:
        """Whether a concurrent write won."""
        return self.status == 409  # noqa: PLR2004 - HTTP
