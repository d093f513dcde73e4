"""The tasks with Celery.

celery -A tasks worker -Q builds
celery -A tasks worker -Q index,web --beat
"""

import os

import work
from celery import Celery, chain
from celery.exceptions import Ignore, SoftTimeLimitExceeded
from kombu import Queue

app = Celery("tasks", broker=os.environ["BROKER_URL"], backend="rpc://")
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    task_default_queue="web",
    task_queues=[Queue("builds"), Queue("index"), Queue("web", queue_arguments={"x-max-priority": 9})],
    task_routes={
        "tasks.update_docs": {"queue": "builds"},
        "tasks.index_docs": {"queue": "index"},
        "tasks.remove_index": {"queue": "index"},
    },
    task_default_priority=4,
    beat_schedule={
        "finish inactive builds": {
            "task": "tasks.finish_inactive_builds",
            "schedule": float(os.environ.get("BEAT_SECONDS", "60")),
        }
    },
)
BUILD_SECONDS = float(os.environ.get("BUILD_SECONDS", "900"))
RETRY_SECONDS = float(os.environ.get("RETRY_SECONDS", "60"))


@app.task
def sync_repository(project):
    for version in work.fetch_versions(project):
        chain(
            update_docs.si(project, version),
            index_docs.si(project, version),
            purge_cdn.si(project, version),
        ).delay()


@app.task(bind=True, soft_time_limit=BUILD_SECONDS, time_limit=BUILD_SECONDS + 30, max_retries=25)
def update_docs(self, project, version):
    try:
        work.require_builder()
        work.build(project, version)
    except work.BuildersBusyError as error:
        raise self.retry(exc=error, countdown=RETRY_SECONDS) from error
    except SoftTimeLimitExceeded as error:
        work.fail_build(project, version, "too long")
        raise Ignore from error  # this also ends the chain


@app.task
def index_docs(project, version):
    work.index(project, version)


@app.task
def remove_index(project):
    work.remove_index(project)


@app.task
def purge_cdn(project, version):
    work.purge_cdn(project, version)


@app.task(
    autoretry_for=(work.GitHostDownError,),
    max_retries=5,
    retry_backoff=RETRY_SECONDS,
    retry_jitter=False,
)
def send_status(project, version, status):
    work.send_status(project, version, status)


@app.task
def notify(user):
    work.notify(user)


@app.task
def remove_storage(project):
    work.remove_storage(project)


@app.task
def finish_inactive_builds():
    work.finish_inactive_builds()


@app.task(ignore_result=False)
def list_repositories(user):
    return ", ".join(work.repositories(user))
