"""Signing in at Entra with a client secret and a certificate, at a strict endpoint on loopback over TLS.

The endpoint verifies assertions with cryptography and PyJWT on its own and shares no code with
pipeline.auth. The stand-in of the sandbox is asked in test_auth_entra_cloud.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import httpx
import jwt
import pytest
import uvicorn
from authority import Authority
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from pipeline.auth.bearer import BearerAuth
from pipeline.auth.entra import EntraTokenSource
from pipeline.auth.origins import origin
from pipeline.errors import AuthError, ConfigError, ExportError, Unreachable

TENANT = "5f0f5a3c-6d7e-4b1a-9c55-0a8b6f1d2e34"
CLIENT = "11111111-2222-3333-4444-555555555555"
SECRET = "q7K8Q~Zx.3vB_mN-0pLsWeRtYuIoP1aSdFgHjKlX"
AUDIENCE = "https://contoso-fhir.fhir.azurehealthcareapis.com"


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, common: str = "us") -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(_name(common), _name(common), key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def _pem(
    item: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | x509.Certificate, password: bytes = b""
) -> bytes:
    if isinstance(item, x509.Certificate):
        return item.public_bytes(serialization.Encoding.PEM)
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return item.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    return _certificate(key)


@dataclass
class Directory:
    """Entra's token endpoints, v1 and v2, as azure-and-aidbox C and Microsoft's documentation have them."""

    base: str = ""
    certificate: x509.Certificate | None = None
    script: list[Response] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    others: list[tuple[str, str | None, bytes]] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/{tenant}/oauth2/v2.0/token", self.version_2, methods=["POST"]),
                Route("/{tenant}/oauth2/token", self.version_1, methods=["POST"]),
                Route("/{rest:path}", self.other, methods=["GET", "POST"]),
            ]
        )

    async def other(self, request: Request) -> Response:
        self.others.append((request.url.path, request.headers.get("authorization"), await request.body()))
        return JSONResponse({"ok": True})

    async def version_2(self, request: Request) -> Response:
        return await self._token(request, {"scope"}, 3599)

    async def version_1(self, request: Request) -> Response:
        return await self._token(request, {"resource"}, "3599")

    async def _token(self, request: Request, target: set[str], seconds: int | str) -> Response:
        kind = request.headers["content-type"]
        assert kind == "application/x-www-form-urlencoded"
        assert "authorization" not in request.headers
        parsed = parse_qs((await request.body()).decode(), strict_parsing=True, keep_blank_values=True)
        assert all(len(values) == 1 for values in parsed.values())
        form = {name: values[0] for name, values in parsed.items()}
        self.forms.append(form)
        if self.script:
            return self.script.pop(0)
        problem = self._problem(request, form, target)
        if problem:
            code, words = problem.split(":", 1)
            text = f"AADSTS{code}:{words} Trace ID: 0 Timestamp: {datetime.now(UTC)} {form}"
            return JSONResponse({"error": "invalid_client", "error_description": text}, 401)
        self.tokens.append(f"entra-t0ken-{len(self.tokens)}-{'x' * 30}")
        return JSONResponse({"token_type": "Bearer", "expires_in": seconds, "access_token": self.tokens[-1]})

    def _problem(self, request: Request, form: dict[str, str], target: set[str]) -> str | None:
        if request.path_params["tenant"] != TENANT:
            return "90002: Tenant not found."
        proof = {"client_secret"}
        if "client_assertion" in form:
            proof = {"client_assertion", "client_assertion_type"}
        if set(form) != {"grant_type", "client_id", *target, *proof}:
            return f"900144: parameters {sorted(form)}"
        if form["grant_type"] != "client_credentials":
            return "70003: grant"
        if form["client_id"] != CLIENT:
            return "700016: Application not found."
        if form.get("scope", f"{AUDIENCE}/.default") not in (f"{AUDIENCE}/.default", f"{AUDIENCE}//.default"):
            return "1002012: The scope is not valid."
        if form.get("resource", AUDIENCE).rstrip("/") != AUDIENCE:
            return "50001: resource"
        if "client_secret" in form:
            return None if form["client_secret"] == SECRET else "7000215: Invalid client secret provided."
        return self._assertion_problem(form, str(request.url))

    def _assertion_problem(self, form: dict[str, str], url: str) -> str | None:
        assert self.certificate is not None
        if form["client_assertion_type"] != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer":
            return "50027: type"
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        thumbprint = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
        header = jwt.get_unverified_header(form["client_assertion"])
        if header != {"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint}:
            return "700027: The certificate is not registered on application."
        public: Any = self.certificate.public_key()
        claims = jwt.decode(
            form["client_assertion"],
            public,
            algorithms=["PS256"],
            audience=url,
            issuer=CLIENT,
            subject=CLIENT,
            options={"require": ["exp", "nbf", "jti", "iss", "sub", "aud"]},
        )
        if claims["exp"] - claims["nbf"] > 600 or claims["nbf"] > time.time():
            return "700024: time"
        return None


@contextmanager
def _serving(directory: Directory, authority: Authority) -> Iterator[None]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            directory.app(),
            log_level="warning",
            lifespan="off",
            ssl_certfile=str(authority.certificate),
            ssl_keyfile=str(authority.key),
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    directory.base = f"https://localhost:{listener.getsockname()[1]}"
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="module")
def servers(authority: Authority) -> Iterator[tuple[Directory, Directory]]:
    one, two = Directory(), Directory()
    with _serving(one, authority), _serving(two, authority):
        yield one, two


def _emptied(directory: Directory, certificate: x509.Certificate) -> Directory:
    directory.certificate = certificate
    for each in (directory.script, directory.forms, directory.tokens, directory.others):
        each.clear()
    return directory


@pytest.fixture
def entra(servers: tuple[Directory, Directory], certificate: x509.Certificate) -> Directory:
    return _emptied(servers[0], certificate)


@pytest.fixture
def stranger(servers: tuple[Directory, Directory], certificate: x509.Certificate) -> Directory:
    return _emptied(servers[1], certificate)


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as client:
        yield client


class Naps:
    """Takes the place of time.sleep, and remembers for how long it was asked to."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


def _source(entra: Directory, naps: Naps | None = None, **settings: Any) -> EntraTokenSource:
    given = {
        "tenant_id": TENANT,
        "client_id": CLIENT,
        "audience": AUDIENCE,
        "authority": entra.base,
        **settings,
    }
    if "certificate" not in given:
        given.setdefault("client_secret", SECRET)
    return EntraTokenSource(sleep=naps or Naps(), **given)


def test_a_client_secret_buys_a_token_for_the_default_scope(entra: Directory, http: httpx.Client) -> None:
    """azure-and-aidbox C, v2: these parameters and no other, so never a SMART scope."""
    source = _source(entra)
    assert source.token_origin == origin(entra.base)
    before = time.monotonic()
    token = source.fetch(http)
    assert entra.forms == [
        {
            "grant_type": "client_credentials",
            "client_id": CLIENT,
            "client_secret": SECRET,
            "scope": f"{AUDIENCE}/.default",
        }
    ]
    assert token.value == entra.tokens[0]
    assert before + 3599 <= token.expires_at <= time.monotonic() + 3599


def test_the_first_endpoint_takes_a_resource_and_answers_with_strings(
    entra: Directory, http: httpx.Client
) -> None:
    """azure-and-aidbox C, v1: resource instead of scope, expires_in a string."""
    before = time.monotonic()
    token = _source(entra, version="v1").fetch(http)
    assert entra.forms[0]["resource"] == AUDIENCE
    assert "scope" not in entra.forms[0]
    assert before + 3599 <= token.expires_at <= time.monotonic() + 3599


def test_an_audience_that_ends_in_a_slash_keeps_it(entra: Directory, http: httpx.Client) -> None:
    """azure-and-aidbox C: `//.default` is right."""
    _source(entra, audience=f"{AUDIENCE}/").fetch(http)
    _source(entra, audience=f"{AUDIENCE}/", version="v1").fetch(http)
    assert entra.forms[0]["scope"] == f"{AUDIENCE}//.default"
    assert entra.forms[1]["resource"] == f"{AUDIENCE}/"


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("order", ["key first", "certificate first", "with its chain"])
def test_a_certificate_buys_a_token(
    version: str,
    order: str,
    entra: Directory,
    http: httpx.Client,
    key: rsa.RSAPrivateKey,
    certificate: x509.Certificate,
) -> None:
    """Microsoft's page on certificate credentials: PS256, x5t#S256, aud the endpoint, ten minutes."""
    issuer = _pem(_certificate(rsa.generate_private_key(public_exponent=65537, key_size=2048), "issuer"))
    pem = {
        "key first": _pem(key) + _pem(certificate),
        "certificate first": _pem(certificate) + _pem(key),
        "with its chain": issuer + _pem(certificate) + _pem(key),
    }[order]
    token = _source(entra, certificate=pem, version=version).fetch(http)
    assert token.value == entra.tokens[0]


def test_each_try_has_an_assertion_of_its_own(
    entra: Directory, http: httpx.Client, key: rsa.RSAPrivateKey, certificate: x509.Certificate
) -> None:
    """The loop is the one of SMART: Retry-After obeyed, a growing pause without it."""
    busy = {"error": "temporarily_unavailable", "error_description": "AADSTS90033: A transient error."}
    entra.script = [
        Response(status_code=429, headers={"Retry-After": "3"}),
        JSONResponse(busy, 503),
        JSONResponse(busy, 400),
    ]
    naps = Naps()
    _source(entra, naps, certificate=_pem(key) + _pem(certificate)).fetch(http)
    jtis = {
        jwt.decode(form["client_assertion"], options={"verify_signature": False})["jti"]
        for form in entra.forms
    }
    assert len(jtis) == 4
    assert naps.taken[0] == 3.0
    assert 0.5 < naps.taken[1] < naps.taken[2] < 3.0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"client_secret": "wrong~secret~value"}, "store its value, not its id"),
        ({"client_id": "99999999-2222-3333-4444-555555555555"}, "check client_id and tenant_id"),
        ({"tenant_id": "contoso.example"}, "check tenant_id"),
        ({"audience": "https://other.example"}, r"must be '\{audience\}/\.default'"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(
    settings: dict[str, str], words: str, entra: Directory, http: httpx.Client
) -> None:
    """azure-and-aidbox C: 7000215 and its like are never tried again."""
    naps = Naps()
    with pytest.raises(AuthError, match=words) as caught:
        _source(entra, naps, **settings).fetch(http)
    assert naps.taken == []
    assert len(entra.forms) == 1
    assert settings.get("client_secret", SECRET) not in str(caught.value), "the server echoed the form"


def test_a_certificate_that_is_not_registered_is_told_so(entra: Directory, http: httpx.Client) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(AuthError, match="upload the one that belongs to this key"):
        _source(entra, certificate=_pem(other) + _pem(_certificate(other))).fetch(http)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_secret_never_follows_a_redirect(status: int, entra: Directory, stranger: Directory) -> None:
    """Protocol fact 9, also with a client that follows redirects."""
    entra.script = [RedirectResponse(f"{stranger.base}/{TENANT}/oauth2/v2.0/token?next=S3CRET", status)]
    with (
        httpx.Client(follow_redirects=True) as http,
        pytest.raises(AuthError, match="redirects to") as caught,
    ):
        _source(entra).fetch(http)
    assert stranger.forms == []
    assert stranger.others == []
    assert "S3CRET" not in str(caught.value)
    assert "auth.authority" in caught.value.advice


def test_the_secret_goes_to_the_authority_and_the_bearer_to_the_resource(
    entra: Directory, stranger: Directory, http: httpx.Client
) -> None:
    http.auth = BearerAuth(_source(entra), http, [stranger.base])
    assert http.get(f"{stranger.base}/Patient").status_code == 200
    http.get(f"{entra.base}/elsewhere")
    assert stranger.forms == []
    assert stranger.others == [("/Patient", f"Bearer {entra.tokens[0]}", b"")]
    assert entra.others == [("/elsewhere", None, b"")]


def test_an_authority_that_is_not_there_is_unreachable(http: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    naps = Naps()
    source = EntraTokenSource(
        tenant_id=TENANT,
        client_id=CLIENT,
        audience=AUDIENCE,
        client_secret=SECRET,
        authority=f"https://localhost:{port}",
        sleep=naps,
    )
    with pytest.raises(Unreachable, match="connection was refused"):
        source.fetch(http)
    assert len(naps.taken) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenant_id": " "},
        {"tenant_id": "a/../b"},
        {"tenant_id": "common"},
        {"tenant_id": "organizations"},
        {"client_id": ""},
        {"audience": ""},
        {"audience": "system/*.read"},
        {"audience": "system/Patient.rs"},
        {"audience": f"{AUDIENCE}/.default"},
        {"audience": f"{AUDIENCE} openid"},
        {"client_secret": "\n"},
        {"client_secret": None},
        {"authority": "http://login.example.org"},
        {"authority": "https://u:p@login.example.org"},
        {"version": "v3"},
        {"certificate": b"both"},
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(wrong: dict[str, Any]) -> None:
    settings: dict[str, Any] = {
        "tenant_id": TENANT,
        "client_id": CLIENT,
        "audience": AUDIENCE,
        "client_secret": SECRET,
    }
    with pytest.raises(ConfigError):
        EntraTokenSource(**(settings | wrong))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nothing", "no private key"),
        ("key alone", "not the certificate"),
        ("certificate alone", "no private key"),
        ("another's certificate", "not the certificate"),
        ("encrypted key", "encrypted"),
        ("elliptic key", "not RSA"),
        ("damaged certificate", "not the certificate"),
    ],
)
def test_a_pem_without_key_and_certificate_is_refused(
    what: str, words: str, key: rsa.RSAPrivateKey, certificate: x509.Certificate
) -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1())
    other = _certificate(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    pem = {
        "nothing": b"",
        "key alone": _pem(key),
        "certificate alone": _pem(certificate),
        "another's certificate": _pem(key) + _pem(other),
        "encrypted key": _pem(key, b"password") + _pem(certificate),
        "elliptic key": _pem(elliptic) + _pem(_certificate(elliptic)),
        "damaged certificate": _pem(key) + _pem(certificate).replace(b"M", b"N"),
    }[what]
    with pytest.raises(ConfigError, match=words) as caught:
        EntraTokenSource(tenant_id=TENANT, client_id=CLIENT, audience=AUDIENCE, certificate=pem)
    assert "BEGIN" not in str(caught.value)


def test_a_secret_from_a_file_may_end_in_a_newline(entra: Directory, http: httpx.Client) -> None:
    _source(entra, client_secret=f"{SECRET}\r\n").fetch(http)
    assert entra.forms[0]["client_secret"] == SECRET


def test_no_secret_is_in_any_log_repr_or_error(
    entra: Directory, caplog: pytest.LogCaptureFixture, key: rsa.RSAPrivateKey, certificate: x509.Certificate
) -> None:
    """Everything logged at DEBUG by every library, every repr, and every traceback with its chain."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            seen.append(repr(action()))
        except ExportError as error:
            assert pickle.loads(pickle.dumps(error)).args == error.args
            assert error.__cause__ is None
            assert error.__context__ is None
            seen.extend([str(error), repr(error), "".join(traceback.format_exception(error))])

    pem = _pem(key) + _pem(certificate)
    with httpx.Client(timeout=10) as http:
        for source, sent in ((_source(entra), SECRET), (_source(entra, certificate=pem), "nothing")):
            seen.append(repr(source))
            attempt(lambda s=source: s.fetch(http))  # type: ignore[misc]
            for status in (400, 401, 429, 503):
                echo = JSONResponse({"error_description": f"echo {sent}"}, status)
                entra.script = [echo] * 4
                attempt(lambda s=source: s.fetch(http))  # type: ignore[misc]
        nobody = CLIENT.replace("1", "9")
        for wrong in (_source(entra, client_id=nobody), _source(entra, client_id=nobody, certificate=pem)):
            attempt(lambda s=wrong: s.fetch(http))  # type: ignore[misc]
    everything = "\n".join([caplog.text, *seen])
    assert "signed in at" in everything
    assert "AADSTS700016" in everything
    assert "echo" in everything
    secrets = [SECRET, *entra.tokens, *_pem(key).decode().splitlines()[1:-1]]
    for form in entra.forms:
        secrets += [piece for piece in form.get("client_assertion", "").split(".") if piece]
    assert len(secrets) > 30
    for secret in secrets:
        assert secret not in everything
