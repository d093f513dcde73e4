"""What the website asks for, with Celery. On the command line: python website.py push docs."""

import sys

import tasks


def push(project):
    tasks.sync_repository.delay(project)


def report(project, version, status):
    tasks.send_status.delay(project, version, status)


def notify(user, *, urgent=False):
    tasks.notify.apply_async([user], priority=9 if urgent else 4)


def alarm(user):
    notify(user, urgent=True)


def delete(project):
    tasks.remove_index.delay(project)
    tasks.remove_storage.apply_async([project], countdown=2)


def repositories(user):
    print(tasks.list_repositories.delay(user).get(timeout=30))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
