"""azure-identity's own credentials as token sources, at the sandbox's Entra and identity endpoints.

The real ManagedIdentityCredential, WorkloadIdentityCredential and ClientSecretCredential, pointed there by
their own settings and environment variables.
"""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from authority import Authority
from azure.identity import (
    ClientSecretCredential,
    DefaultAzureCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)

from pipeline.auth.bearer import BearerAuth
from pipeline.auth.managed import AzureIdentityTokenSource
from pipeline.errors import AuthError, ConfigError, ExportError, Unreachable
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud

AUDIENCE = "https://contoso-fhir.fhir.azurehealthcareapis.com"
SECRET = "q7K8Q~Zx.3vB_mN-0pLsWeRtYuIoP1aSdFgHjKlX"
ROLE = "FHIR Data Exporter"


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        running.assign_identity(roles={AUDIENCE: [ROLE]})
        yield running


@pytest.fixture(scope="module")
def hasty_cloud(authority: Authority) -> Iterator[CloudProcess]:
    """Its tokens live for two seconds."""
    with start_cloud(certificate=authority.certificate, key=authority.key, token_seconds=2) as running:
        running.allow_resource(AUDIENCE)
        yield running


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as one:
        yield one


@pytest.fixture(autouse=True)
def _nothing_of_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests has no identity of its own."""
    for name in (
        "IDENTITY_ENDPOINT",
        "IDENTITY_HEADER",
        "IDENTITY_SERVER_THUMBPRINT",
        "IMDS_ENDPOINT",
        "MSI_ENDPOINT",
        "MSI_SECRET",
        "AZURE_POD_IDENTITY_AUTHORITY_HOST",
        "AZURE_CLIENT_ID",
        "AZURE_CLIENT_SECRET",
        "AZURE_TENANT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_AUTHORITY_HOST",
    ):
        monkeypatch.delenv(name, raising=False)


def _set(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def _claims(
    cloud: CloudProcess, client: httpx.Client, token: str, audience: str = AUDIENCE
) -> dict[str, Any]:
    keys = jwt.PyJWKSet.from_dict(client.get(cloud.token_keys_url).json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["RS256"], audience=audience)
    return claims


def _workload(cloud: CloudProcess, client_id: str, folder: Path, **claims: Any) -> WorkloadIdentityCredential:
    environment = cloud.workload_environment(client_id, folder, **claims)
    return WorkloadIdentityCredential(
        tenant_id=cloud.tenant,
        client_id=client_id,
        token_file_path=environment["AZURE_FEDERATED_TOKEN_FILE"],
        authority=cloud.authority,
        disable_instance_discovery=True,
    )


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", ["identity_environment", "identity_environment_over_tls", "imds_environment"]
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_managed_identity_needs_no_secret(
    where: str, slash: str, cloud: CloudProcess, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """azure-and-aidbox C: App Service and a virtual machine; the audience keeps its slash."""
    _set(monkeypatch, getattr(cloud, where))
    source = AzureIdentityTokenSource(ManagedIdentityCredential(), AUDIENCE + slash)
    assert source.token_origin is None
    before = time.monotonic()
    token = source.fetch(client)
    assert _claims(cloud, client, token.value, AUDIENCE + slash)["roles"] == [ROLE]
    assert token.expires_at == pytest.approx(before + 3599, abs=5)


def test_a_user_assigned_identity_is_named_by_its_client_id(
    cloud: CloudProcess, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = cloud.assign_identity(system=False, roles={AUDIENCE: [ROLE]})["client_id"]
    _set(monkeypatch, cloud.identity_environment)
    token = AzureIdentityTokenSource(ManagedIdentityCredential(client_id=mine), AUDIENCE).fetch(client)
    assert _claims(cloud, client, token.value)["appid"] == mine


def test_a_workload_identity_trades_the_clusters_token(
    cloud: CloudProcess, client: httpx.Client, tmp_path: Path
) -> None:
    mine = cloud.register_application(federated=True, roles={AUDIENCE: [ROLE]})["client_id"]
    token = AzureIdentityTokenSource(_workload(cloud, mine, tmp_path), AUDIENCE).fetch(client)
    assert _claims(cloud, client, token.value)["appid"] == mine


def test_what_is_cached_keeps_its_real_end(cloud: CloudProcess, client: httpx.Client, tmp_path: Path) -> None:
    """A token that azure-identity had already does not live longer for being fetched again."""
    mine = cloud.register_application(federated=True, roles={AUDIENCE: [ROLE]})["client_id"]
    source = AzureIdentityTokenSource(_workload(cloud, mine, tmp_path), AUDIENCE)
    first = source.fetch(client)
    time.sleep(1.1)
    second = source.fetch(client)
    assert second.value == first.value
    assert second.expires_at == pytest.approx(first.expires_at, abs=0.1)


@pytest.mark.parametrize("audience", ["", "system/*.read", f"{AUDIENCE}/.default"])
def test_an_audience_that_entra_cannot_know_is_refused_at_once(audience: str, cloud: CloudProcess) -> None:
    with pytest.raises(ConfigError):
        AzureIdentityTokenSource(ManagedIdentityCredential(), audience)


# --- trouble --------------------------------------------------------------------------------------


def test_a_machine_outside_azure_is_told_so(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unreachable, since on Azure it may be the endpoint's bad moment; the words say both."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{port}")
    source = AzureIdentityTokenSource(ManagedIdentityCredential(retry_total=0), AUDIENCE)
    with pytest.raises(Unreachable, match="Azure machines only"):
        source.fetch(client)


@pytest.mark.parametrize("where", ["identity_environment", "imds_environment"])
def test_an_identity_that_is_not_assigned_is_named(
    where: str, cloud: CloudProcess, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set(monkeypatch, getattr(cloud, where))
    source = AzureIdentityTokenSource(ManagedIdentityCredential(client_id=str(uuid.uuid4())), AUDIENCE)
    with pytest.raises(AuthError, match="Assign a managed identity"):
        source.fetch(client)


@pytest.mark.parametrize("where", ["identity_environment", "imds_environment"])
def test_a_wrong_audience_is_named_also_where_the_endpoint_is_vague(
    where: str, cloud: CloudProcess, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """App Service answers a wrong resource with 500 and no reason."""
    _set(monkeypatch, getattr(cloud, where))
    source = AzureIdentityTokenSource(ManagedIdentityCredential(retry_total=0), "https://nobody.example")
    with pytest.raises(AuthError, match=r"auth\.audience"):
        source.fetch(client)


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"subject": "system:serviceaccount:exports:other"}, "issuer, subject and audience"),
        ({"issuer": "https://other.example"}, "issuer, subject and audience"),
        ({"audience": "api://other"}, "issuer, subject and audience"),
        ({"issuer": "https://other.example", "subject": "other"}, "issuer, subject and audience"),
        ({"seconds": -3600}, "clock"),
    ],
)
def test_a_federation_that_does_not_match_is_explained(
    claims: dict[str, Any], words: str, cloud: CloudProcess, client: httpx.Client, tmp_path: Path
) -> None:
    mine = cloud.register_application(federated=True)["client_id"]
    source = AzureIdentityTokenSource(_workload(cloud, mine, tmp_path, **claims), AUDIENCE)
    with pytest.raises(AuthError, match=words) as caught:
        source.fetch(client)
    assert "AADSTS70" in caught.value.cause


def test_a_token_file_that_is_gone_is_named(
    cloud: CloudProcess, client: httpx.Client, tmp_path: Path
) -> None:
    credential = _workload(cloud, str(uuid.uuid4()), tmp_path)
    (tmp_path / "azure-identity-token").unlink()
    with pytest.raises(AuthError, match="federated token file cannot be read"):
        AzureIdentityTokenSource(credential, AUDIENCE).fetch(client)


def test_no_identity_at_all_asks_for_a_kind(client: httpx.Client) -> None:
    """The default chain's own text names eight credentials and no cause."""
    credential = DefaultAzureCredential(
        exclude_managed_identity_credential=True,
        exclude_developer_credentials=True,
        exclude_broker_credential=True,
    )
    with pytest.raises(AuthError, match="set kind to managed-identity"):
        AzureIdentityTokenSource(credential, AUDIENCE).fetch(client)


def test_an_entra_that_is_not_there_is_unreachable(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    credential = ClientSecretCredential(
        str(uuid.uuid4()),
        str(uuid.uuid4()),
        SECRET,
        authority=f"https://localhost:{port}",
        disable_instance_discovery=True,
        retry_total=0,
    )
    with pytest.raises(Unreachable, match="no token for"):
        AzureIdentityTokenSource(credential, AUDIENCE).fetch(client)


@pytest.mark.parametrize("status", [429, 503])
def test_throttling_that_lasts_is_unreachable(status: int, cloud: CloudProcess, client: httpx.Client) -> None:
    mine = cloud.register_application(secret=SECRET, roles={AUDIENCE: [ROLE]})["client_id"]
    credential = ClientSecretCredential(
        cloud.tenant,
        mine,
        SECRET,
        authority=cloud.authority,
        disable_instance_discovery=True,
        retry_total=0,
    )
    cloud.fail(1, on="entra", status=status, path="token")
    source = AzureIdentityTokenSource(credential, AUDIENCE)
    with pytest.raises(Unreachable, match="try again later"):
        source.fetch(client)


def test_a_wrong_and_an_expired_secret_are_told_by_the_same_table(
    cloud: CloudProcess, client: httpx.Client
) -> None:
    mine = cloud.register_application(secret=SECRET)["client_id"]

    def source(value: str) -> AzureIdentityTokenSource:
        credential = ClientSecretCredential(
            cloud.tenant, mine, value, authority=cloud.authority, disable_instance_discovery=True
        )
        return AzureIdentityTokenSource(credential, AUDIENCE)

    with pytest.raises(AuthError, match="store its value, not its id"):
        source("wrong~secret~value").fetch(client)
    cloud.expire_secret(mine)
    with pytest.raises(AuthError, match="has expired: make a new one"):
        source(SECRET).fetch(client)


# --- renewal --------------------------------------------------------------------------------------


class Resource:
    """A server that takes tokens of `cloud` to the second, with no leeway."""

    def __init__(self, cloud: CloudProcess, client: httpx.Client) -> None:
        self.keys = jwt.PyJWKSet.from_dict(client.get(cloud.token_keys_url).json())
        self.verdicts: list[str] = []

    def judge(self, authorization: str) -> int:
        token = authorization.removeprefix("Bearer ")
        try:
            key = self.keys[jwt.get_unverified_header(token)["kid"]]
            jwt.decode(token, key, algorithms=["RS256"], audience=AUDIENCE)
        except jwt.PyJWTError as error:
            self.verdicts.append(type(error).__name__)
            return 401
        self.verdicts.append(token)
        return 200


@pytest.fixture
def resource(hasty_cloud: CloudProcess, client: httpx.Client) -> Iterator[tuple[str, Resource]]:
    judge = Resource(hasty_cloud, client)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(judge.judge(self.headers.get("Authorization", "")))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", judge
    server.shutdown()
    server.server_close()


def test_a_token_at_its_last_moment_is_not_handed_out(
    hasty_cloud: CloudProcess, client: httpx.Client, tmp_path: Path
) -> None:
    """azure-identity gives out what it has cached until it has ended: too late to be sent."""
    mine = hasty_cloud.register_application(federated=True, roles={AUDIENCE: [ROLE]})["client_id"]
    source = AzureIdentityTokenSource(_workload(hasty_cloud, mine, tmp_path), AUDIENCE)
    first = source.fetch(client)
    time.sleep(max(0.0, first.expires_at - 0.4 - time.monotonic()))
    second = source.fetch(client)
    assert second.value != first.value
    assert time.monotonic() >= first.expires_at, "the first was used up, not thrown away"


@pytest.mark.parametrize("kind", ["workload", "managed"])
def test_tokens_that_azure_identity_caches_to_their_end_never_fail_a_request(
    kind: str,
    hasty_cloud: CloudProcess,
    resource: tuple[str, Resource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two-second tokens, four threads, eight seconds: azure-identity renews none before its end by itself."""
    url, judge = resource
    if kind == "workload":
        mine = hasty_cloud.register_application(federated=True, roles={AUDIENCE: [ROLE]})["client_id"]
        credential: Any = _workload(hasty_cloud, mine, tmp_path)
    else:
        hasty_cloud.assign_identity(roles={AUDIENCE: [ROLE]})
        _set(monkeypatch, hasty_cloud.identity_environment)
        credential = ManagedIdentityCredential()
    with httpx.Client(timeout=10, trust_env=False) as client:
        client.auth = BearerAuth(AzureIdentityTokenSource(credential, AUDIENCE), client, [url])
        end = time.monotonic() + 8

        def read(number: int) -> set[int]:
            seen = set()
            while time.monotonic() < end:
                seen.add(client.get(f"{url}/{number}").status_code)
                time.sleep(0.01)
            return seen

        with ThreadPoolExecutor(4) as pool:
            seen = set().union(*pool.map(read, range(4)))
    assert seen == {200}
    used = {verdict for verdict in judge.verdicts if "." in verdict}
    assert 3 <= len(used) <= 12, "renewed in time, and not at each request"


# --- secrets --------------------------------------------------------------------------------------


def test_no_token_is_in_any_log_repr_or_error(
    cloud: CloudProcess, client: httpx.Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything logged at DEBUG by every library, every repr, and every traceback with its chain."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    mine = cloud.register_application(federated=True, secret=SECRET, roles={AUDIENCE: [ROLE]})["client_id"]
    tokens: list[str] = []

    def attempt(source: AzureIdentityTokenSource) -> None:
        seen.append(repr(source))
        try:
            token = source.fetch(client)
            tokens.append(token.value)
            seen.append(repr(token))
        except ExportError as error:
            assert pickle.loads(pickle.dumps(error)).args == error.args
            assert error.__cause__ is None
            assert error.__context__ is None, "the chain would carry the request, and with it the token"
            seen.extend([str(error), repr(error), "".join(traceback.format_exception(error))])

    attempt(AzureIdentityTokenSource(_workload(cloud, mine, tmp_path), AUDIENCE))
    tokens.append((tmp_path / "azure-identity-token").read_text())
    attempt(AzureIdentityTokenSource(_workload(cloud, str(uuid.uuid4()), tmp_path), AUDIENCE))
    tokens.append((tmp_path / "azure-identity-token").read_text())
    attempt(AzureIdentityTokenSource(_workload(cloud, mine, tmp_path, subject="other"), AUDIENCE))
    tokens.append((tmp_path / "azure-identity-token").read_text())
    everything = "\n".join([caplog.text, *seen])
    assert "AADSTS700016" in everything
    assert "AADSTS700213" in everything
    assert len(tokens) == 4
    for token in tokens:
        assert token not in everything
        assert token.split(".")[2] not in everything
