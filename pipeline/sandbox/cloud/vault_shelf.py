"""What secrets and keys have in common: names, versions, lists in pages, deletion that can be undone."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import quote

import msgspec
from starlette.requests import Request

from pipeline.sandbox.cloud.vault_errors import BadParameter, VaultRefusal, in_the_way, not_found
from pipeline.sandbox.cloud.vault_objects import Version, checked_tags

_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")
_PAGE = 25
_RECOVERABLE_SECONDS = 90 * 86400

V = TypeVar("V", bound=Version)


@dataclass
class _Thing(Generic[V]):
    name: str
    versions: list[V]
    deleted: int | None = None


class Shelf(ABC, Generic[V]):
    """All secrets, or all keys, of the vault at `url` (no final slash). Names are the same in any case."""

    kind: ClassVar[str]
    identifier: ClassVar[str]

    def __init__(self, url: str) -> None:
        self._url = url
        self._things: dict[str, _Thing[V]] = {}

    @abstractmethod
    def bundle(self, name: str, version: V) -> dict[str, Any]:
        """A version as a request for it shows it."""

    @abstractmethod
    def item(self, version: V) -> dict[str, Any]:
        """The members of a version in a list, without its identifier."""

    def add(self, name: str, version: V) -> dict[str, Any]:
        """A new version; its bundle. VaultRefusal 409 for a name that was deleted."""
        check_name(name)
        thing = self._things.setdefault(name.lower(), _Thing(name, []))
        if thing.deleted is not None:
            raise in_the_way(self.kind, name)
        thing.versions.append(version)
        return self.bundle(name, version)

    def find(self, request: Request) -> tuple[str, V]:
        """The version that the path names, the newest where it names none. VaultRefusal 404."""
        name, wanted = request.path_params["name"], request.path_params.get("version") or ""
        thing = self._things.get(name.lower())
        if thing is not None and thing.deleted is None:
            for version in reversed(thing.versions):
                if wanted.lower() in {"", version.id}:
                    return name, version
        raise not_found(self.kind, name, wanted)

    def address(self, name: str, version: V) -> str:
        """The identifier with its version."""
        return f"{self._url}/{self.kind}s/{name}/{version.id}"

    async def list_all(self, request: Request) -> dict[str, Any]:
        """`GET /secrets`: the newest version of each, identified without it."""
        there = [thing for _, thing in sorted(self._things.items()) if thing.deleted is None]
        items = [self._item(f"{self.kind}s/{one.name}", one.versions[-1]) for one in there]
        return self._page(request, items)

    async def list_versions(self, request: Request) -> dict[str, Any]:
        """`GET /secrets/{name}/versions`; in the order of the random ids, so nobody may rely on their age."""
        name = request.path_params["name"]
        thing = self._things.get(name.lower())
        versions = thing.versions if thing is not None and thing.deleted is None else []
        ordered = sorted(versions, key=lambda version: version.id)
        return self._page(request, [self._item(f"{self.kind}s/{name}/{one.id}", one) for one in ordered])

    async def delete(self, request: Request) -> dict[str, Any]:
        """`DELETE /secrets/{name}`: all versions, recoverable."""
        name, _ = self.find(request)
        thing = self._things[name.lower()]
        thing.deleted = int(time.time())
        return self._deleted_bundle(thing)

    async def get_deleted(self, request: Request) -> dict[str, Any]:
        """`GET /deletedsecrets/{name}`."""
        return self._deleted_bundle(self._deleted(request))

    async def recover(self, request: Request) -> dict[str, Any]:
        """`POST /deletedsecrets/{name}/recover`."""
        thing = self._deleted(request)
        thing.deleted = None
        return without_value(self.bundle(thing.name, thing.versions[-1]))

    async def purge(self, request: Request) -> None:
        """`DELETE /deletedsecrets/{name}`: for good."""
        del self._things[self._deleted(request).name.lower()]

    def _deleted(self, request: Request) -> _Thing[V]:
        name = request.path_params["name"]
        thing = self._things.get(name.lower())
        if thing is None or thing.deleted is None:
            raise VaultRefusal(
                404,
                f"{self.kind.capitalize()}NotFound",
                f"Deleted {self.kind.capitalize()} not found: {name}",
            )
        return thing

    def _deleted_bundle(self, thing: _Thing[V]) -> dict[str, Any]:
        deleted = thing.deleted or 0
        return {
            **without_value(self.bundle(thing.name, thing.versions[-1])),
            "recoveryId": f"{self._url}/deleted{self.kind}s/{thing.name}",
            "deletedDate": deleted,
            "scheduledPurgeDate": deleted + _RECOVERABLE_SECONDS,
        }

    def _item(self, path: str, version: V) -> dict[str, Any]:
        return {self.identifier: f"{self._url}/{path}", **self.item(version)}

    def _page(self, request: Request, items: list[dict[str, Any]]) -> dict[str, Any]:
        query = request.query_params
        try:
            start, size = int(query.get("$skiptoken", "0")), int(query.get("maxresults", str(_PAGE)))
        except ValueError:
            raise BadParameter("maxresults must be a number between 1 and 25") from None
        if start < 0 or not 1 <= size <= _PAGE:
            raise BadParameter("maxresults must be a number between 1 and 25")
        following = None
        if start + size < len(items):
            rest = f"api-version={quote(query['api-version'])}&$skiptoken={start + size}&maxresults={size}"
            following = f"{self._url}{request.url.path}?{rest}"
        return {"value": items[start : start + size], "nextLink": following}


def check_name(name: str) -> None:
    """BadParameter for a name that no secret or key can have."""
    if not _NAME.fullmatch(name):
        raise BadParameter(f"The request URI contains an invalid name: {name}")


def change(version: Version, wanted: dict[str, Any]) -> None:
    """Attributes and tags of a PATCH; a member that is not there stays as it is."""
    version.attributes.change(wanted.get("attributes") or {})
    if wanted.get("tags") is not None:
        version.tags = checked_tags(wanted["tags"])


def without_value(bundle: dict[str, Any]) -> dict[str, Any]:
    """What answers other than a read of the secret show."""
    return {name: value for name, value in bundle.items() if name != "value"}


async def body_of(request: Request) -> dict[str, Any]:
    """A JSON object. BadParameter or VaultRefusal 415 for anything else."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise VaultRefusal(415, "BadParameter", "The content type must be application/json.")
    try:
        return msgspec.json.decode(await request.body(), type=dict[str, Any])
    except msgspec.DecodeError:
        raise BadParameter("The request body is not a JSON object.") from None
