"""One file on its way from the server to the disk, over as many requests as it takes.

A transfer that breaks off goes on at the byte where it stopped when nothing can be doubled, lost or mixed:
the first answer had a strong ETag, its whole length and no content encoding, the server takes ranges, and the
next answer is that same version from exactly that byte on (RFC 9110, 13.1.1 and 14). In every other case it
begins anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import httpx

from pipeline.auth.origins import origin
from pipeline.bulkdata.byterate import ByteRate, in_time
from pipeline.bulkdata.content import Content, CutShort, Version
from pipeline.bulkdata.decoding import BLOCK
from pipeline.bulkdata.downloads import Downloaded
from pipeline.bulkdata.exchange import Exchange, translated
from pipeline.bulkdata.limits import Limits
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.bulkdata.policy import Route
from pipeline.bulkdata.promises import Digest, digests_in, promised_by
from pipeline.bulkdata.storage import StorageAccess
from pipeline.errors import (
    AuthError,
    DownloadRefused,
    ExportError,
    LakeError,
    Unreachable,
    VerificationFailed,
)
from pipeline.lake.spool import discard
from pipeline.retry_after import retry_after

_NDJSON = "application/fhir+ndjson"
_PLAIN = ("", "identity")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_ERROR_CODE = re.compile(r"[A-Za-z]{1,64}")
_BUSY = frozenset({408, 429, 503, 504})
_LOST = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


def final(error: Unreachable | CutShort) -> Unreachable | VerificationFailed:
    """What is raised when it is not tried again."""
    return VerificationFailed(error.cause, error.advice) if isinstance(error, CutShort) else error


class Transfer:
    """One file, through a `.part` file that the context manager removes: `into` is never half a file.

    What arrived of a file that is no NDJSON, or damaged, goes to `rejected` instead, if that is given.

    Call `run` until it returns; each call sends one request, or two when what had arrived became useless.
    """

    def __init__(
        self,
        exchange: Exchange,
        file: ManifestFile,
        into: Path,
        route: Route,
        *,
        compressed: bool,
        resume: bool,
        limits: Limits,
        rate: Callable[[], ByteRate] = lambda: ByteRate(0),
        rejected: Path | None = None,
    ) -> None:
        self._exchange = exchange
        self._file = file
        self._into = into
        self._part = into.with_name(f"{into.name}.part")
        self._route = route
        self._compressed = compressed
        self._resume = resume
        self._limits = limits
        self._rate = rate
        self._rejected = rejected
        self._promised = promised_by(file)
        self._content = Content(limits)
        self._requests = 0
        self.overloaded = False
        """Whether the last `run` failed as it does at a server that has too much to do."""
        self.got_on = False
        """Whether the last `run` failed, but has brought bytes that the next one need not ask for again."""

    def __enter__(self) -> Transfer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rejected is not None and isinstance(error, VerificationFailed) and self._part.exists():
            self._part.replace(self._rejected)
        discard(self._part)

    def run(self, *, last_try: bool) -> Downloaded:
        """Asks for what is missing. Raises Unreachable and CutShort where asking again may help; else as
        `BulkClient.download`.
        """
        before = self._content.wire_bytes
        self.overloaded = False
        try:
            return self._whole(last_try)
        except ExportError as error:
            if self._content.version is None or not isinstance(error, Unreachable):
                self._begin_anew()
            self.got_on = self._content.wire_bytes - before >= BLOCK
            raise

    def _whole(self, last_try: bool) -> Downloaded:
        try:
            with translated(self._file.url), self._noticing_timeouts():
                response = self._ask(last_try)
            self._part.replace(self._into)
        except OSError as error:
            raise LakeError(
                f"a downloaded file cannot be written ({error.strerror})", "Check the disk."
            ) from None
        except VerificationFailed as error:
            raise type(error)(f"{self._file.label}: {error.cause}", error.advice) from None
        return self._result(response)

    @contextmanager
    def _noticing_timeouts(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            self.overloaded = True
            raise

    def _begin_anew(self, digests: Sequence[Digest] = ()) -> None:
        self._content = Content(self._limits, digests, sha256=self._promised.sha256 is not None)

    def _ask(self, last_try: bool) -> httpx.Response:
        version = self._content.version
        if version is not None:
            with self._open(version) as response:
                if self._goes_on(response, version):
                    self._receive(response, last_try)
                    return response
                if response.status_code == 200:
                    return self._receive_from_start(response, last_try)
                if response.status_code not in (206, 412, 416):
                    self._judge(response)
            self._begin_anew()
        with self._open(None) as response:
            return self._receive_from_start(response, last_try)

    @contextmanager
    def _open(self, version: Version | None) -> Iterator[httpx.Response]:
        headers = {"Accept": _NDJSON, "Accept-Encoding": "gzip" if self._compressed else "identity"}
        if version is not None:
            headers["Accept-Encoding"] = "identity"
            headers["Range"] = f"bytes={self._content.wire_bytes}-"
            headers["If-Match"] = version.etag
        url, own = self._file.url, dict[str, str]()
        if self._route.storage is not None:
            url, more = self._route.storage.prepare(url)
            own = dict(more)
        with ExitStack() as stack:
            try:
                response = stack.enter_context(self._stream(url, {**headers, **own}))
            except _LOST:
                # A server closes idle connections, also just when one is used again: nothing was answered.
                response = stack.enter_context(self._stream(url, {**headers, **own}))
            yield response

    def _stream(self, url: str, headers: dict[str, str]) -> AbstractContextManager[httpx.Response]:
        self._requests += 1
        return self._exchange.stream(
            "GET",
            url,
            headers,
            bearer=self._route.bearer,
            elsewhere=True,
            redirects=self._route.storage is None,
            refusal=DownloadRefused,
        )

    def _goes_on(self, response: httpx.Response, version: Version) -> bool:
        """Whether the answer is the same version from the next byte on; its end may come early."""
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
        if response.status_code != 206 or found is None:
            return False
        first, last, total = map(int, found.groups())
        return (
            first == self._content.wire_bytes
            and first <= last < total == version.total
            and response.headers.get("etag", version.etag) == version.etag
            and _encoding(response) in _PLAIN
        )

    def _receive_from_start(self, response: httpx.Response, last_try: bool) -> httpx.Response:
        whole = response.status_code == 200 and _encoding(response) in _PLAIN
        self._begin_anew(digests_in(response.headers) if whole else ())
        self._judge(response)
        self._limits.check_announced(response.headers.get("content-length", ""))
        self._content.version = self._version_of(response)
        self._receive(response, last_try)
        return response

    def _version_of(self, response: httpx.Response) -> Version | None:
        etag = response.headers.get("etag", "")
        length = response.headers.get("content-length", "")
        ranges = "bytes" in response.headers.get("accept-ranges", "").lower()
        if not self._resume or not (ranges or self._route.storage is not None):
            return None
        if response.status_code != 200 or _encoding(response) not in _PLAIN:
            return None
        if not _STRONG_ETAG.fullmatch(etag) or not re.fullmatch(r"\d{1,18}", length, re.ASCII):
            return None
        return Version(etag, int(length))

    def _judge(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in (200, 204):
            return
        what = f"{self._file.label} was answered with HTTP {status}"
        if status in (408, 425, 429) or status >= 500:
            self.overloaded = status in _BUSY
            raise Unreachable(what, "Trying again may help.", retry_after(response.headers))
        if self._route.storage is not None:
            raise _storage_refusal(self._route.storage, what, response)
        if status == 401 and self._route.bearer:
            raise AuthError(what, "The token is not accepted for files: check the scopes of the client.")
        if status == 401:
            raise DownloadRefused(
                what, "No token was sent: the manifest did not ask for one; see downloads.auth."
            )
        if status in (403, 404, 410):
            raise DownloadRefused(what, _expired_advice(self._file.url))
        raise DownloadRefused(what, "Look at the file's URL at the server.")

    def _receive(self, response: httpx.Response, last_try: bool) -> None:
        if _encoding(response) not in (*_PLAIN, "gzip", "x-gzip"):
            raise VerificationFailed("the file came in an encoding that was not asked for", "Report it.")
        content, rate = self._content, self._rate()
        with self._part.open("r+b" if content.wire_bytes else "wb") as out:
            out.seek(content.wire_bytes)
            for chunk in in_time(response, rate.window):
                out.write(chunk)
                content.take(chunk)
                if rate.too_slow_after(len(chunk)):
                    self.overloaded = True
                    raise Unreachable(
                        f"{self._file.label} came with less than {rate.slowest} bytes a second",
                        "Trying again may help; timeouts.slowest_bytes_per_second says what is too slow.",
                    )
        if content.version is not None and content.wire_bytes < content.version.total:
            raise Unreachable(f"{self._file.label} came in part only", "Trying again may help.")
        if content.version is not None and content.wire_bytes > content.version.total:
            raise CutShort("more arrived than the server has", "It is fetched anew at the next attempt.")
        content.close()
        content.require(self._promised)
        if content.inspector.cut and not self._is_whole(response, last_try):
            raise CutShort("the last line is incomplete", "It is fetched anew at the next attempt.")

    def _is_whole(self, response: httpx.Response, last_try: bool) -> bool:
        """Whether a file that ends in half a line is all that the server has.

        A body of the length that was announced before it is. The end of a chunked body or of gzip proves
        nothing: a proxy may have ended it for a server that died (protocol section 6). Then only the
        manifest's count tells that no line is missing, and asking again might bring the line's other half.
        """
        if "content-length" in response.headers or self._content.version is not None:
            return True
        return last_try and self._file.count == self._content.inspector.lines

    def _result(self, response: httpx.Response) -> Downloaded:
        seen = self._content.inspector
        return Downloaded(
            path=self._into,
            encoding=self._content.decoder.encoding,
            wire_bytes=self._content.wire_bytes,
            decoded_bytes=self._content.decoded_bytes,
            sha256=self._content.sha256.hexdigest(),
            lines=seen.lines,
            count_matches=self._file.count is None or self._file.count == seen.lines,
            types_seen=dict(seen.types_seen),
            blank_lines=seen.blank,
            malformed=seen.malformed,
            malformed_lines=tuple(seen.malformed_lines),
            etag=response.headers.get("etag"),
            last_modified=response.headers.get("last-modified"),
            content_type=response.headers.get("content-type"),
            requests=self._requests,
        )


def _encoding(response: httpx.Response) -> str:
    said: str = response.headers.get("content-encoding", "")
    return said.strip().lower()


def _storage_refusal(
    storage: StorageAccess, what: str, response: httpx.Response
) -> AuthError | DownloadRefused:
    """The error for a refusal by a storage account; 401 and 403 do not pass with a fresh manifest."""
    said = response.headers.get("x-ms-error-code", "")
    code = said if _ERROR_CODE.fullmatch(said) else ""
    status = response.status_code
    cause = f"{what} by the storage account {storage.account}" + (f" ({code})" if code else "")
    kind = AuthError if status in (401, 403) else DownloadRefused
    return kind(cause, storage.advice(status, code))


def _expired_advice(url: str) -> str:
    if ".blob.core." in origin(url, error=DownloadRefused):
        return "It lies in a storage account: links expire, and a bare one wants downloads.storage."
    return "Links expire: a fresh manifest is fetched at the next attempt."
