"""The Bulk Data client: what a server is asked for, and in which order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from pipeline.auth.origins import printable, require_secure
from pipeline.bulkdata.answers import (
    Accepted,
    Complete,
    ReadAnswer,
    RetryLater,
    StatusAnswer,
    Throttled,
)
from pipeline.bulkdata.byterate import WINDOW, ByteRate
from pipeline.bulkdata.content import CutShort
from pipeline.bulkdata.downloads import Downloaded
from pipeline.bulkdata.exchange import LONGEST_ANSWER, Exchange, Reply
from pipeline.bulkdata.limits import Limits
from pipeline.bulkdata.locations import is_elsewhere, resolve
from pipeline.bulkdata.manifest import ManifestFile, next_page
from pipeline.bulkdata.outcome import describe, describe_kind, read_json, read_outcome
from pipeline.bulkdata.pages import Pages
from pipeline.bulkdata.parameters import KickoffParameters, encode_query
from pipeline.bulkdata.policy import DownloadPolicy
from pipeline.bulkdata.profiles import Profile
from pipeline.bulkdata.throttle import LONGEST_PAUSE, Throttle
from pipeline.bulkdata.transfer import Transfer, final
from pipeline.bulkdata.verdicts import (
    Page,
    delete_verdict,
    kickoff_refusal,
    page_of,
    refused_sign_in,
    status_verdict,
    unexpected,
)
from pipeline.errors import (
    ConfigError,
    DownloadRefused,
    KickoffRejected,
    ServerRefused,
    Unreachable,
    VerificationFailed,
)
from pipeline.log_redaction import keep_logs_clean
from pipeline.retry_after import pace

_FHIR_JSON = "application/fhir+json"
_UNBOUNDED = 1 << 30


class BulkClient:
    """Kick-off, status, download and delete at one FHIR server.

    `http` brings timeouts, TLS settings and, as its `auth`, the token; it is shared, may be used from several
    threads, and stays open. `fhir_url` is the FHIR base, with or without a final slash. Raises ConfigError
    for one that is not https (http on loopback) or carries a query.

    `throttle` bounds and paces the downloads; `answer_seconds` bounds an answer that is no file; a file that
    comes with less than `slowest` bytes a second, averaged over `slow_window` seconds, is asked for again.
    """

    def __init__(
        self,
        fhir_url: str,
        http: httpx.Client,
        profile: Profile,
        download_policy: DownloadPolicy | None = None,
        *,
        download_tries: int = 3,
        limits: Limits | None = None,
        throttle: Throttle | None = None,
        answer_seconds: float = LONGEST_ANSWER,
        slowest: int = 0,
        slow_window: float = WINDOW,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        require_secure(fhir_url)
        if "?" in fhir_url or "#" in fhir_url:
            raise ConfigError("fhir_url carries a query or a fragment", "Give the FHIR base alone.")
        self.fhir_url = fhir_url.rstrip("/")
        self.profile = profile
        self._policy = download_policy or DownloadPolicy()
        self._exchange = Exchange(http, answer_seconds)
        self._throttle = throttle or Throttle(_UNBOUNDED, longest_hold=0)
        self._rate = partial(ByteRate, slowest=slowest, window=slow_window)
        self._download_tries = download_tries
        self._limits = limits or Limits()
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
        rejected: Path | None = None,
    ) -> Downloaded:
        """Stream one file to `into`, exactly as on the wire, and look at every line on its way.

        `into` exists afterwards only if the file is whole; it is not synced. A broken transfer goes on where
        it stopped, where that is safe, or is begun anew, a few times (see `transfer`). Lines of another type,
        bad lines and a wrong count are reported, for `downloads.verify` to judge; half a last line is a bad
        line only where nothing behind it can be missing. What arrived of a file that fails verification here
        goes to `rejected`, if given.
        Raises DownloadRefused (403, 404, or a URL that must not be asked), AuthError (401 with a token; 401
        and 403 of a storage account), VerificationFailed (no NDJSON, damaged, cut short), Unreachable,
        LakeError (the disk).
        """
        route = self._policy.route(file.url, self.fhir_url, requires_access_token)
        with Transfer(
            self._exchange,
            file,
            into,
            route,
            compressed=compressed,
            resume=self.profile.range_resume,
            limits=self._limits,
            rate=self._rate,
            rejected=rejected,
        ) as transfer:
            failures = 0
            while True:
                try:
                    return self._in_turn(transfer, last_try=failures + 1 >= self._download_tries)
                except (Unreachable, CutShort) as error:
                    failures = 1 if transfer.got_on else failures + 1
                    wait = error.retry_after if isinstance(error, Unreachable) else None
                    if failures >= self._download_tries or (wait or 0) > LONGEST_PAUSE:
                        raise final(error) from None
                    pause = pace(failures - 1, wait, first=1.0, longest=LONGEST_PAUSE)
                self._sleep(pause)

    def _in_turn(self, transfer: Transfer, *, last_try: bool) -> Downloaded:
        with self._throttle.turn() as turn:
            try:
                downloaded = transfer.run(last_try=last_try)
            except Unreachable as error:
                turn.overloaded, turn.pause = transfer.overloaded, error.retry_after
                raise
            turn.well = True
            return downloaded

    def forbidden(self, file: ManifestFile, requires_access_token: bool | None) -> str | None:
        """Why this file must not be asked for at all, such as a token demanded by a foreign host; None when
        it may be.

        For `error` files where the profile's knob `error_files` is `optional` (azure-and-aidbox A).
        """
        try:
            self._policy.route(file.url, self.fhir_url, requires_access_token)
        except DownloadRefused as error:
            return error.cause
        return None

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
        pages, seen = Pages(self._limits), {url}
        pages.add(first.content, url, first.size)
        follow = next_page(first.content, url)
        while follow is not None:
            if follow in seen:
                raise pages.endless()
            seen.add(follow)
            reply = self._page(follow, url, pages.requires_access_token)
            if reply.status in (401, 403):
                raise refused_sign_in(reply)
            value = page_of(reply) if reply.status == 200 else None
            if reply.status != 200 or not isinstance(value, dict):
                said = f"page {len(pages) + 1} of the manifest: HTTP {reply.status}, {_short(reply)}"
                return RetryLater(reply.retry_after(), said)
            url = reply.url
            pages.add(value, url, len(reply.body))
            follow = next_page(value, url)
        return Complete(pages.manifest(), first.expires)

    def _page(self, location: str, asked_url: str, requires_access_token: bool | None) -> Reply:
        headers = {"Accept": "application/json"}
        if requires_access_token is False and is_elsewhere(self.fhir_url, location):
            return self._exchange.fetch("GET", location, headers, bearer=False)
        return self._exchange.fetch("GET", resolve(self.fhir_url, asked_url, location), headers, bearer=True)


def _short(reply: Reply) -> str:
    return describe_kind(reply.body) if reply.status >= 400 else "no JSON object"
