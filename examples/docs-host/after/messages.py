"""The messages, for the website and for the handlers. They become JSON such as {"task": "notify", "user": "ada"}."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class UpdateDocs:
    project: str
    version: str


@dataclass
class IndexDocs:
    project: str
    version: str
    task: Literal["index_docs"] = "index_docs"


@dataclass
class RemoveIndex:
    project: str
    task: Literal["remove_index"] = "remove_index"


@dataclass
class SyncRepository:
    project: str
    task: Literal["sync_repository"] = "sync_repository"


@dataclass
class PurgeCdn:
    project: str
    version: str
    task: Literal["purge_cdn"] = "purge_cdn"


@dataclass
class SendStatus:
    project: str
    version: str
    status: str
    task: Literal["send_status"] = "send_status"


@dataclass
class Notify:
    user: str
    task: Literal["notify"] = "notify"


@dataclass
class RemoveStorage:
    project: str
    task: Literal["remove_storage"] = "remove_storage"


@dataclass
class FinishInactiveBuilds:
    task: Literal["finish_inactive_builds"] = "finish_inactive_builds"


@dataclass
class ListRepositories:
    user: str
    task: Literal["list_repositories"] = "list_repositories"


IndexTask = IndexDocs | RemoveIndex
WebTask = (
    SyncRepository | PurgeCdn | SendStatus | Notify | RemoveStorage | FinishInactiveBuilds | ListRepositories
)
