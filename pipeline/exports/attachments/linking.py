"""The attachments of one export: each looked at, fetched where it is not known, and made a row."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.auth.origins import origin
from pipeline.bulkdata.attachment_fetching import Arrived, AskedToWait, AttachmentFetcher
from pipeline.bulkdata.attachment_policy import AttachmentPolicy, without_query
from pipeline.bulkdata.attachment_rules import (
    Declared,
    NotTaken,
    decoded,
    fetch_key,
    is_wanted,
    media_type,
    require_as_declared,
)
from pipeline.config.attachments import Attachments
from pipeline.errors import DownloadRefused
from pipeline.exports.attachments.blobs import Blobs
from pipeline.exports.attachments.fetched import Content, Fetched
from pipeline.exports.attachments.links import linked_contents, links_schema, write_links
from pipeline.exports.attachments.origins import GivenUp, Origins
from pipeline.exports.attachments.reading import attachments_of
from pipeline.exports.attachments.unlinked import all_linked_blobs
from pipeline.exports.session import Session
from pipeline.lake.spool import discard
from pipeline.unexpected import contained

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 10_000


@dataclass(frozen=True)
class Linked:
    """The attachments of one export, after they were looked at."""

    export_id: str
    states: dict[str, int]
    """How many there are by what became of them."""
    fetched: int
    """Asked for now, and stored."""
    fetched_bytes: int
    version: int
    """Of the table of links."""
    contents: frozenset[str] = field(default=frozenset(), repr=False)
    """sha256 of all that is linked."""
    given_up: tuple[GivenUp, ...] = ()
    """Origins that do not answer, and were asked no more."""

    @property
    def attachments(self) -> int:
        return sum(self.states.values())

    @property
    def failed(self) -> int:
        return self.states.get("failed", 0)


class Linking:
    """Of one export; `run` once."""

    def __init__(
        self,
        session: Session,
        export_id: str,
        wanted: Attachments,
        policy: AttachmentPolicy,
        fetcher: AttachmentFetcher,
        blobs: Blobs,
        origins: Origins,
    ) -> None:
        self.session = session
        self.export_id = export_id
        self.wanted = wanted
        self.policy = policy
        self.fetcher = fetcher
        self.blobs = blobs
        self.notes = Fetched(session, export_id)
        self.known: dict[str, Content] = {}
        self.states: dict[str, int] = {}
        self.contents: set[str] = set()
        self.put: set[str] = set()
        """sha256 of what was stored now."""
        self.fetched = 0
        self.fetched_bytes = 0
        self.origins = origins
        self.left_out = False
        """Whether something was not asked for, since its origin does not answer."""
        self.spool = Path()
        self._lock = threading.Lock()

    def run(self, number: int) -> Linked:
        """Links them all; `number` is that of the commit that published the export."""
        self.known = {**linked_contents(self.session, self._keys()), **self.notes.earlier()}
        with self.session.lake.spool() as self.spool:
            try:
                commit = write_links(self.session, self.export_id, number, self._tables())
            finally:
                self.notes.write()
        self.notes.forget(but_open=self.left_out)
        return Linked(
            self.export_id,
            self.states,
            self.fetched,
            self.fetched_bytes,
            commit.version,
            frozenset(self.contents),
            self.origins.given_up,
        )

    def take_back(self) -> None:
        """Removes what was stored now and no link names: an erasure was in between, perhaps it is of whom it
        erased. Raises `LakeError`."""
        self.notes.forget()
        named = all_linked_blobs(self.session)
        for sha256 in self.put - named:
            self.session.lake.remove(f"{self.blobs.folder}/{sha256}")

    def _keys(self) -> set[str]:
        found = (
            self._key(each)
            for resource_type in self.wanted.types
            for each in attachments_of(self.session, self.export_id, resource_type, with_data=False)
        )
        return {key for key in found if key is not None}

    def _key(self, declared: Declared) -> str | None:
        if not declared.url:
            return None
        try:
            return fetch_key(declared, without_query(self.policy.resolve(declared.url)) or "")
        except DownloadRefused:
            return None

    def _tables(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        for row in self._rows():
            self.states[row["state"]] = self.states.get(row["state"], 0) + 1
            self.contents |= {row["sha256"]} if "sha256" in row else set()
            rows.append(row)
            if len(rows) >= _ROWS:
                yield pa.Table.from_pylist(rows, schema=links_schema())
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows, schema=links_schema())
        if self.left_out:
            self.notes.leave_open()  # before the links say that the export is done

    def _rows(self) -> Iterator[dict[str, Any]]:
        """In the order of the tables; several are fetched at a time, and few wait in memory."""
        lanes = self.session.source.downloads.concurrency
        running: deque[Future[dict[str, Any]]] = deque()
        pool = ThreadPoolExecutor(lanes, thread_name_prefix="attachment")
        try:
            for resource_type in self.wanted.types:
                for declared in attachments_of(self.session, self.export_id, resource_type):
                    if declared.data:  # no network: at once, and its bytes are let go of
                        while running:
                            yield running.popleft().result()
                        yield self._row(declared)
                        continue
                    running.append(pool.submit(self._row, declared))
                    if len(running) > 4 * lanes:
                        yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    @contained
    def _row(self, declared: Declared) -> dict[str, Any]:
        row: dict[str, Any] = {
            "resource_type": declared.resource_type,
            "resource_id": declared.resource_id,
            "version_id": declared.version,
            "path": declared.path,
            "content_type": declared.content_type,
            "inline": bool(declared.data),
            "declared_size": declared.size,
            "declared_hash": declared.hash,
            "state": "stored",
        }
        try:
            take = self._inline if declared.data else self._behind_url
            content = take(declared, row)
        except NotTaken as reason:
            return {**row, "state": reason.state, "reason": reason.reason}
        stored = {
            "sha256": content.sha256,
            "bytes": content.bytes,
            "stored_content_type": content.content_type,
        }
        return {**row, **stored}

    def _inline(self, declared: Declared, _row: dict[str, Any]) -> Content:
        self._require_wanted(declared)
        if not is_wanted(declared.content_type, self.wanted.content_types):
            raise NotTaken("type not wanted", "it is of no type")
        content = decoded(declared.data or "", self.wanted.bytes_limit)
        sha1, sha256 = hashlib.sha1(content, usedforsecurity=False).digest(), hashlib.sha256(content).digest()
        require_as_declared(declared, len(content), sha1, sha256, declared.content_type)
        found = Content(sha256.hex(), len(content), media_type(declared.content_type))
        if not self.blobs.has(found.sha256, found.bytes):
            with self._file() as local:
                local.write_bytes(content)
                self._put(found, local)
        return found

    def _behind_url(self, declared: Declared, row: dict[str, Any]) -> Content:
        try:
            url = self.policy.resolve(declared.url or "")
            row["url"], row["url_sha256"] = without_query(url), _digest(url)
            row["fetch_key"] = key = fetch_key(declared, row["url"] or "")
            self._require_wanted(declared)
            self.policy.check(url)
        except DownloadRefused as error:
            raise NotTaken("refused", error.cause) from None
        known = self.known.get(key) if key else None
        if known is not None and self.blobs.has(known.sha256, known.bytes):
            self._require_fitting(declared, known.bytes, known.content_type)
            return known
        with self._file() as local:
            arrived = self._fetched(url, declared, local)
            require_as_declared(declared, arrived.size, arrived.sha1, arrived.sha256, arrived.content_type)
            self._require_fitting(declared, arrived.size, arrived.content_type)
            found = Content(arrived.sha256.hex(), arrived.size, media_type(arrived.content_type))
            self._put(found, local)
        with self._lock:
            self.fetched += 1
            self.fetched_bytes += found.bytes
        if key:
            self.notes.note(key, found)
        return found

    def _put(self, content: Content, local: Path) -> None:
        with self._lock:
            self.put.add(content.sha256)
        self.blobs.put(content.sha256, content.bytes, local)

    def _fetched(self, url: str, declared: Declared, into: Path) -> Arrived:
        """Raises NotTaken, `failed` where its origin has been given up; AuthError."""
        where = origin(url, error=DownloadRefused)
        if self.origins.is_given_up(where):
            self.left_out = True
            raise NotTaken("failed", f"{where} does not answer and was not asked")
        try:
            arrived = self.fetcher.fetch(url, declared.content_type, into)
        except AskedToWait as wait:
            self.origins.waits(where, wait)
            self.left_out = True
            raise NotTaken("failed", wait.cause) from None
        except NotTaken as reason:
            if reason.state == "failed":
                self.origins.failed(where, reason)
            else:
                self.origins.well(where)
            raise
        self.origins.well(where)
        return arrived

    def _require_wanted(self, declared: Declared) -> None:
        """What the resource itself says is enough: nothing is asked for then."""
        if declared.content_type and not is_wanted(declared.content_type, self.wanted.content_types):
            raise NotTaken("type not wanted", f"it is {media_type(declared.content_type) or 'no media type'}")
        if declared.size is not None and declared.size > self.wanted.bytes_limit:
            raise NotTaken("too large", f"{declared.size} bytes, and {self.wanted.bytes_limit} are allowed")

    def _require_fitting(self, declared: Declared, size: int, content_type: str | None) -> None:
        """What has come, now or earlier, under the limits as they are now."""
        if size > self.wanted.bytes_limit:
            raise NotTaken("too large", f"{size} bytes, and {self.wanted.bytes_limit} are allowed")
        if declared.content_type is None and not is_wanted(content_type, self.wanted.content_types):
            raise NotTaken("type not wanted", f"it is {media_type(content_type) or 'of no type'}")

    @contextmanager
    def _file(self) -> Iterator[Path]:
        local = self.spool / uuid.uuid4().hex
        try:
            yield local
        finally:
            discard(local)


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
