"""The operator's error tree, and the translation of what the API server answers into it.

Place in the flow: raised at the edges (`cluster`, `observe`, `act`), caught in `reconcile`, where an error
becomes a condition. An error carries the reason that the condition, the Event and the log line will use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from workqueue_operator.api.reasons import Reason


class OperatorError(Exception):
    """The root of the tree."""


class ConfigurationError(OperatorError):
    """The operator's own configuration is wrong; carries every mistake that was found.

    Args:
        mistakes: one sentence each.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class LeadershipLostError(OperatorError):
    """A write was about to happen without a valid Lease. The process has to end."""


class ReconcileError(OperatorError):
    """Something stands in the way of a WorkQueue and a person may have to act.

    Args:
        reason: for the condition, the Event and the log line.
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
        status: the HTTP status, 0 when there was no answer.
    """

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after

    @property
    def not_found(self) -> bool:
        """The object, or its kind, is not there."""
        return self.status == 404  # noqa: PLR2004 - HTTP

    @property
    def forbidden(self) -> bool:
        """We have no right to it, or an admission controller does not want it."""
        return self.status == 403  # noqa: PLR2004 - HTTP

    @property
    def refused(self) -> bool:
        """The server said no, so that nothing was changed; otherwise it may have been."""
        return 400 <= self.status < 500 or self.denied  # noqa: PLR2004 - HTTP

    @property
    def invalid(self) -> bool:
        """The object is not as the server takes it. For a field that it does not know it says 500."""
        return self.status in {400, 422} or self.message.startswith("failed to create typed patch object")

    @property
    def denied(self) -> bool:
        """The server, or a policy in it, does not want this content: the same request is refused again.

        A JSON patch whose `test` operation failed answers 422 as well; only the object itself can say which it was.
        """
        return self.forbidden or self.invalid or self.message.startswith(_WEBHOOK_IS_DOWN)

    @property
    def conflict(self) -> bool:
        """A concurrent write won."""
        return self.status == 409  # noqa: PLR2004 - HTTP
