"""What the website asks for, without Celery. On the command line: python website.py push docs."""

import sys
import time

import work
from messages import ListRepositories, Notify, RemoveIndex, RemoveStorage, SendStatus, SyncRepository

from workqueue import Publisher

publisher = Publisher()


def push(project):
    publisher.publish(SyncRepository(project), queue="web")


def report(project, version, status):
    publisher.publish(SendStatus(project, version, status), queue="web")


def notify(user, *, urgent=False):
    publisher.publish(Notify(user), queue="web", priority=9 if urgent else 4)


def alarm(user):
    notify(user, urgent=True)


def delete(project):
    publisher.publish(RemoveIndex(project), queue="index")
    publisher.publish(RemoveStorage(project), queue="web", delay=2)


def repositories(user):
    name = publisher.publish(ListRepositories(user), queue="web")
    end = time.monotonic() + 30
    while (result := work.find_result(name)) is None and time.monotonic() < end:
        time.sleep(0.1)
    print(result)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    publisher.close()
