"""The tasks as handlers: one for each queue.

workqueue run handlers:update_docs --queue builds --declare --isolation Process --timeout 930
workqueue run handlers:index --queue index --declare
workqueue run handlers:web --queue web --declare
"""

import os
from collections.abc import Iterator

import work
from messages import (
    FinishInactiveBuilds,
    IndexDocs,
    IndexTask,
    ListRepositories,
    Notify,
    PurgeCdn,
    RemoveIndex,
    RemoveStorage,
    SendStatus,
    SyncRepository,
    UpdateDocs,
    WebTask,
)

import workqueue
from workqueue import Message, Publisher, Reject, Retry

BUILD_SECONDS = float(os.environ.get("BUILD_SECONDS", "900"))
RETRY_SECONDS = float(os.environ.get("RETRY_SECONDS", "60"))


@workqueue.lifespan
def publisher() -> Iterator[Publisher]:
    with Publisher() as publisher:
        yield publisher


def publish_next(message: Message, body: object, queue: str, name: str) -> None:
    """Publish the next step. If this attempt is repeated, the next step gets the same id again."""
    message.context.publish(body, queue=queue, message_id=f"{message.properties.message_id}/{name}")


def update_docs(job: UpdateDocs, message: Message) -> None:
    try:
        work.require_builder()
        work.build(job.project, job.version, seconds=BUILD_SECONDS)
    except work.BuildersBusyError as error:
        raise Retry(after=RETRY_SECONDS, reason="builders are busy", counts=False) from error
    except work.BuildTooLongError as error:
        work.fail_build(job.project, job.version, "too long")
        raise Reject("the build took too long") from error
    publish_next(message, IndexDocs(job.project, job.version), "index", "index")


def index(job: IndexTask, message: Message) -> None:
    match job:
        case IndexDocs():
            work.index(job.project, job.version)
            publish_next(message, PurgeCdn(job.project, job.version), "web", "purge")
        case RemoveIndex():
            work.remove_index(job.project)


def web(job: WebTask, message: Message) -> None:
    match job:
        case SyncRepository():
            for version in work.fetch_versions(job.project):
                publish_next(message, UpdateDocs(job.project, version), "builds", version)
        case PurgeCdn():
            work.purge_cdn(job.project, job.version)
        case SendStatus():
            work.send_status(job.project, job.version, job.status)
        case Notify():
            work.notify(job.user)
        case RemoveStorage():
            work.remove_storage(job.project)
        case FinishInactiveBuilds():
            work.finish_inactive_builds()
        case ListRepositories():
            result = ", ".join(work.repositories(job.user))
            work.save_result(str(message.properties.message_id), result)
