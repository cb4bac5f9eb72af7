"""Signing in at a real token endpoint on loopback, and where the bearer goes afterwards.

The server here verifies assertions with PyJWT on its own and shares no code with pipeline.auth.
"""

from __future__ import annotations

import json
import logging
import pickle
import socket
import ssl
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

import httpx
import jwt
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.auth.bearer import BearerAuth
from pipeline.auth.discovery import OAUTH_URIS, discover
from pipeline.auth.keys import Algorithm, generate_key
from pipeline.auth.origins import origin
from pipeline.auth.signers import PemSigner
from pipeline.auth.tokens import SmartTokenSource, Token
from pipeline.errors import AuthError, ConfigError, ExportError, Unreachable

CLIENT = "nightly"
SCOPE = "system/*.rs"


@contextmanager
def serving(app: ASGIApp, **options: Any) -> Iterator[str]:
    """The app on a loopback port of its own; gives its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, date_header=False, log_level="warning", lifespan="off", **options)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    scheme = "https" if "ssl_certfile" in options else "http"
    try:
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def closed_port_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@dataclass
class Hospital:
    """A FHIR server with its token endpoint: strict, and with a script for the trouble it makes."""

    jwks: dict[str, dict[str, Any]] = field(default_factory=dict)
    audience: str | None = None
    body: Literal["form", "json"] = "form"
    grant: dict[str, Any] = field(default_factory=lambda: {"token_type": "bearer", "expires_in": 300})
    script: list[Response] = field(default_factory=list)
    delay: float = 0.0
    smart: Response | None = None
    metadata: Response | None = None

    base: str = ""
    assertions: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)
    reads: list[tuple[str, str | None]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/fhir/.well-known/smart-configuration", self.smart_configuration),
                Route("/fhir/.well-known/moved", self.moved),
                Route("/fhir/metadata", self.capability_statement),
                Route("/auth/token", self.token, methods=["POST"]),
                Route("/fhir/{rest:path}", self.read, methods=["GET", "POST"]),
                Route("/go/{status:int}", self.go, methods=["GET", "POST"]),
            ]
        )

    @property
    def token_url(self) -> str:
        return f"{self.base}/auth/token"

    async def smart_configuration(self, request: Request) -> Response:
        self.asked["smart"] += 1
        assert "authorization" not in request.headers
        return self.smart or JSONResponse({"token_endpoint": self.token_url})

    async def moved(self, request: Request) -> Response:
        return JSONResponse({"token_endpoint": f"{self.token_url}?moved"})

    async def capability_statement(self, request: Request) -> Response:
        self.asked["metadata"] += 1
        assert request.headers["accept"] == "application/fhir+json"
        return self.metadata or JSONResponse({"resourceType": "CapabilityStatement"})

    async def token(self, request: Request) -> Response:
        raw = await request.body()
        form = self._form(request, raw)
        self.assertions.append(form.get("client_assertion", ""))
        if self.delay:
            import anyio

            await anyio.sleep(self.delay)
        if self.script:
            return self.script.pop(0)
        problem = self._problem(form)
        if problem is not None:
            return JSONResponse({"error": problem[0], "error_description": problem[1]}, problem[2])
        value = f"T0KEN-{len(self.tokens)}-{'s' * 20}"
        self.tokens.append(value)
        return JSONResponse({"access_token": value, "scope": "system/Patient.rs", **self.grant})

    def _form(self, request: Request, raw: bytes) -> dict[str, str]:
        kind = request.headers["content-type"].partition(";")[0]
        if self.body == "json":
            assert kind == "application/json"
            loaded: dict[str, str] = json.loads(raw)
            return loaded
        assert kind == "application/x-www-form-urlencoded"
        return {name: values[0] for name, values in parse_qs(raw.decode(), strict_parsing=True).items()}

    def _problem(self, form: dict[str, str]) -> tuple[str, str, int] | None:
        if form["grant_type"] != "client_credentials":
            return "unsupported_grant_type", "", 400
        if form["client_assertion_type"] != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer":
            return "invalid_request", "", 400
        assertion = form["client_assertion"]
        header = jwt.get_unverified_header(assertion)
        key = self.jwks.get(header["kid"])
        if key is None or header["typ"] != "JWT" or header["alg"] != key["alg"]:
            return "invalid_client", f"no key {header['kid']} for {assertion}", 401
        try:
            claims = jwt.decode(
                assertion,
                jwt.PyJWK(key),
                algorithms=[key["alg"]],
                audience=self.audience or self.token_url,
                issuer=CLIENT,
                subject=CLIENT,
                options={"require": ["exp", "jti", "iss", "sub", "aud"]},
            )
        except jwt.InvalidAudienceError:
            return "invalid_request", "aud", 400
        except jwt.InvalidTokenError as error:
            return "invalid_client", type(error).__name__, 401
        if claims["exp"] > time.time() + 300:
            return "invalid_client", "exp too far ahead", 401
        if self.assertions.count(assertion) > 1:
            return "invalid_client", "jti replayed", 401
        return None if form["scope"] == SCOPE else ("invalid_scope", form["scope"], 400)

    async def read(self, request: Request) -> Response:
        given = request.headers.get("authorization")
        self.reads.append((request.url.path, given))
        value = (given or "").removeprefix("Bearer ")
        if value not in self.tokens or value in self.revoked:
            return JSONResponse({"issue": []}, 401, headers={"WWW-Authenticate": "Bearer"})
        return JSONResponse({"ok": True, "method": request.method})

    async def go(self, request: Request) -> Response:
        self.reads.append((request.url.path, request.headers.get("authorization")))
        return RedirectResponse(request.query_params["to"], request.path_params["status"])


@pytest.fixture(scope="module")
def signers() -> dict[str, PemSigner]:
    algorithms: list[Algorithm] = ["RS384", "ES384"]
    return {name: PemSigner.from_pem(generate_key(name), name) for name in algorithms}


class Stage:
    """One listening server for the whole module; each test puts its own hospital on it."""

    def __init__(self) -> None:
        self.base = ""
        self.app = Starlette()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    def put(self, hospital: Hospital) -> Hospital:
        hospital.base = self.base
        self.app = hospital.app()
        return hospital


@pytest.fixture(scope="module")
def stages() -> Iterator[tuple[Stage, Stage]]:
    """Two origins: one machine, two ports."""
    one, two = Stage(), Stage()
    with serving(one) as one.base, serving(two) as two.base:
        yield one, two


@pytest.fixture
def hospital(stages: tuple[Stage, Stage], signers: dict[str, PemSigner]) -> Hospital:
    return stages[0].put(Hospital(jwks={signer.kid: signer.public_jwk() for signer in signers.values()}))


@pytest.fixture
def stranger(stages: tuple[Stage, Stage]) -> Hospital:
    """Another origin than the hospital's."""
    return stages[1].put(Hospital())


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10, trust_env=False) as client:
        yield client


class Naps:
    """Takes the place of time.sleep, and remembers for how long it was asked to."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


class Clock:
    """A monotonic clock that a test can set forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def source_for(
    hospital: Hospital,
    signer: PemSigner | Callable[[], PemSigner],
    *,
    naps: Naps | None = None,
    clock: Callable[[], float] = time.monotonic,
    **more: Any,
) -> SmartTokenSource:
    settings: dict[str, Any] = {"fhir_url": f"{hospital.base}/fhir", **more}
    return SmartTokenSource(
        signer,
        settings.pop("client_id", CLIENT),
        settings.pop("scope", SCOPE),
        sleep=naps or Naps(),
        clock=clock,
        **settings,
    )


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_a_signed_assertion_buys_a_token(
    algorithm: str, hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    """Protocol facts 4 to 7."""
    source = source_for(hospital, signers[algorithm])
    assert source.token_origin is None
    token = source.fetch(http)
    assert [token.value] == hospital.tokens
    assert token.scope == "system/Patient.rs"
    assert source.token_origin == origin(hospital.base)
    source.fetch(http)
    assert hospital.asked == {"smart": 1}


def test_a_configured_token_url_needs_no_discovery(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    source = source_for(hospital, signers["ES384"], token_url=hospital.token_url)
    assert source.token_origin == origin(hospital.base)
    source.fetch(http)
    assert not hospital.asked


def test_the_audience_can_differ_from_the_url(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    """azure-and-aidbox A: the host name of API Management, whatever the custom domain."""
    hospital.audience = "https://apim.example.net/auth/token"
    source_for(hospital, signers["ES384"], audience=hospital.audience).fetch(http)
    with pytest.raises(AuthError, match=r"auth\.audience"):
        source_for(hospital, signers["ES384"]).fetch(http)


def test_the_body_can_be_json(hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client) -> None:
    """azure-and-aidbox B: Aidbox takes both."""
    hospital.body = "json"
    source_for(hospital, signers["ES384"], body="json").fetch(http)
    assert len(hospital.tokens) == 1


def test_jku_travels_in_the_header(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    source_for(hospital, signers["ES384"], jku="https://us.example.org/jwks.json").fetch(http)
    assert jwt.get_unverified_header(hospital.assertions[0])["jku"] == "https://us.example.org/jwks.json"


def test_a_rotated_key_signs_at_the_next_try(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    """The signer is asked for anew each time; kid, algorithm and signature come from the same one."""
    asked: list[str] = []
    order = iter(["ES384", "RS384", "ES384"])

    def signer() -> PemSigner:
        asked.append(next(order))
        return signers[asked[-1]]

    hospital.script = [Response(status_code=503)]
    source = source_for(hospital, signer)
    source.fetch(http)
    source.fetch(http)
    headers = [jwt.get_unverified_header(one) for one in hospital.assertions]
    assert asked == ["ES384", "RS384", "ES384"]
    assert [header["alg"] for header in headers] == asked
    assert [header["kid"] for header in headers] == [signers[name].kid for name in asked]
    assert len(hospital.tokens) == 2, "the hospital verified both"


@pytest.mark.parametrize(
    ("failure", "naps_taken"),
    [(Unreachable("the vault does not answer", "Wait."), 3), (ConfigError("no such key", "Make one."), 0)],
)
def test_a_signer_that_cannot_be_had_is_told_as_it_says(
    failure: ExportError,
    naps_taken: int,
    hospital: Hospital,
    signers: dict[str, PemSigner],
    http: httpx.Client,
) -> None:
    """A vault's passing trouble is waited out like the token endpoint's; nothing is posted meanwhile."""

    def signer() -> PemSigner:
        raise failure

    naps = Naps()
    with pytest.raises(type(failure)) as caught:
        source_for(hospital, signer, naps=naps).fetch(http)
    assert caught.value is failure
    assert len(naps.taken) == naps_taken
    assert hospital.assertions == []


def test_each_try_has_a_new_assertion_and_waits_as_asked(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    """Protocol fact 6; Retry-After as seconds and as a date (fact 18), and without it a growing pause."""
    now = datetime.now(UTC)
    date = {"Date": format_datetime(now, usegmt=True)}
    later = format_datetime(now + timedelta(seconds=7), usegmt=True)
    hospital.script = [
        Response(status_code=503, headers={"Retry-After": "3"}),
        Response(status_code=429, headers={"Retry-After": later, **date}),
        JSONResponse({"error": "temporarily_unavailable"}, 400),
    ]
    naps = Naps()
    token = source_for(hospital, signers["ES384"], naps=naps).fetch(http)
    assert [token.value] == hospital.tokens
    jtis = {jwt.decode(one, options={"verify_signature": False})["jti"] for one in hospital.assertions}
    assert len(jtis) == len(hospital.assertions) == 4
    assert naps.taken[0] == 3.0
    assert 6.0 <= naps.taken[1] <= 8.0
    assert 1.0 < naps.taken[2] < 3.0


def test_a_server_that_stays_away_is_given_up_on(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    hospital.script = [Response(status_code=500) for _ in range(9)]
    naps = Naps()
    with pytest.raises(Unreachable, match="HTTP 500"):
        source_for(hospital, signers["ES384"], naps=naps).fetch(http)
    assert len(hospital.assertions) == 4
    assert len(naps.taken) == 3
    assert naps.taken == sorted(naps.taken)


def test_a_long_retry_after_is_left_to_the_caller(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    """Protocol fact 18: obeyed, not cut short and not slept through."""
    hospital.script = [Response(status_code=429, headers={"Retry-After": "600"})]
    naps = Naps()
    with pytest.raises(Unreachable) as caught:
        source_for(hospital, signers["ES384"], naps=naps).fetch(http)
    assert caught.value.retry_after == 600.0
    assert naps.taken == []
    assert len(hospital.assertions) == 1


def test_a_refusal_is_not_asked_for_again(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    naps = Naps()
    unknown = PemSigner.from_pem(generate_key("ES384"), "ES384")
    with pytest.raises(AuthError) as caught:
        source_for(hospital, unknown, naps=naps).fetch(http)
    assert naps.taken == []
    assert len(hospital.assertions) == 1
    for words in ("invalid_client", CLIENT, unknown.kid, "JWK Set"):
        assert words in str(caught.value)
    with pytest.raises(AuthError, match=r"system/Everything\.\*"):
        source_for(hospital, signers["ES384"], scope="system/Everything.*").fetch(http)
    with pytest.raises(AuthError, match="someone-else"):
        source_for(hospital, signers["ES384"], client_id="someone-else").fetch(http)


def test_the_right_kid_with_the_wrong_key_is_refused(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    impostor = PemSigner.from_pem(generate_key("ES384"), "ES384", kid=signers["ES384"].kid)
    with pytest.raises(AuthError, match="cannot verify the signature"):
        source_for(hospital, impostor).fetch(http)


def test_answers_that_are_no_token_are_refused_in_words(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    cases: list[tuple[Response, str]] = [
        (HTMLResponse("<html><form>Sign in"), "a web page"),
        (Response("", 200), "an empty body"),
        (Response("{", 200), "not JSON"),
        (JSONResponse([1]), "not JSON"),
        (JSONResponse({"expires_in": 300}), "access_token"),
        (JSONResponse({"Name": "BadAudience", "Id": "7", "Code": 400}, 400), "BadAudience"),
        (Response(status_code=404), r"auth\.token_url"),
        (Response(b"\x00not gzip", 200, headers={"Content-Encoding": "gzip"}), "cannot be reached"),
    ]
    for answer, words in cases:
        hospital.script = [answer] * 4
        with pytest.raises(ExportError, match=words) as caught:
            source_for(hospital, signers["ES384"], token_url=hospital.token_url).fetch(http)
        assert caught.value.advice


@pytest.mark.parametrize("status", [302, 307, 308])
def test_an_assertion_never_follows_a_redirect(
    status: int, hospital: Hospital, stranger: Hospital, signers: dict[str, PemSigner]
) -> None:
    """Protocol fact 9, also with a client that follows redirects."""
    hospital.script = [RedirectResponse(f"{stranger.base}/auth/token?next=S3CRET", status)]
    with (
        httpx.Client(follow_redirects=True, trust_env=False) as http,
        pytest.raises(AuthError, match="redirects to") as caught,
    ):
        source_for(hospital, signers["ES384"]).fetch(http)
    assert stranger.assertions == []
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "seconds"), [("3599", 3599), (None, 300), ("soon", 300), (-1, 300), (120, 120)]
)
def test_expires_in_is_read_with_tolerance(
    said: object, seconds: int, hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    """Protocol fact 8."""
    hospital.grant = {"token_type": "Bearer"} | ({} if said is None else {"expires_in": said})
    before = time.monotonic()
    token = source_for(hospital, signers["ES384"]).fetch(http)
    assert before + seconds <= token.expires_at <= time.monotonic() + seconds


def test_a_server_that_is_not_there_is_unreachable(signers: dict[str, PemSigner], http: httpx.Client) -> None:
    naps = Naps()
    url = closed_port_url()
    source = SmartTokenSource(signers["ES384"], CLIENT, SCOPE, fhir_url=f"{url}/fhir", sleep=naps)
    with pytest.raises(Unreachable, match="connection was refused"):
        source.fetch(http)
    assert len(naps.taken) == 3


def test_a_host_that_does_not_exist_is_named(signers: dict[str, PemSigner], http: httpx.Client) -> None:
    source = SmartTokenSource(
        signers["ES384"], CLIENT, SCOPE, fhir_url="https://no-such-host.invalid/fhir", sleep=Naps()
    )
    with pytest.raises(Unreachable, match=r"no-such-host\.invalid.*host name is not known"):
        source.fetch(http)


def test_a_server_that_does_not_answer_in_time_is_unreachable(
    hospital: Hospital, signers: dict[str, PemSigner]
) -> None:
    hospital.delay = 0.6
    with httpx.Client(timeout=0.1, trust_env=False) as http, pytest.raises(Unreachable, match="in time"):
        source_for(hospital, signers["ES384"], token_url=hospital.token_url).fetch(http)


def _certificate(folder: Path) -> dict[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "unknown authority")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = {"ssl_certfile": folder / "c.pem", "ssl_keyfile": folder / "k.pem"}
    paths["ssl_certfile"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths["ssl_keyfile"].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return {name: str(path) for name, path in paths.items()}


def test_a_certificate_that_nobody_vouches_for_is_named(tmp_path: Path) -> None:
    """Protocol fact 1."""
    with (
        serving(Hospital().app(), **_certificate(tmp_path)) as base,
        httpx.Client(verify=ssl.create_default_context(), trust_env=False) as http,
        pytest.raises(Unreachable, match="certificate is not trusted") as caught,
    ):
        discover(http, f"{base}/fhir")
    assert "SSL_CERT_FILE" in caught.value.advice


@pytest.mark.parametrize(
    "wrong",
    [
        {"fhir_url": "http://fhir.example.org/r4"},
        {"token_url": "http://auth.example.org/token"},
        {"token_url": "https://u:p@auth.example.org/token"},
        {"scope": " "},
        {"client_id": ""},
        {"body": "xml"},
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(
    wrong: dict[str, Any], hospital: Hospital, signers: dict[str, PemSigner]
) -> None:
    """Protocol fact 1 for the URLs."""
    with pytest.raises(ConfigError):
        source_for(hospital, signers["ES384"], **wrong)


# --- discovery ------------------------------------------------------------------------------------


def _capability_statement(*extensions: dict[str, Any]) -> JSONResponse:
    uris = {"url": OAUTH_URIS, "extension": list(extensions)}
    rest = [{"mode": "server"}, {"security": {"extension": [{"url": "http://else"}, uris]}}]
    return JSONResponse({"resourceType": "CapabilityStatement", "rest": rest})


def test_the_smart_configuration_is_read_and_may_be_sparse(hospital: Hospital, http: httpx.Client) -> None:
    """Protocol fact 5; azure-and-aidbox A: no algorithms and no system scopes are no reason to fail."""
    sparse = discover(http, f"{hospital.base}/fhir/")
    assert (sparse.token_endpoint, sparse.said_by) == (hospital.token_url, "smart-configuration")
    assert sparse.scopes_supported is None
    assert sparse.signing_algorithms_supported is None
    hospital.smart = JSONResponse(
        {
            "token_endpoint": hospital.token_url,
            "scopes_supported": ["system/*.rs", 7],
            "grant_types_supported": "client_credentials",
            "token_endpoint_auth_signing_alg_values_supported": ["RS384"],
        }
    )
    full = discover(http, f"{hospital.base}/fhir")
    assert full.scopes_supported == ("system/*.rs",)
    assert full.grant_types_supported is None
    assert full.signing_algorithms_supported == ("RS384",)


@pytest.mark.parametrize(
    "well_known",
    [
        Response(status_code=404),
        Response(status_code=401),
        Response(status_code=500),
        HTMLResponse("<html>app"),
        JSONResponse({"authorization_endpoint": "https://x.example/"}),
        JSONResponse({"token_endpoint": None}),
    ],
)
def test_the_capability_statement_is_asked_second(
    well_known: Response, hospital: Hospital, http: httpx.Client
) -> None:
    """Protocol fact 5: the oauth-uris extension."""
    hospital.smart = well_known
    hospital.metadata = _capability_statement(
        {"url": "authorize", "valueUri": "https://x.example/"},
        {"url": "token", "valueUri": hospital.token_url},
    )
    found = discover(http, f"{hospital.base}/fhir")
    assert (found.token_endpoint, found.said_by) == (hospital.token_url, "capability-statement")


def test_a_server_that_names_no_token_endpoint_is_told_from_one_that_is_no_fhir_server(
    hospital: Hospital, http: httpx.Client
) -> None:
    hospital.smart = Response(status_code=404)
    with pytest.raises(AuthError, match=r"auth\.token_url"):
        discover(http, f"{hospital.base}/fhir")
    hospital.metadata = HTMLResponse("<html>welcome")
    with pytest.raises(AuthError, match=r"Check fhir_url"):
        discover(http, f"{hospital.base}/fhir")


def test_a_busy_server_is_not_taken_for_one_without_smart(hospital: Hospital, http: httpx.Client) -> None:
    hospital.smart = Response(status_code=503, headers={"Retry-After": "9"})
    hospital.metadata = _capability_statement({"url": "token", "valueUri": hospital.token_url})
    with pytest.raises(Unreachable) as caught:
        discover(http, f"{hospital.base}/fhir")
    assert caught.value.retry_after == 9.0
    assert hospital.asked["metadata"] == 0


@pytest.mark.parametrize(
    "endpoint",
    ["http://auth.example.org/token", "ftp://x.example/", "/auth/token", "https://u:S3CRET@x.example/t"],
)
def test_a_token_endpoint_without_tls_is_refused(
    endpoint: str, hospital: Hospital, http: httpx.Client
) -> None:
    """Protocol fact 1."""
    hospital.smart = JSONResponse({"token_endpoint": endpoint})
    with pytest.raises(AuthError) as caught:
        discover(http, f"{hospital.base}/fhir")
    assert "S3CRET" not in str(caught.value)


def test_discovery_follows_redirects_on_its_own_origin_only(
    hospital: Hospital, stranger: Hospital, http: httpx.Client
) -> None:
    """Protocol fact 9."""
    stranger.smart = JSONResponse({"token_endpoint": f"{stranger.base}/auth/token"})
    hospital.smart = RedirectResponse(f"{stranger.base}/fhir/.well-known/smart-configuration", 302)
    with pytest.raises(AuthError, match="a redirect to another server"):
        discover(http, f"{hospital.base}/fhir")
    assert stranger.asked["smart"] == 0
    hospital.smart = RedirectResponse("moved", 302)
    assert discover(http, f"{hospital.base}/fhir").token_endpoint == f"{hospital.token_url}?moved"


def test_a_redirect_loop_ends(hospital: Hospital, http: httpx.Client) -> None:
    hospital.smart = RedirectResponse("/fhir/.well-known/smart-configuration", 302)
    with pytest.raises(AuthError, match="too many redirects"):
        discover(http, f"{hospital.base}/fhir")
    assert hospital.asked["smart"] == 4


# --- the bearer -----------------------------------------------------------------------------------


@contextmanager
def signed_in(
    hospital: Hospital,
    signer: PemSigner,
    *,
    follow_redirects: bool = False,
    clock: Clock | None = None,
    naps: Naps | None = None,
) -> Iterator[tuple[httpx.Client, BearerAuth]]:
    """A client whose own requests for tokens go through itself."""
    clock = clock or Clock()
    with httpx.Client(timeout=10, trust_env=False, follow_redirects=follow_redirects) as client:
        source = source_for(hospital, signer, naps=naps, clock=clock)
        client.auth = BearerAuth(source, client, [hospital.base], clock=clock)
        assert isinstance(client.auth, BearerAuth)
        yield client, client.auth


def test_one_token_serves_many_requests(hospital: Hospital, signers: dict[str, PemSigner]) -> None:
    with signed_in(hospital, signers["ES384"]) as (client, _):
        for _ in range(5):
            assert client.get(f"{hospital.base}/fhir/Patient").status_code == 200
    assert len(hospital.tokens) == 1
    assert {given for _, given in hospital.reads} == {f"Bearer {hospital.tokens[0]}"}


def test_a_refused_token_is_replaced_once(hospital: Hospital, signers: dict[str, PemSigner]) -> None:
    with signed_in(hospital, signers["ES384"]) as (client, _):
        client.get(f"{hospital.base}/fhir/a")
        hospital.revoked.add(hospital.tokens[0])
        answer = client.post(f"{hospital.base}/fhir/b", content=b"Parameters")
        assert answer.json() == {"ok": True, "method": "POST"}
    assert len(hospital.tokens) == 2
    assert [path for path, _ in hospital.reads] == ["/fhir/a", "/fhir/b", "/fhir/b"]


def test_a_server_that_always_refuses_gets_two_requests(
    hospital: Hospital, signers: dict[str, PemSigner]
) -> None:
    with signed_in(hospital, signers["ES384"]) as (client, auth):
        auth.token()
        hospital.revoked = {f"T0KEN-{n}-{'s' * 20}" for n in range(9)}
        assert client.get(f"{hospital.base}/fhir/a").status_code == 401
    assert len(hospital.reads) == 2
    assert len(hospital.tokens) == 2


def test_a_streamed_download_is_renewed_too(hospital: Hospital, signers: dict[str, PemSigner]) -> None:
    with signed_in(hospital, signers["ES384"]) as (client, auth):
        hospital.revoked.add(auth.token().value)
        with client.stream("GET", f"{hospital.base}/fhir/file.ndjson") as answer:
            assert answer.status_code == 200
            assert json.loads(b"".join(answer.iter_bytes()))["ok"]


@pytest.mark.parametrize(
    ("lifetime", "still_good", "due"), [(300, 235, 245), (3600, 3535, 3545), (10, 5, 8.5)]
)
def test_a_token_is_renewed_before_it_ends(
    lifetime: float, still_good: float, due: float, hospital: Hospital, signers: dict[str, PemSigner]
) -> None:
    hospital.grant = {"expires_in": lifetime}
    clock = Clock()
    with signed_in(hospital, signers["ES384"], clock=clock) as (client, _):
        client.get(f"{hospital.base}/fhir/a")
        clock.ahead = still_good
        client.get(f"{hospital.base}/fhir/b")
        assert len(hospital.tokens) == 1
        clock.ahead = due
        client.get(f"{hospital.base}/fhir/c")
        assert len(hospital.tokens) == 2
    assert [given for _, given in hospital.reads][-1] == f"Bearer {hospital.tokens[1]}"


def test_a_good_token_outlives_a_token_endpoint_in_trouble(
    hospital: Hospital, signers: dict[str, PemSigner], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with signed_in(hospital, signers["ES384"], clock=clock) as (client, _):
        client.get(f"{hospital.base}/fhir/a")
        hospital.script = [Response(status_code=503) for _ in range(8)]
        clock.ahead = 250.0
        assert client.get(f"{hospital.base}/fhir/b").status_code == 200
        asked = len(hospital.assertions)
        assert client.get(f"{hospital.base}/fhir/c").status_code == 200
        assert len(hospital.assertions) == asked, "no pause after a renewal that failed"
        clock.ahead = 301.0
        with pytest.raises(Unreachable):
            client.get(f"{hospital.base}/fhir/d")
        assert client.get(f"{hospital.base}/fhir/e").status_code == 200
    assert "could not be renewed early" in caplog.text


def test_sixteen_threads_sign_in_once(hospital: Hospital, signers: dict[str, PemSigner]) -> None:
    hospital.delay = 0.2
    barrier = threading.Barrier(16)
    with signed_in(hospital, signers["ES384"]) as (client, _), ThreadPoolExecutor(16) as pool:

        def read(number: int) -> int:
            barrier.wait()
            return client.get(f"{hospital.base}/fhir/{number}").status_code

        assert list(pool.map(read, range(16))) == [200] * 16
        assert len(hospital.tokens) == 1
        hospital.revoked.add(hospital.tokens[0])
        assert list(pool.map(read, range(16))) == [200] * 16
    assert len(hospital.tokens) == 2, "sixteen refusals of one token want one new token"


def test_sixteen_threads_share_one_refusal(hospital: Hospital) -> None:
    hospital.delay = 2.0  # so long the last of them has to come
    barrier = threading.Barrier(16)
    unknown = PemSigner.from_pem(generate_key("ES384"), "ES384")
    with signed_in(hospital, unknown) as (client, _), ThreadPoolExecutor(16) as pool:

        def read(number: int) -> ExportError:
            barrier.wait()
            with pytest.raises(AuthError) as caught:
                client.get(f"{hospital.base}/fhir/{number}")
            return caught.value

        errors = list(pool.map(read, range(16)))
    assert len(hospital.assertions) == 1
    assert len({str(error) for error in errors}) == 1
    assert len({id(error) for error in errors}) == 16
    assert hospital.reads == []


class Interrupted:
    """A source whose first fetch is interrupted while others wait for it."""

    token_origin = None

    def __init__(self) -> None:
        self.fetches = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def fetch(self, http: httpx.Client) -> Token:
        self.fetches += 1
        if self.fetches == 1:
            self.begun.set()
            assert self.go_on.wait(5)
            raise KeyboardInterrupt
        return Token("second", expires_at=time.monotonic() + 300)


def test_an_interrupted_leader_does_not_take_the_others_along(http: httpx.Client) -> None:
    source = Interrupted()
    auth = BearerAuth(source, http, [])
    with ThreadPoolExecutor(3) as pool:
        leader = pool.submit(auth.token)
        assert source.begun.wait(5)
        followers = [pool.submit(auth.token) for _ in range(2)]
        time.sleep(0.05)
        source.go_on.set()
        assert isinstance(leader.exception(5), KeyboardInterrupt)
        assert {follower.result(5).value for follower in followers} == {"second"}
    assert source.fetches == 2


def test_a_foreign_origin_never_sees_a_bearer(
    hospital: Hospital, stranger: Hospital, signers: dict[str, PemSigner]
) -> None:
    """Protocol facts 9 and 28; an Authorization that the caller set goes too."""
    with signed_in(hospital, signers["ES384"]) as (client, auth):
        token = auth.token().value
        client.get(f"{stranger.base}/fhir/a", headers={"Authorization": f"Bearer {token}"})
        client.get(f"{stranger.base}/fhir/b")
        userinfo = hospital.base.replace("http://", "http://user:pw@")
        client.get(f"{userinfo}/fhir/c")
        client.get(f"{hospital.base}/fhir/d", headers={"authorization": "Bearer other"})
    assert [given for _, given in stranger.reads] == [None, None]
    assert hospital.reads == [("/fhir/c", None), ("/fhir/d", f"Bearer {token}")]
    assert len(hospital.tokens) == 1, "a foreign 401 is no reason for a new token"


def test_a_foreign_origin_that_is_allowed_gets_the_bearer(
    hospital: Hospital, stranger: Hospital, signers: dict[str, PemSigner]
) -> None:
    """Protocol fact 28: requiresAccessToken, where the configuration allows the origin."""
    with signed_in(hospital, signers["ES384"]) as (client, auth):
        auth.allow(f"{stranger.base}/some/file.ndjson?x=1")
        assert auth.origins == {origin(hospital.base), origin(stranger.base)}
        stranger.tokens.append(auth.token().value)
        assert client.get(f"{stranger.base}/fhir/file").status_code == 200
        with pytest.raises(ConfigError):
            auth.allow("http://files.example.org/")
    assert [given for _, given in stranger.reads] == [f"Bearer {hospital.tokens[0]}"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_redirect_to_another_origin_loses_the_bearer(
    status: int, method: str, hospital: Hospital, stranger: Hospital, signers: dict[str, PemSigner]
) -> None:
    """Protocol facts 9 and 28: Oracle's 307 to a pre-signed URL. Two real servers on two ports."""
    with signed_in(hospital, signers["ES384"], follow_redirects=True) as (client, _):
        to = f"{stranger.base}/fhir/presigned"
        answer = client.request(method, f"{hospital.base}/go/{status}", params={"to": to})
        assert answer.status_code == 401
        assert answer.request.url == to
    assert [given for _, given in hospital.reads] == [f"Bearer {hospital.tokens[0]}"]
    assert stranger.reads == [("/fhir/presigned", None)], "asked once, without a bearer"
    assert len(hospital.tokens) == 1


def test_a_redirect_followed_by_hand_loses_the_bearer_too(
    hospital: Hospital, stranger: Hospital, signers: dict[str, PemSigner]
) -> None:
    with signed_in(hospital, signers["ES384"]) as (client, _):
        answer = client.get(f"{hospital.base}/go/307", params={"to": f"{stranger.base}/fhir/presigned"})
        assert answer.next_request is not None
        client.send(answer.next_request)
        client.get(answer.headers["location"], headers=answer.request.headers)
    assert [given for _, given in stranger.reads] == [None, None]


def test_a_redirect_there_and_back_is_not_followed_with_the_bearer(
    hospital: Hospital, stranger: Hospital, signers: dict[str, PemSigner]
) -> None:
    """A stranger must not be able to steer our token, so what it sends back is asked for without."""
    with signed_in(hospital, signers["ES384"], follow_redirects=True) as (client, _):
        back = httpx.URL(f"{stranger.base}/go/307", params={"to": f"{hospital.base}/fhir/Patient"})
        answer = client.get(f"{hospital.base}/go/307", params={"to": str(back)})
    assert answer.status_code == 401
    assert [given for _, given in stranger.reads] == [None]
    assert [given for _, given in hospital.reads] == [f"Bearer {hospital.tokens[0]}", None]


def test_a_redirect_within_the_origin_keeps_the_bearer_and_its_renewal(
    hospital: Hospital, signers: dict[str, PemSigner]
) -> None:
    with signed_in(hospital, signers["ES384"], follow_redirects=True) as (client, auth):
        hospital.revoked.add(auth.token().value)
        answer = client.get(f"{hospital.base}/go/307", params={"to": f"{hospital.base}/fhir/Patient"})
        assert answer.status_code == 200
    assert len(hospital.tokens) == 2


def test_an_origin_without_tls_cannot_be_named(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    """Protocol fact 1."""
    with pytest.raises(ConfigError, match="plain http"):
        BearerAuth(source_for(hospital, signers["ES384"]), http, ["http://fhir.example.org"])


def test_an_async_client_is_refused_rather_than_sent_without_a_bearer(
    hospital: Hospital, signers: dict[str, PemSigner], http: httpx.Client
) -> None:
    import asyncio

    auth = BearerAuth(source_for(hospital, signers["ES384"]), http, [hospital.base])

    async def read() -> None:
        async with httpx.AsyncClient(auth=auth, trust_env=False) as client:
            await client.get(f"{hospital.base}/fhir/a")

    with pytest.raises(RuntimeError, match=r"httpx\.Client only"):
        asyncio.run(read())
    assert hospital.reads == []


# --- secrets --------------------------------------------------------------------------------------


def test_no_secret_is_in_any_log_repr_or_error(
    hospital: Hospital, stranger: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything logged at DEBUG by every library, every repr, and every traceback with its chain."""
    caplog.set_level(logging.DEBUG)
    pem = generate_key("ES384")
    signer = PemSigner.from_pem(pem, "ES384")
    hospital.jwks = {signer.kid: signer.public_jwk()}
    seen: list[str] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            seen.append(repr(action()))
        except ExportError as error:
            assert pickle.loads(pickle.dumps(error)).args == error.args
            assert error.__cause__ is None
            assert error.__context__ is None, "the chain would carry the request, and with it the assertion"
            seen.extend([str(error), repr(error), "".join(traceback.format_exception(error))])

    with signed_in(hospital, signer) as (client, auth):
        source = auth._source
        assert isinstance(source, SmartTokenSource)
        attempt(auth.token)
        seen.extend([repr(auth), repr(source), repr(signer), repr(auth.token())])
        attempt(lambda: client.get(f"{hospital.base}/fhir/a"))
        attempt(lambda: client.get(f"{hospital.base}/fhir/a").request.headers)
        attempt(lambda: client.get(f"{stranger.base}/fhir/a"))
        hospital.jwks = {}  # the endpoint now echoes the assertion in its error_description
        attempt(lambda: source.fetch(client))
        for status in (400, 401, 429, 503):
            echo = JSONResponse({"error_description": "echo"}, status)
            hospital.script = [echo] * 4
            attempt(lambda: source.fetch(client))
        client.timeout = httpx.Timeout(0.05)
        hospital.delay = 0.3
        attempt(lambda: source.fetch(client))
    attempt(
        lambda: SmartTokenSource(
            signer, CLIENT, SCOPE, fhir_url=f"{closed_port_url()}/fhir", sleep=Naps()
        ).fetch(httpx.Client(trust_env=False))
    )
    everything = "\n".join([caplog.text, *seen])
    assert "signed in at" in everything
    assert "invalid_client" in everything
    assert "echo" in everything
    secrets = [*hospital.tokens, *pem.decode().splitlines()[1:-1]]
    secrets += [piece for one in hospital.assertions for piece in one.split(".") if piece]
    assert len(secrets) > 20
    for secret in secrets:
        assert secret not in everything
