"""What users may do on the page: pause, resume, pin and release workers, and replay or purge dead letters.

The page acts with its own ServiceAccount, so it first asks the API server whether the user may do the same with
kubectl. Before it changes anything, it writes an Event that names the user. Each form says which version of the
WorkQueue, or how many dead letters, the user has seen. If that has changed, nothing happens.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from http import HTTPStatus
from typing import Any, Final

from pydantic import ValidationError

from workqueue.contract.errors import WorkerError
from workqueue.logs import escaped
from workqueue_operator.api.workqueue import MAX_REPLICAS, WorkQueue
from workqueue_operator.errors import ClusterError, ReconcileError
from workqueue_operator.kube.client import Cluster, events_path, workqueue_path
from workqueue_operator.kube.events import event_body, workqueue_reference
from workqueue_operator.kube.store import Object
from workqueue_operator.names import GROUP, PLURAL
from workqueue_web.access import Access, Person, Right
from workqueue_web.dead_letters import ChangedError, DeadLetters, NotReadableError
from workqueue_web.decisions import PAGE_REPORTER

logger = logging.getLogger(__name__)

NAME_LENGTH: Final = 200
FORM_SECONDS: Final = 30 * 60.0
"""How long a form is good. Its Event prevents that it is carried out again, and Kubernetes deletes Events after an
hour."""

_ONCE: Final = re.compile("[0-9a-f]{16}")


class Action(Enum):
    """An action. The values are in the page's addresses."""

    PAUSE = "pause"
    RESUME = "resume"
    SCALE = "scale"
    RELEASE = "release"
    REPLAY = "replay"
    PURGE = "purge"

    @property
    def is_about_dead_letters(self) -> bool:
        """Whether it changes messages in RabbitMQ, not the WorkQueue."""
        return self in {Action.REPLAY, Action.PURGE}


REASONS: Final = {
    Action.PAUSE: "PausedByUser",
    Action.RESUME: "ResumedByUser",
    Action.SCALE: "PinnedByUser",
    Action.RELEASE: "ReleasedByUser",
    Action.REPLAY: "ReplayedByUser",
    Action.PURGE: "PurgedByUser",
}
"""The reasons of the Events."""


class RefusedError(Exception):
    """The action was not carried out. The message says why, and what to do.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user has confirmed.

    Attributes:
        uid: the WorkQueue that the form was about, not another one of the same name.
        generation: the version of its spec that the form has shown.
        replicas: for SCALE.
        once: a number of this form, which is carried out once (see `form_number`).
        dead_letters: for REPLAY and PURGE: how many the form has shown.
    """

    action: Action
    uid: str
    generation: int
    once: str
    replicas: int | None = None
    dead_letters: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """The actions that a user may do with a WorkQueue in its present state.

    Attributes:
        missing: the rights that the user lacks for others.
    """

    actions: tuple[Action, ...]
    missing: tuple[str, ...] = ()


class Actions:
    """Carries out actions.

    Args:
        instance: this process' name in Events.
    """

    def __init__(self, cluster: Cluster, access: Access, dead_letters: DeadLetters, instance: str) -> None:
        self._cluster = cluster
        self._access = access
        self._dead_letters = dead_letters
        self._instance = instance
        self._running: set[asyncio.Task[int]] = set()

    async def stop(self) -> None:
        """Wait for running actions. Each has a time limit."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def offer(self, person: Person, body: Object) -> Offer:
        """Return what to offer to a user.

        Raises:
            ClusterError, TooManyError: as `Access.may`.
        """
        fitting = _fitting(body)
        lacking = {
            action: [right for right in _rights(action, body) if not await self._access.may(person, right)]
            for action in fitting
        }
        missing = {str(right): None for rights in lacking.values() for right in rights}
        return Offer(tuple(action for action in fitting if not lacking[action]), tuple(missing))

    async def require(self, person: Person, action: Action, body: Object) -> None:
        """Raise unless a user may do this now. Asks the API server each time.

        Raises:
            RefusedError: the user may not, or the action does not fit the WorkQueue's state.
            ClusterError, TooManyError: as `Access.may`.
        """
        for right in _rights(action, body):
            if not await self._access.may(person, right, fresh=True):
                logger.warning(
                    "A user may not do this.",
                    extra={"user": person.name, "action": action.value, **_place(body), "right": str(right)},
                )
                raise RefusedError(
                    HTTPStatus.FORBIDDEN,
                    f"{person.name} may not do this: it takes the right to {right} in the namespace"
                    f" {right.namespace}.",
                )
        if action not in _fitting(body):
            raise RefusedError(
                HTTPStatus.CONFLICT,
                "This is already done, or the WorkQueue has changed since. Look at it again.",
            )

    async def dead_letters(self, body: Object) -> int:
        """Return the number of dead letters, from RabbitMQ.

        Raises:
            RefusedError: it cannot be read.
        """
        try:
            return await self._dead_letters.count(_parsed(body))
        except (NotReadableError, ClusterError, ReconcileError, WorkerError) as error:
            raise RefusedError(HTTPStatus.CONFLICT, str(error)) from error

    async def carry_out(self, person: Person, wish: Wish, body: Object) -> int:
        """Carry out what a user has confirmed, even if their browser goes away in between.

        Returns:
            The number of dead letters that were replayed or deleted, or of workers.

        Raises:
            RefusedError: nothing was changed, or not everything.
            ClusterError, TooManyError: as `Access.may`.
        """
        await self.require(person, wish.action, body)
        if (body["metadata"]["uid"], body["metadata"]["generation"]) != (wish.uid, wish.generation):
            raise _changed()
        task = asyncio.create_task(self._carry_out(person, wish, body), name=f"page {wish.action.value}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _carry_out(self, person: Person, wish: Wish, body: Object) -> int:
        user = escaped(person.name)[:NAME_LENGTH]
        await self._event(body, wish.action, f"{user}, on the web page: {_sentence(wish)}", once=wish.once)
        logger.info(
            "A user changes a WorkQueue.",
            extra={
                "user": person.name,
                "action": wish.action.value,
                **_place(body),
                "detail": _sentence(wish),
            },
        )
        try:
            if wish.action.is_about_dead_letters:
                return await self._settle_dead_letters(user, wish, body)
            await self._patch(wish, body)
        except RefusedError as error:
            note = f"{user}, on the web page: {wish.action.value} did not succeed. {error}"
            await self._event(body, wish.action, note, warning=True)
            raise
        return wish.replicas or 0

    async def _patch(self, wish: Wish, body: Object) -> None:
        metadata = body["metadata"]
        operations: list[Object] = [
            # The form was about this object, and about this version of its spec. A status does not change that.
            {"op": "test", "path": "/metadata/uid", "value": wish.uid},
            {"op": "test", "path": "/metadata/generation", "value": wish.generation},
            _change(wish),
        ]
        path = workqueue_path(metadata["namespace"], metadata["name"])
        try:
            await self._cluster.json_patch(path, operations, PAGE_REPORTER)
        except ClusterError as error:
            if error.status in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                raise _changed() from error
            if error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
                raise RefusedError(
                    HTTPStatus.CONFLICT,
                    f"The API server refuses this, or the WorkQueue has changed since: {error.message}. Look at it"
                    " again.",
                ) from error
            raise RefusedError(
                HTTPStatus.BAD_GATEWAY,
                f"The API server has not confirmed it: {error.message}. Look at the WorkQueue before you try"
                " again.",
            ) from error

    async def _settle_dead_letters(self, user: str, wish: Wish, body: Object) -> int:
        workqueue, expected = _parsed(body), wish.dead_letters or 0
        settle = self._dead_letters.replay if wish.action is Action.REPLAY else self._dead_letters.purge
        try:
            outcome = await settle(workqueue, expected)
        except ChangedError as error:
            raise RefusedError(HTTPStatus.CONFLICT, str(error)) from error
        except (NotReadableError, ClusterError, ReconcileError, WorkerError) as error:
            raise RefusedError(HTTPStatus.BAD_GATEWAY, str(error)) from error
        verb = "replayed" if wish.action is Action.REPLAY else "deleted"
        note = f"{user}, on the web page: {outcome.settled} of {expected} dead letters were {verb}."
        await self._event(
            body, wish.action, " ".join([note, *outcome.errors[:1]]), warning=bool(outcome.errors)
        )
        if outcome.errors:
            raise RefusedError(
                HTTPStatus.BAD_GATEWAY,
                f"{outcome.settled} of {expected} dead letters were {verb}. {outcome.errors[0]} The others are still"
                " there.",
            )
        return outcome.settled

    async def _event(
        self, body: Object, action: Action, note: str, *, warning: bool = False, once: str = ""
    ) -> None:
        """Write an Event.

        Args:
            once: the number of a form that must not be carried out without its Event, or a second time: of Events of
                the same name, the API server accepts one, whichever replica of the page writes it.

        Raises:
            RefusedError: such a form was sent before, or its Event could not be written.
        """
        metadata = body["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        event = event_body(
            workqueue_reference(namespace, name, metadata["uid"]),
            datetime.now(UTC),
            (PAGE_REPORTER, self._instance),
            reason=REASONS[action],
            action=action.value.capitalize(),
            note=note,
            warning=warning,
            name=f"{name}-{once}" if once else "",
        )
        try:
            await self._cluster.create(events_path(namespace), event)
        except ClusterError as error:
            logger.warning("An Event could not be written.", extra={"note": note, "detail": error.message})
            if once and error.conflict:
                raise RefusedError(
                    HTTPStatus.CONFLICT,
                    "This form was already sent, and is not carried out again. Open a new one.",
                ) from error
            if once:
                raise RefusedError(
                    HTTPStatus.BAD_GATEWAY,
                    "Nothing was changed, because the Event that names you could not be written:"
                    f" {error.message}. Try again in a minute.",
                ) from error


def _rights(action: Action, body: Object) -> list[Right]:
    """Return the rights with which a user could do this with kubectl."""
    metadata = body["metadata"]
    patch = Right("patch", GROUP, PLURAL, metadata["namespace"], metadata["name"])
    if not action.is_about_dead_letters:
        return [patch]
    secret = str((body["spec"].get("connectionSecretRef") or {}).get("name") or "")
    return [patch, Right("get", "", "secrets", metadata["namespace"], secret)]


def _fitting(body: Object) -> list[Action]:
    """Return the actions that fit the state of a WorkQueue. None fits one that is being deleted."""
    spec: Mapping[str, Any] = body["spec"]
    if body["metadata"].get("deletionTimestamp"):
        return []
    found = [Action.RESUME if spec.get("suspend") else Action.PAUSE, Action.SCALE]
    if spec.get("replicas") is not None:
        found.append(Action.RELEASE)
    if (body.get("status") or {}).get("deadLetters") != 0:
        found += [Action.REPLAY, Action.PURGE]
    return found


def _change(wish: Wish) -> Object:
    if wish.action is Action.SCALE:
        return {"op": "add", "path": "/spec/replicas", "value": wish.replicas}
    if wish.action is Action.RELEASE:
        return {"op": "remove", "path": "/spec/replicas"}
    return {"op": "add", "path": "/spec/suspend", "value": wish.action is Action.PAUSE}


def _sentence(wish: Wish) -> str:
    return {
        Action.PAUSE: "pauses it.",
        Action.RESUME: "resumes it.",
        Action.SCALE: f"pins the number of workers to {wish.replicas}.",
        Action.RELEASE: "releases the number of workers.",
        Action.REPLAY: f"replays {wish.dead_letters} dead letters.",
        Action.PURGE: f"deletes {wish.dead_letters} dead letters.",
    }[wish.action]


def form_number(now: float) -> str:
    """Return a number for a new form: the time, and a random part."""
    return f"{int(now):08x}{secrets.token_hex(4)}"


def wish_of(action: Action, form: Mapping[str, Any], now: float) -> Wish:
    """Return what a form asks for.

    Raises:
        RefusedError: a field is missing or wrong, or the form is too old.
    """

    def number(field: str, most: int = 2**53) -> int:
        text = str(form.get(field, "")).strip()
        if not (text.isascii() and text.isdecimal()) or int(text[:20]) > most:
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                f"{field} is {escaped(text)[:NAME_LENGTH]!r}: a number from 0 to {most}.",
            )
        return int(text)

    once = str(form.get("once", ""))
    if _ONCE.fullmatch(once) is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "This form is not complete. Open it again.")
    if abs(now - int(once[:8], 16)) > FORM_SECONDS:
        raise RefusedError(
            HTTPStatus.CONFLICT,
            f"This form is older than {FORM_SECONDS / 60:.0f} minutes. Nothing was changed. Open it again.",
        )
    return Wish(
        action,
        str(form.get("uid", "")),
        number("generation"),
        once,
        replicas=number("replicas", MAX_REPLICAS) if action is Action.SCALE else None,
        dead_letters=number("dead_letters") if action.is_about_dead_letters else None,
    )


def _parsed(body: Object) -> WorkQueue:
    try:
        return WorkQueue.model_validate(body)
    except ValidationError as error:
        raise RefusedError(
            HTTPStatus.CONFLICT, "The page cannot read this WorkQueue: the cluster has another version of it."
        ) from error


def _changed() -> RefusedError:
    return RefusedError(
        HTTPStatus.CONFLICT,
        "Nothing was changed: the WorkQueue has changed since the form was shown, or was deleted. Look at it again.",
    )


def _place(body: Object) -> dict[str, str]:
    return {"namespace": body["metadata"]["namespace"], "workqueue": body["metadata"]["name"]}
