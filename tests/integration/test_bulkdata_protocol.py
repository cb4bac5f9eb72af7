"""Kick-off, status, delete and reads against real loopback servers that play the odd answers of real ones.

`Server` is scripted per test: a handler for each method and path; it keeps all requests as they came.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from pipeline.bulkdata.answers import Accepted, Complete, Failed, Gone, InProgress, RetryLater, Throttled
from pipeline.bulkdata.client import BulkClient
from pipeline.bulkdata.parameters import KickoffParameters
from pipeline.bulkdata.policy import DownloadPolicy
from pipeline.bulkdata.profiles import PROFILES
from pipeline.errors import (
    AuthError,
    ConfigError,
    ExportError,
    KickoffRejected,
    ServerRefused,
    Unreachable,
    VerificationFailed,
)

TOKEN = "t0ken-that-nobody-else-may-see"
Handler = Callable[[Request], Response]


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = field(repr=False, default=b"")


class Server:
    """A loopback HTTP server; what it has no handler for is 404."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self.handlers: dict[tuple[str, str], Handler] = {}
        self.seen: list[Seen] = []
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.origin = f"{scheme}://127.0.0.1:{self._socket.getsockname()[1]}"
        self.fhir = f"{self.origin}/fhir"
        extra: dict[str, Any] = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls else {}
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=1,
            **extra,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> Server:
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def on(self, method: str, path: str, *answers: Response | Handler) -> None:
        """Answer with these in turn; the last one for ever."""
        left = list(answers)

        def handler(request: Request) -> Response:
            answer = left.pop(0) if len(left) > 1 else left[0]
            return answer if isinstance(answer, Response) else answer(request)

        self.handlers[method, path] = handler

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        self.seen.append(
            Seen(
                request.method,
                scope["raw_path"].decode(),
                scope["query_string"].decode(),
                dict(request.headers),
                await request.body(),
            )
        )
        handler = self.handlers.get((request.method, request.url.path))
        response = handler(request) if handler else JSONResponse({"error": "no handler"}, 404)
        await response(scope, receive, send)


class Token(httpx.Auth):
    """What `pipeline.auth` does: a bearer, renewed once after 401."""

    def __init__(self) -> None:
        self.renewed = 0

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["Authorization"] = f"Bearer {TOKEN}"
        response = yield request
        if response.status_code == 401:
            self.renewed += 1
            request.headers["Authorization"] = f"Bearer {TOKEN}-{self.renewed}"
            yield request


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with Server() as one, Server() as two:
        yield one, two


@pytest.fixture
def server(servers: tuple[Server, Server]) -> Server:
    one = servers[0]
    one.handlers.clear()
    one.seen.clear()
    return one


@pytest.fixture
def stranger(servers: tuple[Server, Server]) -> Server:
    """A server at another origin."""
    two = servers[1]
    two.handlers.clear()
    two.seen.clear()
    return two


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(auth=Token(), timeout=5, trust_env=False) as client:
        yield client


def client_of(
    server: Server,
    http: httpx.Client,
    profile: str = "smart",
    policy: DownloadPolicy | None = None,
    **more: Any,
) -> BulkClient:
    return BulkClient(server.fhir, http, PROFILES[profile], policy, sleep=lambda _: None, **more)


@pytest.fixture
def client(server: Server, http: httpx.Client) -> BulkClient:
    return client_of(server, http)


def outcome(status: int, code: str, text: str = "", **headers: str) -> Response:
    issue = {"severity": "error", "code": code, "diagnostics": text}
    body = {"resourceType": "OperationOutcome", "issue": [issue]}
    return JSONResponse(body, status, headers, media_type="application/fhir+json")


def accepted(location: str, status: int = 202, header: str = "Content-Location") -> Response:
    return Response(status_code=status, headers={header: location})


def manifest(**members: Any) -> dict[str, Any]:
    return {"transactionTime": "2026-01-31T02:00:00Z", "requiresAccessToken": True, "output": [], **members}


GROUP = KickoffParameters("group", "g1", types=("Patient", "Device"), since="2026-01-31T00:00:00+01:00")
KICKOFF = "/fhir/Group/g1/$export"


# --- kick-off -------------------------------------------------------------------------------------


def test_kick_off_sends_what_the_specification_wants(server: Server, client: BulkClient) -> None:
    """Protocol facts 2, 10, 13; azure-and-aidbox D: exactly one Accept value, `+` escaped."""
    server.on("GET", KICKOFF, accepted(f"{server.fhir}/status/1"))
    assert client.kick_off(GROUP) == Accepted(f"{server.fhir}/status/1")
    (seen,) = server.seen
    assert seen.path == KICKOFF
    assert seen.headers["accept"] == "application/fhir+json"
    assert seen.headers["prefer"] == "respond-async"
    assert seen.headers["authorization"] == f"Bearer {TOKEN}"
    assert seen.query == (
        "_outputFormat=application/fhir%2Bndjson&_since=2026-01-31T00:00:00%2B01:00&_type=Patient,Device"
    )


def test_patients_are_posted_as_parameters(server: Server, client: BulkClient) -> None:
    """Protocol facts 13 and 15."""
    server.on("POST", "/fhir/Patient/$export", accepted("/fhir/status/1"))
    answer = client.kick_off(KickoffParameters("patient", patients=("7",), lenient=True))
    assert answer == Accepted(f"{server.fhir}/status/1")
    (seen,) = server.seen
    assert seen.headers["content-type"] == "application/fhir+json"
    assert seen.headers["prefer"] == "respond-async, handling=lenient"
    assert {"name": "patient", "valueReference": {"reference": "Patient/7"}} in json.loads(seen.body)[
        "parameter"
    ]


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/fhir/$export-status/1", "/fhir/$export-status/1"),
        ("http://hapi-internal:8080/fhir/$export-poll-status?_jobId=1", "/fhir/$export-poll-status?_jobId=1"),
    ],
)
def test_odd_status_urls_lead_back_to_the_server(
    server: Server, client: BulkClient, location: str, path: str
) -> None:
    """Protocol fact 17: relative with `$` at Aidbox; internal hosts at Medplum and HAPI behind proxies."""
    server.on("GET", KICKOFF, accepted(location))
    server.on("GET", path.partition("?")[0], Response(status_code=202))
    answer = client.kick_off(GROUP)
    assert answer == Accepted(f"{server.origin}{path}")
    assert isinstance(client.status(f"{server.origin}{path}"), InProgress)
    assert server.seen[-1].query == path.partition("?")[2]


def test_a_status_url_at_another_server_is_refused_and_sees_no_token(
    server: Server, stranger: Server, client: BulkClient
) -> None:
    """Protocol fact 9."""
    server.on("GET", KICKOFF, accepted(f"{stranger.origin}/status/1"))
    with pytest.raises(KickoffRejected, match="accepted, but"):
        client.kick_off(GROUP)
    for ask in (client.status, client.delete):
        with pytest.raises(ServerRefused):
            ask(f"{stranger.origin}/status/1")
    assert stranger.seen == []


def test_an_acceptance_without_a_status_url_is_refused(server: Server, client: BulkClient) -> None:
    server.on("GET", KICKOFF, Response(status_code=202))
    with pytest.raises(KickoffRejected, match="Content-Location"):
        client.kick_off(GROUP)


def test_what_was_said_with_the_acceptance_is_kept(server: Server, client: BulkClient) -> None:
    """Protocol fact 12."""
    server.on(
        "GET", KICKOFF, outcome(202, "informational", "ignored _elements", **{"Content-Location": "/fhir/s"})
    )
    assert client.kick_off(GROUP) == Accepted(f"{server.fhir}/s", "informational: ignored _elements")


@pytest.mark.parametrize(("header", "wait"), [({"Retry-After": "600"}, 600), ({}, 300)])
def test_one_export_at_a_time_is_an_answer_not_an_error(
    server: Server, client: BulkClient, header: dict[str, str], wait: float
) -> None:
    """Protocol fact 17: 429 at Oracle, Aidbox, Epic, BCDA."""
    server.on("GET", KICKOFF, outcome(429, "throttled", "another export runs", **header))
    answer = client.kick_off(GROUP)
    assert isinstance(answer, Throttled)
    assert answer.retry_after == wait
    assert "another export runs" in answer.reason


@pytest.mark.parametrize(
    ("response", "error", "hint"),
    [
        (outcome(400, "invalid", "unknown parameter"), KickoffRejected, "unknown parameter"),
        (outcome(404, "not-found", "no such group"), KickoffRejected, "no such group"),
        (outcome(405, "not-supported"), KickoffRejected, "CapabilityStatement"),
        (outcome(501, "exception"), KickoffRejected, "CapabilityStatement"),
        (outcome(500, "not-supported", "no storage configured"), KickoffRejected, "no storage"),
        (outcome(500, "exception", "null pointer"), Unreachable, "null pointer"),
        (outcome(500, "transient"), Unreachable, "500"),
        (outcome(400, "transient"), Unreachable, "400"),
        (Response("<html>oops</html>", 500), Unreachable, "an HTML page"),
        (Response("<html>oops</html>", 404), KickoffRejected, "an HTML page"),
        (Response("", 503, {"Retry-After": "7"}), Unreachable, "503"),
        (outcome(503, "processing"), Unreachable, "503"),
        (outcome(403, "forbidden", "missing scope"), AuthError, "missing scope"),
        (Response("", 401), AuthError, "audience"),
        (RedirectResponse("https://login.example.org/"), KickoffRejected, "redirects"),
        (Response("", 302), KickoffRejected, "redirect"),
    ],
)
def test_a_kick_off_that_starts_nothing_raises_what_fits(
    server: Server, client: BulkClient, response: Response, error: type[ExportError], hint: str
) -> None:
    """azure-and-aidbox B (500 without storage), protocol facts 10, 17, 21."""
    server.on("GET", KICKOFF, response)
    with pytest.raises(error) as raised:
        client.kick_off(GROUP)
    assert type(raised.value) is error
    assert hint in str(raised.value)
    assert len(server.seen) == (2 if response.status_code == 401 else 1)
    if "retry-after" in response.headers:
        assert isinstance(raised.value, Unreachable)
        assert raised.value.retry_after == 7


def test_the_profile_refuses_before_anything_is_sent(server: Server, http: httpx.Client) -> None:
    """azure-and-aidbox A: Group level only."""
    with pytest.raises(ConfigError):
        client_of(server, http, "apim-smart").kick_off(KickoffParameters("system"))
    assert server.seen == []


def test_microsofts_name_for_the_end_of_the_window_is_sent(server: Server, http: httpx.Client) -> None:
    """Protocol fact 13."""
    server.on("GET", "/fhir/$export", accepted("/fhir/s"))
    asked = KickoffParameters("system", until="2026-01-31T00:00:00Z")
    client_of(server, http, "azure-fhir").kick_off(asked)
    assert "_till=2026-01-31T00:00:00Z" in server.seen[0].query


def test_a_redirect_within_the_server_keeps_the_token(server: Server, client: BulkClient) -> None:
    server.on("GET", KICKOFF, RedirectResponse("/fhir/v2/export?x=1"))
    server.on("GET", "/fhir/v2/export", accepted("status/1"))
    assert client.kick_off(GROUP) == Accepted(f"{server.fhir}/v2/status/1")
    assert all(each.headers["authorization"] == f"Bearer {TOKEN}" for each in server.seen)


def test_a_post_is_never_turned_into_a_get_by_a_redirect(server: Server, client: BulkClient) -> None:
    server.on("POST", "/fhir/Patient/$export", RedirectResponse("/fhir/other", 303))
    with pytest.raises(KickoffRejected):
        client.kick_off(KickoffParameters("patient", patients=("1",)))
    assert len(server.seen) == 1


def test_redirects_without_end_are_given_up(server: Server, client: BulkClient) -> None:
    server.on("GET", KICKOFF, RedirectResponse(KICKOFF))
    with pytest.raises(KickoffRejected, match="more than 5"):
        client.kick_off(GROUP)
    assert len(server.seen) == 6


# --- status ---------------------------------------------------------------------------------------


def test_a_running_job_gives_pace_and_progress(server: Server, client: BulkClient) -> None:
    """Protocol facts 2, 18, 19, 20."""
    progress = "Build in progress - 50% complete " + "and so on " * 20
    server.on("GET", "/fhir/s", Response("", 202, {"Retry-After": "120", "X-Progress": progress}))
    answer = client.status(f"{server.fhir}/s")
    assert isinstance(answer, InProgress)
    assert answer.retry_after == 120
    assert answer.progress is not None
    assert answer.progress.startswith("Build in progress - 50% complete")
    assert 95 < len(answer.progress) <= 100
    assert server.seen[0].headers["accept"] == "application/json"
    assert server.seen[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_an_http_date_is_read_by_the_servers_clock(server: Server, client: BulkClient) -> None:
    """Protocol fact 18."""
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1800)
    server.on("GET", "/fhir/s", Response("", 202, {"Retry-After": format_datetime(then, usegmt=True)}))
    answer = client.status(f"{server.fhir}/s")
    assert isinstance(answer, InProgress)
    assert answer.retry_after is not None
    assert 1790 < answer.retry_after <= 1802


def test_a_bare_202_is_progress_too(server: Server, client: BulkClient) -> None:
    """azure-and-aidbox A and D: 202 empty, no Retry-After; protocol fact 23: or with a partial manifest."""
    server.on("GET", "/fhir/s", Response(status_code=202), JSONResponse(manifest(), 202))
    assert client.status(f"{server.fhir}/s") == InProgress(None, None)
    assert client.status(f"{server.fhir}/s") == InProgress(None, None)


def test_a_finished_job_gives_the_whole_manifest_of_all_pages(server: Server, client: BulkClient) -> None:
    """Section 6: `link next` ignored; fact 30: BCDA writes Expires in Go's format."""
    expires = "2026-02-01 02:00:00.5 +0000 UTC"
    page1 = manifest(
        output=[{"type": "Patient", "url": "/f/1", "count": 1}],
        link=[{"relation": "next", "url": "http://inner:1/fhir/s?page=2"}],
        unknown={"kept": 1.5},
    )
    page2 = {
        "output": [{"type": "Patient", "url": "/f/2"}],
        "link": [{"relation": "next", "url": "s?page=3"}],
    }
    page3 = {"output": [{"type": "Device", "url": "/f/3"}], "error": [{"url": "/f/4"}]}
    server.on(
        "GET",
        "/fhir/s",
        JSONResponse(page1, headers={"Expires": expires}),
        JSONResponse(page2),
        JSONResponse(page3),
    )
    answer = client.status(f"{server.fhir}/s")
    assert isinstance(answer, Complete)
    assert answer.expires == expires
    assert [(each.label, each.url) for each in answer.manifest.files] == [
        ("output[0] (Patient)", f"{server.origin}/f/1"),
        ("output[1] (Patient)", f"{server.origin}/f/2"),
        ("output[2] (Device)", f"{server.origin}/f/3"),
        ("error[0]", f"{server.origin}/f/4"),
    ]
    assert answer.manifest.pages == (page1, page2, page3)
    assert [each.query for each in server.seen] == ["", "page=2", "page=3"]
    assert all("authorization" in each.headers for each in server.seen)


@pytest.mark.parametrize("target", ["s", "s?page=2"])
def test_pages_in_a_circle_are_refused(server: Server, client: BulkClient, target: str) -> None:
    page = manifest(link=[{"relation": "next", "url": target}])
    server.on("GET", "/fhir/s", JSONResponse(page))
    with pytest.raises(VerificationFailed, match="no end"):
        client.status(f"{server.fhir}/s")
    assert len(server.seen) <= 2


def test_pages_elsewhere_are_read_without_the_token_or_not_at_all(
    server: Server, stranger: Server, client: BulkClient
) -> None:
    """Protocol facts 9 and 28."""
    link = [{"relation": "next", "url": f"{stranger.origin}/p2?sig=x"}]
    stranger.on("GET", "/p2", JSONResponse({"output": [{"type": "Patient", "url": "/f/1"}]}))
    server.on("GET", "/fhir/s", JSONResponse(manifest(link=link, requiresAccessToken=False)))
    answer = client.status(f"{server.fhir}/s")
    assert isinstance(answer, Complete)
    assert len(answer.manifest.files) == 1
    assert "authorization" not in stranger.seen[0].headers
    server.on("GET", "/fhir/s", JSONResponse(manifest(link=link)))
    with pytest.raises(ServerRefused):
        client.status(f"{server.fhir}/s")
    assert len(stranger.seen) == 1


@pytest.mark.parametrize("second", [Response("", 503, {"Retry-After": "9"}), Response("<html>", 200)])
def test_a_page_that_fails_is_no_shorter_manifest(
    server: Server, client: BulkClient, second: Response
) -> None:
    page = manifest(link=[{"relation": "next", "url": "s?page=2"}])
    server.on("GET", "/fhir/s", JSONResponse(page), second)
    answer = client.status(f"{server.fhir}/s")
    assert isinstance(answer, RetryLater)
    assert "page 2" in answer.reason


REASON = "Export operation failed for reason: {}"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (outcome(429, "throttled", REASON.format("Too Many Requests")), Failed),
        (outcome(404, "not-found", REASON.format("Not Found")), Failed),
        (outcome(403, "forbidden", REASON.format("Forbidden")), Failed),
        (outcome(413, "too-costly", REASON.format("Payload")), Failed),
        (outcome(500, "exception", REASON.format("Internal")), Failed),
        (outcome(429, "throttled", "slow down"), RetryLater),
        (Response("", 429, {"Retry-After": "60"}), RetryLater),
        (outcome(404, "not-found", "no such job"), Gone),
        (Response("<html>Not Found</html>", 404), Gone),
        (Response("", 410), Gone),
        (outcome(500, "transient", "database busy"), RetryLater),
        (outcome(400, "transient", "database busy"), RetryLater),
        (outcome(500, "processing", "boom"), Failed),
        (outcome(400, "invalid", "boom"), Failed),
        (Response("<html>Bad Gateway</html>", 502), RetryLater),
        (Response("<html>Error</html>", 500), RetryLater),
        (outcome(503, "exception", "restarting"), RetryLater),
        (Response("", 504), RetryLater),
        (Response("<html>Sign in</html>", 200), RetryLater),
        (Response("", 200), RetryLater),
        (Response("", 204), RetryLater),
        (outcome(200, "processing", "boom"), Failed),
        (outcome(200, "transient", "later"), RetryLater),
    ],
)
def test_each_odd_status_answer_means_one_thing(
    server: Server, client: BulkClient, response: Response, answer: type
) -> None:
    """Protocol facts 21 and 24; error bodies may be HTML."""
    server.on("GET", "/fhir/s", response)
    found = client.status(f"{server.fhir}/s")
    assert type(found) is answer
    if isinstance(found, Failed | Gone):
        assert found.http_status == response.status_code
    if isinstance(found, RetryLater) and "retry-after" in response.headers:
        assert found.retry_after == float(response.headers["retry-after"])


def test_a_refused_token_is_an_error_after_one_renewal(server: Server, client: BulkClient) -> None:
    """Section 6: no refresh on 401."""
    server.on("GET", "/fhir/s", Response("", 401), Response("", 202))
    assert isinstance(client.status(f"{server.fhir}/s"), InProgress)
    assert [each.headers["authorization"] for each in server.seen] == [f"Bearer {TOKEN}", f"Bearer {TOKEN}-1"]
    server.on("GET", "/fhir/s", outcome(403, "forbidden", "not yours"))
    with pytest.raises(AuthError, match="not yours"):
        client.status(f"{server.fhir}/s")


def test_a_200_that_is_no_manifest_is_refused(server: Server, client: BulkClient) -> None:
    server.on("GET", "/fhir/s", JSONResponse({"resourceType": "Bundle"}), JSONResponse([1]))
    for _ in range(2):
        with pytest.raises(VerificationFailed, match="not a manifest"):
            client.status(f"{server.fhir}/s")


def test_an_empty_result_as_404_is_known_by_profile(server: Server, http: httpx.Client) -> None:
    """azure-and-aidbox A: v2 answers 404 when the result is wholly empty."""
    server.on("GET", "/fhir/s", Response("", 404))
    answer = client_of(server, http, "apim-smart").status(f"{server.fhir}/s")
    assert isinstance(answer, Complete)
    assert answer.manifest.files == ()
    server.on("GET", "/fhir/s", outcome(404, "not-found", "no such job"))
    assert isinstance(client_of(server, http, "apim-smart").status(f"{server.fhir}/s"), Gone)


def test_a_status_redirect_to_another_server_is_refused(
    server: Server, stranger: Server, client: BulkClient
) -> None:
    """Protocol fact 9."""
    server.on("GET", "/fhir/s", RedirectResponse(f"{stranger.origin}/s?sig=SECRET"))
    with pytest.raises(ServerRefused) as raised:
        client.status(f"{server.fhir}/s")
    assert "SECRET" not in str(raised.value)
    assert stranger.seen == []


# --- delete, reads --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [202, 200, 204, 404, 410])
def test_a_job_is_released_or_was_already(server: Server, client: BulkClient, status: int) -> None:
    """Protocol fact 35: 202; afterwards 404."""
    server.on("DELETE", "/fhir/s", Response(status_code=status))
    assert client.delete(f"{server.fhir}/s") is True
    assert server.seen[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("status", "error"), [(500, Unreachable), (429, Unreachable), (403, AuthError), (405, ServerRefused)]
)
def test_a_release_that_fails_says_so(
    server: Server, client: BulkClient, status: int, error: type[ExportError]
) -> None:
    server.on("DELETE", "/fhir/s", Response(status_code=status))
    with pytest.raises(error) as raised:
        client.delete(f"{server.fhir}/s")
    assert type(raised.value) is error


def test_the_capability_statement_is_read_without_a_token(server: Server, client: BulkClient) -> None:
    """azure-and-aidbox C: /metadata is anonymous."""
    server.on(
        "GET", "/fhir/metadata", JSONResponse({"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"})
    )
    assert client.capability()["fhirVersion"] == "4.0.1"
    assert "authorization" not in server.seen[0].headers
    server.on("GET", "/fhir/metadata", Response("<html>Welcome</html>"))
    with pytest.raises(VerificationFailed, match="an HTML page"):
        client.capability()
    server.on("GET", "/fhir/metadata", Response("", 404))
    with pytest.raises(ServerRefused, match="fhir_url"):
        client.capability()


def test_a_read_gives_whatever_the_server_says(server: Server, client: BulkClient) -> None:
    """azure-and-aidbox C: GET Patient?_count=1&_elements=id tells 401 from 403."""
    server.on("GET", "/fhir/Patient", JSONResponse({"resourceType": "Bundle"}))
    answer = client.read("Patient", {"_count": "1", "_elements": "id"})
    assert (answer.ok, answer.resource) == (True, {"resourceType": "Bundle"})
    assert server.seen[0].query == "_count=1&_elements=id"
    server.on("GET", "/fhir/Group/g1", outcome(403, "forbidden", "no role"))
    answer = client.read("Group/g1")
    assert (answer.http_status, answer.reason) == (403, "forbidden: no role")


# --- transport ------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_unreachable(http: httpx.Client) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    client = BulkClient(f"http://127.0.0.1:{port}/fhir", http, PROFILES["smart"])
    for ask in (lambda: client.kick_off(GROUP), lambda: client.status(f"http://127.0.0.1:{port}/fhir/s")):
        with pytest.raises(Unreachable, match="the connection was refused") as raised:
            ask()
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__


def test_a_server_that_says_nothing_is_unreachable(server: Server) -> None:
    def slow(_: Request) -> Response:
        time.sleep(0.6)
        return Response("", 202)

    server.on("GET", "/fhir/s", slow)
    with httpx.Client(timeout=0.2, trust_env=False) as http, pytest.raises(Unreachable, match="in time"):
        client_of(server, http).status(f"{server.fhir}/s")


@pytest.mark.parametrize(
    "url", ["http://fhir.example.org/r4", "ftp://x/y", "fhir.example.org", "https://u:p@h/r4"]
)
def test_only_https_or_loopback_is_spoken_to(http: httpx.Client, url: str) -> None:
    """Protocol fact 1."""
    with pytest.raises(ConfigError):
        BulkClient(url, http, PROFILES["smart"])


def test_a_base_with_a_query_is_refused(http: httpx.Client) -> None:
    with pytest.raises(ConfigError, match="query"):
        BulkClient("https://fhir.example.org/r4?x=1", http, PROFILES["smart"])


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "cert.pem", folder / "key.pem"


def test_a_certificate_that_is_not_trusted_is_named(tls: tuple[Path, Path]) -> None:
    """Protocol fact 1."""
    with Server(tls) as secure, httpx.Client(trust_env=False) as http:
        with pytest.raises(Unreachable, match="certificate"):
            client_of(secure, http).capability()
        assert secure.seen == []


def test_https_is_never_left_for_http(tls: tuple[Path, Path], stranger: Server) -> None:
    """Protocol fact 1: also not for a loopback address."""
    context = ssl.create_default_context(cafile=str(tls[0]))
    with Server(tls) as secure, httpx.Client(auth=Token(), verify=context, trust_env=False) as http:
        secure.on("GET", "/fhir/s", RedirectResponse(f"{stranger.origin}/s"))
        with pytest.raises(ServerRefused, match="from https to http"):
            client_of(secure, http).status(f"{secure.fhir}/s")
    assert stranger.seen == []


def test_logs_hold_neither_queries_nor_tokens(
    server: Server, stranger: Server, client: BulkClient, caplog: pytest.LogCaptureFixture
) -> None:
    """httpx logs whole URLs at INFO, httpcore answer headers at DEBUG."""
    caplog.set_level(logging.DEBUG)
    server.on("GET", "/fhir/s", RedirectResponse("/fhir/t?sig=SECRETSECRET"))
    server.on("GET", "/fhir/t", JSONResponse(manifest(output=[{"url": "/f?sig=SECRETSECRET"}])))
    answer = client.status(f"{server.fhir}/s?sig=SECRETSECRET")
    ours = [each.getMessage() for each in caplog.records if not each.name.startswith("uvicorn")]
    text = "\n".join(ours) + repr(answer) + repr(Accepted(f"{server.fhir}/s?sig=SECRETSECRET"))
    assert "HTTP Request: GET" in text
    assert f"{server.fhir}/t" in text
    assert "SECRET" not in text
    assert TOKEN not in text
