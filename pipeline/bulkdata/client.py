"""The Bulk Data client: the only module here that sends requests."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from pipeline.auth.origins import origin, printable, require_secure
from pipeline.bulkdata.answers import (
    Accepted,
    Complete,
    ReadAnswer,
    RetryLater,
    StatusAnswer,
    Throttled,
)
from pipeline.bulkdata.decoding import BLOCK, Decoder
from pipeline.bulkdata.downloads import Downloaded
from pipeline.bulkdata.exchange import Exchange, Reply, translated
from pipeline.bulkdata.http_logs import keep_logs_clean
from pipeline.bulkdata.inspection import LONGEST_LINE, LineInspector
from pipeline.bulkdata.locations import is_elsewhere, resolve
from pipeline.bulkdata.manifest import ManifestFile, assemble, next_page
from pipeline.bulkdata.outcome import describe, read_json, read_outcome
from pipeline.bulkdata.parameters import KickoffParameters, encode_query
from pipeline.bulkdata.policy import DownloadPolicy
from pipeline.bulkdata.profiles import Profile
from pipeline.bulkdata.verdicts import (
    Page,
    delete_verdict,
    kickoff_refusal,
    refused_sign_in,
    status_verdict,
    unexpected,
)
from pipeline.errors import (
    AuthError,
    ConfigError,
    DownloadRefused,
    KickoffRejected,
    LakeError,
    ServerRefused,
    Unreachable,
    VerificationFailed,
)
from pipeline.retry_after import pace, retry_after

MOST_PAGES = 10_000
LONGEST_PAUSE = 30.0
"""Seconds; a file whose server asks for a longer wait is left to the next attempt."""

_FHIR_JSON = "application/fhir+json"
_NDJSON = "application/fhir+ndjson"


class BulkClient:
    """Kick-off, status, download and delete at one FHIR server.

    `http` brings timeouts, TLS settings and, as its `auth`, the token; it is shared, may be used from several
    threads, and stays open. `fhir_url` is the FHIR base, with or without a final slash. Raises ConfigError
    for one that is not https (http on loopback) or carries a query.
    """

    def __init__(
        self,
        fhir_url: str,
        http: httpx.Client,
        profile: Profile,
        download_policy: DownloadPolicy | None = None,
        *,
        download_tries: int = 3,
        longest_line: int = LONGEST_LINE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        require_secure(fhir_url)
        if "?" in fhir_url or "#" in fhir_url:
            raise ConfigError("fhir_url carries a query or a fragment", "Give the FHIR base alone.")
        self.fhir_url = fhir_url.rstrip("/")
        self.profile = profile
        self._policy = download_policy or DownloadPolicy()
        self._exchange = Exchange(http)
        self._download_tries = download_tries
        self._longest_line = longest_line
        self._sleep = sleep
        keep_logs_clean()

    def kick_off(self, parameters: KickoffParameters) -> Accepted | Throttled:
        """Ask for an export. One request, never repeated here: each may start a job.

        Raises ConfigError (the profile's server would refuse it; nothing was sent), KickoffRejected (a final
        no), AuthError (401, 403), Unreachable (network, or an error that may pass; a job may have been
        started).
        """
        self.profile.check(parameters)
        url = f"{self.fhir_url}/{parameters.path}"
        headers = {"Accept": _FHIR_JSON, "Prefer": parameters.prefer()}
        until = self.profile.until_parameter
        if parameters.must_post:
            body = json.dumps(parameters.as_parameters(until)).encode()
            headers["Content-Type"] = _FHIR_JSON
            reply = self._exchange.fetch(
                "POST", url, headers, bearer=True, content=body, refusal=KickoffRejected
            )
        else:
            query = encode_query(parameters.as_query(until))
            whole = f"{url}?{query}" if query else url
            reply = self._exchange.fetch("GET", whole, headers, bearer=True, refusal=KickoffRejected)
        return self._accepted(reply) if 200 <= reply.status < 300 else kickoff_refusal(reply, self.profile)

    def status(self, status_url: str) -> StatusAnswer:
        """Ask how far the job is; a finished one gives its whole manifest, all pages.

        Raises AuthError, Unreachable (network only), ServerRefused (a status URL that is not the server's),
        and VerificationFailed (an answer 200 that is no manifest, or pages without end).
        """
        url = resolve(self.fhir_url, self.fhir_url, status_url)
        reply = self._exchange.fetch("GET", url, {"Accept": "application/json"}, bearer=True)
        verdict = status_verdict(reply, self.profile)
        return self._with_all_pages(verdict, reply.url) if isinstance(verdict, Page) else verdict

    def delete(self, status_url: str) -> bool:
        """Cancel the job, or release its files (protocol fact 35). True when it is gone, also if it was
        before.

        Raises AuthError, ServerRefused, Unreachable.
        """
        url = resolve(self.fhir_url, self.fhir_url, status_url)
        return delete_verdict(self._exchange.fetch("DELETE", url, {"Accept": _FHIR_JSON}, bearer=True))

    def download(
        self,
        file: ManifestFile,
        requires_access_token: bool | None,
        into: Path,
        *,
        compressed: bool = True,
    ) -> Downloaded:
        """Stream one file to `into`, exactly as on the wire, and look at every line on its way.

        `into` exists afterwards only if the file is whole; it is not synced. A broken transfer is begun anew
        a few times. Lines of another type, bad lines and a wrong count are reported, for `downloads.verify`
        to judge; half a last line is a bad line only where nothing behind it can be missing.
        Raises DownloadRefused (403, 404, or a URL that must not be asked), AuthError (401 with a token),
        VerificationFailed (no NDJSON, damaged, cut short), Unreachable, LakeError (the disk).
        """
        bearer = self._policy.bearer_goes(file.url, self.fhir_url, requires_access_token)
        headers = {"Accept": _NDJSON, "Accept-Encoding": "gzip" if compressed else "identity"}
        for number in range(1, self._download_tries + 1):
            try:
                transfer = _Transfer(
                    self._exchange, file, into, self._longest_line, last_try=number == self._download_tries
                )
                return transfer.run(headers, bearer, number)
            except (Unreachable, _CutShort) as error:
                wait = error.retry_after if isinstance(error, Unreachable) else None
                if number == self._download_tries or (wait or 0) > LONGEST_PAUSE:
                    raise _final(error) from None
                self._sleep(pace(number - 1, wait, first=1.0, longest=LONGEST_PAUSE))
        raise AssertionError("unreachable: the last try returns or raises")

    def capability(self) -> dict[str, Any]:
        """The CapabilityStatement, asked for without a token. Raises Unreachable, ServerRefused,
        VerificationFailed.
        """
        reply = self._exchange.fetch("GET", f"{self.fhir_url}/metadata", {"Accept": _FHIR_JSON}, bearer=False)
        if reply.status != 200:
            raise unexpected(reply, "the CapabilityStatement")
        value = read_json(reply.body)
        if not isinstance(value, dict) or value.get("resourceType") != "CapabilityStatement":
            raise VerificationFailed(
                f"{printable(reply.url)} is no CapabilityStatement but {describe(reply.body)}",
                "fhir_url must be the FHIR base: the address below which /metadata lies.",
            )
        return value

    def read(self, path: str, params: Mapping[str, str] | None = None) -> ReadAnswer:
        """A plain read or search below the FHIR base, with the token. Raises only for no answer:
        Unreachable.
        """
        query = encode_query(list((params or {}).items()))
        url = f"{self.fhir_url}/{path.lstrip('/')}" + (f"?{query}" if query else "")
        reply = self._exchange.fetch("GET", url, {"Accept": _FHIR_JSON}, bearer=True)
        value = read_json(reply.body)
        good = 200 <= reply.status < 300
        return ReadAnswer(
            reply.status, value if isinstance(value, dict) else None, "" if good else describe(reply.body)
        )

    def _accepted(self, reply: Reply) -> Accepted:
        location = reply.headers.get("content-location") or reply.headers.get("location")
        if not location:
            raise KickoffRejected(
                f"the kick-off was answered with HTTP {reply.status}, but without Content-Location",
                "Nothing can be polled, though a job may run. Check fhir_url and the server's $export.",
            )
        try:
            status_url = resolve(self.fhir_url, reply.url, location)
        except ServerRefused as error:
            raise KickoffRejected(f"the export was accepted, but {error.cause}", error.advice) from None
        outcome = read_outcome(reply.body)
        return Accepted(status_url, outcome.text if outcome is not None else None)

    def _with_all_pages(self, first: Page, url: str) -> Complete | RetryLater:
        pages, urls = [first.content], [url]
        seen = {url}
        manifest = assemble(pages, urls)
        follow = next_page(first.content, url)
        while follow is not None:
            if follow in seen or len(pages) >= MOST_PAGES:
                raise VerificationFailed(
                    f"the manifest's pages have no end (after page {len(pages)})",
                    "Report it to the server's operator.",
                )
            seen.add(follow)
            reply = self._page(follow, urls[-1], manifest.requires_access_token)
            if reply.status in (401, 403):
                raise refused_sign_in(reply)
            value = read_json(reply.body)
            if reply.status != 200 or not isinstance(value, dict):
                said = f"page {len(pages) + 1} of the manifest: HTTP {reply.status}, {_short(reply)}"
                return RetryLater(reply.retry_after(), said)
            pages.append(value)
            urls.append(reply.url)
            follow = next_page(value, reply.url)
        return Complete(assemble(pages, urls), first.expires)

    def _page(self, location: str, asked_url: str, requires_access_token: bool | None) -> Reply:
        headers = {"Accept": "application/json"}
        if requires_access_token is False and is_elsewhere(self.fhir_url, location):
            return self._exchange.fetch("GET", location, headers, bearer=False)
        return self._exchange.fetch("GET", resolve(self.fhir_url, asked_url, location), headers, bearer=True)


class _CutShort(VerificationFailed):
    """Internal: what arrived ends too early or is damaged; asking again may help."""


def _final(error: Unreachable | _CutShort) -> Unreachable | VerificationFailed:
    return VerificationFailed(error.cause, error.advice) if isinstance(error, _CutShort) else error


def _short(reply: Reply) -> str:
    return describe(reply.body) if reply.status >= 400 else "no JSON object"


class _Transfer:
    """One try at one file: through a `.part` file, so that `into` is never half a file."""

    def __init__(
        self, exchange: Exchange, file: ManifestFile, into: Path, longest_line: int, *, last_try: bool
    ) -> None:
        self._exchange = exchange
        self._last_try = last_try
        self._file = file
        self._into = into
        self._part = into.with_name(f"{into.name}.part")
        self._decoder = Decoder()
        self._inspector = LineInspector(longest_line)
        self._sha256 = hashlib.sha256()
        self._decoded_bytes = 0
        self._wire_bytes = 0

    def run(self, headers: Mapping[str, str], bearer: bool, number: int) -> Downloaded:
        url = self._file.url
        try:
            with (
                translated(url),
                self._exchange.stream(
                    "GET", url, headers, bearer=bearer, elsewhere=True, refusal=DownloadRefused
                ) as response,
            ):
                self._judge(response, bearer)
                self._receive(response)
            self._part.replace(self._into)
        except OSError as error:
            raise LakeError(
                f"a downloaded file cannot be written ({error.strerror})", "Check the disk."
            ) from None
        except VerificationFailed as error:
            raise type(error)(f"{self._file.label}: {error.cause}", error.advice) from None
        finally:
            self._part.unlink(missing_ok=True)
        return self._result(response, number)

    def _judge(self, response: httpx.Response, bearer: bool) -> None:
        status = response.status_code
        if status in (200, 204):
            return
        what = f"{self._file.label} was answered with HTTP {status}"
        if status == 401 and bearer:
            raise AuthError(what, "The token is not accepted for files: check the scopes of the client.")
        if status == 401:
            raise DownloadRefused(
                what, "No token was sent: the manifest did not ask for one; see downloads.auth."
            )
        if status in (403, 404, 410):
            raise DownloadRefused(what, _expired_advice(self._file.url))
        if status in (408, 425, 429) or status >= 500:
            raise Unreachable(what, "Trying again may help.", retry_after(response.headers))
        raise DownloadRefused(what, "Look at the file's URL at the server.")

    def _receive(self, response: httpx.Response) -> None:
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise VerificationFailed("the file came in an encoding that was not asked for", "Report it.")
        with self._part.open("wb") as out:
            for chunk in response.iter_raw(BLOCK):
                self._wire_bytes += len(chunk)
                out.write(chunk)
                self._look(self._blocks(chunk))
        self._look(self._blocks(None))
        self._inspector.close()
        if self._inspector.cut and not self._is_whole(response):
            raise _CutShort("the last line is incomplete", "It is fetched anew at the next attempt.")

    def _is_whole(self, response: httpx.Response) -> bool:
        """Whether a file that ends in half a line is all that the server has.

        A body of the length that was announced before it is. The end of a chunked body or of gzip proves
        nothing: a proxy may have ended it for a server that died (protocol section 6). Then only the
        manifest's count tells that no line is missing, and asking again might bring the line's other half.
        """
        if "content-length" in response.headers:
            return True
        return self._last_try and self._file.count == self._inspector.lines

    def _blocks(self, chunk: bytes | None) -> Iterator[bytes]:
        try:
            yield from self._decoder.close() if chunk is None else self._decoder.feed(chunk)
        except VerificationFailed as error:
            raise _CutShort(error.cause, error.advice) from None

    def _look(self, blocks: Iterator[bytes]) -> None:
        for block in blocks:
            self._sha256.update(block)
            self._decoded_bytes += len(block)
            self._inspector.feed(block)

    def _result(self, response: httpx.Response, number: int) -> Downloaded:
        seen = self._inspector
        return Downloaded(
            path=self._into,
            encoding=self._decoder.encoding,
            wire_bytes=self._wire_bytes,
            decoded_bytes=self._decoded_bytes,
            sha256=self._sha256.hexdigest(),
            lines=seen.lines,
            count_matches=self._file.count is None or self._file.count == seen.lines,
            types_seen=dict(seen.types_seen),
            blank_lines=seen.blank,
            malformed=seen.malformed,
            malformed_lines=tuple(seen.malformed_lines),
            etag=response.headers.get("etag"),
            last_modified=response.headers.get("last-modified"),
            content_type=response.headers.get("content-type"),
            requests=number,
        )


def _expired_advice(url: str) -> str:
    if ".blob.core." in origin(url, error=DownloadRefused):
        return "It lies in a storage account: links expire, and a bare one wants downloads.auth: storage."
    return "Links expire: a fresh manifest is fetched at the next attempt."
