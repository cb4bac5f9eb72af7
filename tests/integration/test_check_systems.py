"""`fhir-export check` for each of the five systems: all green, and one thing broken at a time.

Against the stand-ins of FHIR servers and of Azure, by the clients that exports use; nothing is patched.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from azure_storage import ACCOUNT, Azurite

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.auth.signers import PemSigner
from pipeline.config import Config
from pipeline.exports.check import Verdict, check_source, first_bad
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud
from pipeline.sandbox.process import SandboxProcess, start_sandbox

AUDIENCE = "https://clinic-main.fhir.azurehealthcareapis.com"
SECRET = "the-secret-of-nightly"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "nightly.pem"
    write_private_key(path, generate_key("RS384"))
    return path


@pytest.fixture(scope="module")
def jwks(key: Path) -> dict[str, Any]:
    return {"keys": [PemSigner.from_file(key, "RS384").public_jwk()]}


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        running.register_application(
            client_id="nightly", secret=SECRET, roles={AUDIENCE: ["FHIR Data Exporter"]}
        )
        running.register_application(client_id="without-role", secret=SECRET)
        running.register_application(client_id="blobs", secret=SECRET)
        yield running


@pytest.fixture(scope="module")
def azure(cloud: CloudProcess) -> Iterator[SandboxProcess]:
    with start_sandbox(
        stand_in="azure-fhir", patients=3, token_keys=cloud.token_keys_url, token_audience=AUDIENCE
    ) as running:
        yield running


class Setup:
    """A configuration in `folder` that is in order, to be changed by one thing at a time."""

    def __init__(self, folder: Path, profile: str, fhir_url: str, auth: dict[str, Any]) -> None:
        self.folder = folder
        self.lake = str(folder / "lake")
        self.lake_auth: dict[str, Any] = {}
        self.auth = auth
        self.source: dict[str, Any] = {
            "name": "hosp_a",
            "profile": profile,
            "fhir_url": fhir_url,
            "export": {"group": "demo"},
        }
        self.secret("entra", SECRET)

    def secret(self, name: str, value: str) -> str:
        (self.folder / name).write_text(value)
        return f"file:{name}"

    def verdicts(self) -> list[Verdict]:
        config = Config.model_validate(
            {
                "lake": self.lake,
                "lake_auth": self.lake_auth,
                "sources": [{**self.source, "auth": self.auth}],
                "folder": self.folder,
            }
        )
        return check_source(config, config.source(None))


def entra(cloud: CloudProcess, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "entra-secret",
        "tenant_id": cloud.tenant,
        "client_id": "nightly",
        "client_secret": "file:entra",
        "audience": AUDIENCE,
        "authority": cloud.authority,
        **changes,
    }


@pytest.fixture
def azure_setup(azure: SandboxProcess, cloud: CloudProcess, tmp_path: Path) -> Setup:
    return Setup(tmp_path, "azure-fhir", azure.fhir_url, entra(cloud))


def names_and_words(verdicts: list[Verdict]) -> dict[str, str]:
    assert first_bad(verdicts) is None, verdicts
    return {each.name: each.cause for each in verdicts}


def the_bad_one(verdicts: list[Verdict], name: str) -> Verdict:
    bad = first_bad(verdicts)
    assert bad is not None, verdicts
    assert bad.name == name, verdicts
    assert bad.cause
    assert bad.advice
    assert bad.exit_code
    for each in verdicts:
        for secret in ("PRIVATE KEY", "eyJ", "Bearer ", SECRET, "sig=", "AccountKey"):
            assert secret not in each.cause + each.advice
    return bad


# --- A: API Management -------------------------------------------------------------------------------


@contextmanager
def apim(tmp_path: Path, key: Path, jwks: dict[str, Any], **options: Any) -> Iterator[Setup]:
    with start_sandbox(stand_in="apim", patients=3, jwks=jwks, **options) as running:
        auth = {"client_id": "nightly", "private_key": f"file:{key}"}
        yield Setup(tmp_path, "apim-smart", running.fhir_url, auth)


def test_apim_in_order(tmp_path: Path, key: Path, jwks: dict[str, Any]) -> None:
    """azure-and-aidbox A: discovery that lists neither scopes nor algorithms is no failure."""
    with apim(tmp_path, key, jwks) as setup:
        words = names_and_words(setup.verdicts())
    assert list(words) == [
        *(
            "server",
            "capability",
            "key",
            "sign-in address",
            "token",
            "read",
            "group",
            "incremental",
            "lake",
            "clock",
        )
    ]
    assert "/auth/token" in words["sign-in address"]


@pytest.mark.parametrize("entry", ["absent", "without-tag"])
def test_apim_without_a_proper_vault_secret(
    tmp_path: Path, key: Path, jwks: dict[str, Any], entry: str
) -> None:
    """azure-and-aidbox A: errors are `{"Name","Id","Code"...}`; the way out is the registration."""
    with apim(tmp_path, key, jwks, vault_entry=entry) as setup:
        bad = the_bad_one(setup.verdicts(), "token")
    assert bad.exit_code == 3
    assert "fhir-export register hosp_a" in bad.advice


def test_apim_behind_another_name_wants_its_own_audience(
    tmp_path: Path, key: Path, jwks: dict[str, Any]
) -> None:
    """azure-and-aidbox A: `aud` exactly https://{ApiManagementHostName}/auth/token."""
    with apim(tmp_path, key, jwks, apim_host="https://contoso.azure-api.net") as setup:
        bad = the_bad_one(setup.verdicts(), "token")
        assert "auth.audience" in bad.advice
        setup.auth["audience"] = "https://contoso.azure-api.net/auth/token"
        names_and_words(setup.verdicts())


# --- B and E: the boxes ------------------------------------------------------------------------------


@contextmanager
def a_box(tmp_path: Path, key: Path, jwks: dict[str, Any], profile: str, **options: Any) -> Iterator[Setup]:
    with start_sandbox(stand_in=profile, patients=3, jwks=jwks, registered=True, **options) as running:
        auth = {"client_id": "nightly", "private_key": f"file:{key}"}
        setup = Setup(tmp_path, profile, running.base_url, auth)
        if profile == "smartbox":
            setup.source["tenant"] = "my-clinic"
        yield setup


@pytest.mark.parametrize("profile", ["aidbox", "smartbox"])
def test_a_box_in_order_by_its_address_alone(
    tmp_path: Path, key: Path, jwks: dict[str, Any], profile: str
) -> None:
    """azure-and-aidbox B: FHIR base and token URL follow from the box's address and the tenant."""
    with a_box(tmp_path, key, jwks, profile) as setup:
        words = names_and_words(setup.verdicts())
    assert "by the profile" in words["sign-in address"]
    assert "granted for 300 s" in words["token"]


def test_types_that_the_granted_scope_leaves_out_are_told_before_a_night_is_lost(
    tmp_path: Path, key: Path, jwks: dict[str, Any]
) -> None:
    """azure-and-aidbox B: `system/*.read` expands to US Core types; others need explicit scopes."""
    with a_box(tmp_path, key, jwks, "aidbox") as setup:
        setup.source["export"] = {"group": "demo", "types": ["Patient", "Claim"]}
        verdicts = setup.verdicts()
    assert first_bad(verdicts) is None
    (warned,) = [each for each in verdicts if each.status == "warn"]
    assert warned.name == "token"
    assert "Claim" in warned.cause
    assert "Patient" not in warned.cause
    assert "system/Claim.read" in warned.advice


def test_another_tenants_client(tmp_path: Path, key: Path, jwks: dict[str, Any]) -> None:
    with a_box(tmp_path, key, jwks, "smartbox") as setup:
        setup.source["tenant"] = "other-clinic"
        bad = the_bad_one(setup.verdicts(), "read")
    assert "403" in bad.cause
    assert "(tenant, or the one in fhir_url)" in bad.advice
    assert "--tenant-form" in bad.advice
    assert "fhir-export register hosp_a" in bad.advice


def test_a_tenant_that_is_not_configured(tmp_path: Path, key: Path, jwks: dict[str, Any]) -> None:
    with a_box(tmp_path, key, jwks, "smartbox") as setup:
        del setup.source["tenant"]
        bad = the_bad_one(setup.verdicts(), "server")
    assert "tenant" in bad.cause
    assert bad.exit_code == 2


# --- C: Azure FHIR -----------------------------------------------------------------------------------


def test_azure_in_order_with_a_client_secret(azure_setup: Setup) -> None:
    words = names_and_words(azure_setup.verdicts())
    assert list(words) == [
        *(
            "server",
            "capability",
            "identity",
            "sign-in address",
            "token",
            "read",
            "group",
            "incremental",
            "lake",
            "clock",
        )
    ]
    assert "client secret of application 'nightly'" in words["identity"]
    assert "roles FHIR Data Exporter" in words["token"]


def test_azure_in_order_with_the_machines_identity(
    azure_setup: Setup, cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """azure-and-aidbox C: a managed identity in place of the secret."""
    cloud.assign_identity(roles={AUDIENCE: ["FHIR Data Exporter"]})
    for name, value in cloud.identity_environment.items():
        monkeypatch.setenv(name, value)
    azure_setup.auth = {"kind": "managed-identity", "audience": AUDIENCE}
    words = names_and_words(azure_setup.verdicts())
    assert "sign-in address" not in words
    assert "managed-identity of this machine" in words["identity"]


def test_azure_in_order_with_a_pods_identity(
    azure_setup: Setup, cloud: CloudProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.register_application(client_id="pod", federated=True, roles={AUDIENCE: ["FHIR Data Exporter"]})
    for name, value in cloud.workload_environment("pod", tmp_path).items():
        monkeypatch.setenv(name, value)
    azure_setup.auth = {"kind": "workload-identity", "audience": AUDIENCE, "authority": cloud.authority}
    names_and_words(azure_setup.verdicts())


def test_azure_with_a_wrong_secret(azure_setup: Setup) -> None:
    """azure-and-aidbox C: AADSTS7000215."""
    azure_setup.secret("entra", "the-id-of-the-secret")
    bad = the_bad_one(azure_setup.verdicts(), "token")
    assert "AADSTS7000215" in bad.cause
    assert "value, not its id" in bad.advice
    assert bad.exit_code == 3


def test_azure_with_an_expired_secret(azure_setup: Setup, cloud: CloudProcess) -> None:
    """azure-and-aidbox C: AADSTS7000222."""
    cloud.register_application(client_id="old", secret=SECRET, roles={AUDIENCE: ["FHIR Data Exporter"]})
    cloud.expire_secret("old")
    azure_setup.auth["client_id"] = "old"
    bad = the_bad_one(azure_setup.verdicts(), "token")
    assert "AADSTS7000222" in bad.cause
    assert "expired" in bad.advice


def test_azure_with_an_audience_that_is_another_services(azure_setup: Setup, cloud: CloudProcess) -> None:
    """azure-and-aidbox C: 401 at the read means audience or tenant."""
    other = "https://clinic-other.fhir.azurehealthcareapis.com"
    cloud.allow_resource(other)
    azure_setup.auth["audience"] = other
    bad = the_bad_one(azure_setup.verdicts(), "read")
    assert "401" in bad.cause
    assert other in bad.cause
    assert "auth.audience" in bad.advice


def test_azure_with_an_audience_that_entra_does_not_know(azure_setup: Setup) -> None:
    azure_setup.auth["audience"] = "https://clinic-typo.fhir.azurehealthcareapis.com"
    bad = the_bad_one(azure_setup.verdicts(), "token")
    assert "AADSTS500011" in bad.cause
    assert "auth.audience" in bad.advice


def test_azure_with_a_slash_too_many_in_the_audience(azure_setup: Setup) -> None:
    """azure-and-aidbox C: `//.default` is right for an audience with a final slash, which is another one."""
    azure_setup.auth["audience"] = AUDIENCE + "/"
    bad = the_bad_one(azure_setup.verdicts(), "read")
    assert "401" in bad.cause
    assert f"'{AUDIENCE}/'" in bad.cause


def test_azure_in_another_tenant(azure_setup: Setup) -> None:
    azure_setup.auth["tenant_id"] = "11111111-2222-4333-8444-555555555555"
    bad = the_bad_one(azure_setup.verdicts(), "token")
    assert "AADSTS90002" in bad.cause
    assert "tenant" in bad.advice


def test_azure_without_the_role(azure_setup: Setup) -> None:
    """azure-and-aidbox C: 403 at the read means role; it goes to the enterprise application."""
    azure_setup.auth["client_id"] = "without-role"
    bad = the_bad_one(azure_setup.verdicts(), "read")
    assert "403" in bad.cause
    assert "FHIR Data Reader" in bad.advice
    assert "enterprise application" in bad.advice


def test_azure_without_an_identity_on_this_machine(
    azure_setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST"):
        monkeypatch.delenv(name, raising=False)
    azure_setup.auth = {"kind": "workload-identity", "audience": AUDIENCE}
    verdicts = azure_setup.verdicts()
    bad = first_bad(verdicts)
    assert bad is not None
    assert bad.name in ("identity", "token")
    assert "AZURE_FEDERATED_TOKEN_FILE" in bad.advice
    assert {each.name: each.status for each in verdicts}["server"] == "ok"


# --- D: the customer's storage -----------------------------------------------------------------------


@pytest.fixture
def export_setup(azure: SandboxProcess, cloud: CloudProcess, azurite_tls: Azurite, tmp_path: Path) -> Setup:
    setup = Setup(tmp_path, "azure-fhir-export", azure.fhir_url, entra(cloud))
    setup.source["downloads"] = {
        "storage": {
            "account": ACCOUNT,
            "kind": "service-principal",
            "tenant_id": cloud.tenant,
            "client_id": "blobs",
            "client_secret": "file:entra",
            "authority": cloud.authority,
            "endpoint": azurite_tls.endpoint,
        }
    }
    return setup


def storage_of(setup: Setup) -> dict[str, Any]:
    found: dict[str, Any] = setup.source["downloads"]["storage"]
    return found


def test_the_export_storage_in_order(export_setup: Setup) -> None:
    words = names_and_words(export_setup.verdicts())
    assert list(words)[-3:] == ["export storage", "lake", "clock"]
    assert ACCOUNT in words["export storage"]
    assert "service-principal" in words["export storage"]
    assert "127.0.0.1" in words["clock"]


def test_the_export_storage_by_sas(export_setup: Setup, azurite_tls: Azurite) -> None:
    storage = {"account": ACCOUNT, "kind": "sas", "sas": "file:sas", "endpoint": azurite_tls.endpoint}
    export_setup.source["downloads"] = {"storage": storage}
    export_setup.secret("sas", azurite_tls.sas("r"))
    names_and_words(export_setup.verdicts())
    export_setup.secret("sas", azurite_tls.sas("r", minutes=-1))
    bad = the_bad_one(export_setup.verdicts(), "export storage")
    assert "SAS has expired" in bad.advice


def test_the_export_storages_own_credential_is_wrong(export_setup: Setup, cloud: CloudProcess) -> None:
    export_setup.secret("blobs", "wrong")
    storage_of(export_setup)["client_secret"] = "file:blobs"
    verdicts = export_setup.verdicts()
    bad = the_bad_one(verdicts, "export storage")
    assert "AADSTS7000215" in bad.cause
    assert {each.name: each.status for each in verdicts}["read"] == "ok"


def test_a_broken_storage_setting_does_not_blame_the_server(export_setup: Setup) -> None:
    storage = {"account": ACCOUNT, "kind": "sas", "sas": "file:nowhere"}
    export_setup.source["downloads"] = {"storage": storage}
    verdicts = export_setup.verdicts()
    assert [each.name for each in verdicts if each.status == "bad"] == ["export storage"]


def test_an_exporting_server_without_a_storage_section(export_setup: Setup) -> None:
    del export_setup.source["downloads"]
    bad = the_bad_one(export_setup.verdicts(), "export storage")
    assert "downloads.storage" in bad.cause + bad.advice
    assert bad.exit_code == 2


def test_a_storage_account_that_nobody_has(export_setup: Setup) -> None:
    storage_of(export_setup).pop("endpoint")
    storage_of(export_setup)["account"] = "nosuchaccountofours"
    bad = the_bad_one(export_setup.verdicts(), "export storage")
    assert "nosuchaccountofours" in bad.cause
    assert "account" in bad.advice
    assert bad.exit_code == 6


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("AuthorizationPermissionMismatch", "Storage Blob Data Reader"),
        ("AuthorizationFailure", "firewall"),
        ("InvalidAuthenticationInfo", "tenant"),
    ],
)
def test_a_storage_account_that_refuses_says_why(export_setup: Setup, code: str, word: str) -> None:
    """azure-and-aidbox D: role Storage Blob Data Reader. Azurite has no roles: this account refuses as
    Azure does, by status and `x-ms-error-code`."""
    status = 401 if code == "InvalidAuthenticationInfo" else 403
    with serving(lambda _: (status, {"x-ms-error-code": code}, b"")) as server:
        storage = {"account": ACCOUNT, "kind": "sas", "sas": "file:sas", "endpoint": server.url}
        export_setup.source["downloads"] = {"storage": storage}
        export_setup.secret("sas", "sv=2023-11-03&sig=c2lnbmF0dXJl")
        bad = the_bad_one(export_setup.verdicts(), "export storage")
    assert code in bad.cause
    assert word in bad.advice
    assert [each.partition(" ")[0] for each in server.requests] == ["HEAD"]


# --- the lake on Azure -------------------------------------------------------------------------------


@pytest.fixture
def lake_setup(azure_setup: Setup, azurite: Azurite) -> Setup:
    azure_setup.lake = f"abfs://{azurite.new_container()}@{ACCOUNT}.dfs.core.windows.net/night"
    reference = azure_setup.secret("connection", azurite.connection_string)
    azure_setup.lake_auth = {"kind": "connection-string", "connection_string": reference}
    return azure_setup


def test_a_lake_on_azure_in_order_keeps_nothing_of_the_probe(lake_setup: Setup, azurite: Azurite) -> None:
    words = names_and_words(lake_setup.verdicts())
    container = lake_setup.lake.split("//")[1].split("@")[0]
    assert container in words["lake"]
    assert azurite.names(container) == []


def test_a_lake_whose_container_is_missing(lake_setup: Setup) -> None:
    lake_setup.lake = f"abfs://nobody-made-it@{ACCOUNT}.dfs.core.windows.net/night"
    bad = the_bad_one(lake_setup.verdicts(), "lake")
    assert "nobody-made-it" in bad.cause
    assert "container" in (bad.cause + bad.advice).lower()
    assert bad.exit_code == 7


def test_a_lake_that_may_only_be_read(lake_setup: Setup, azurite: Azurite) -> None:
    reference = lake_setup.secret("sas", azurite.sas("rl"))
    lake_setup.lake_auth = {"kind": "sas", "sas": reference, "endpoint": azurite.endpoint}
    bad = the_bad_one(lake_setup.verdicts(), "lake")
    assert "SAS" in bad.cause + bad.advice


# --- clocks ------------------------------------------------------------------------------------------


class Scripted:
    """What a test's own server has been asked, and where it is."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []


@contextmanager
def serving(answer: Any, date: str | None = None) -> Iterator[Scripted]:
    """A real HTTP server whose clock stands at `date` where one is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.requests.append(f"{self.command} {self.path}")
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def date_time_string(self, timestamp: float | None = None) -> str:
            return date or super().date_time_string(timestamp)

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script = Scripted(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()


def open_server(path: str) -> tuple[int, dict[str, str], bytes]:
    """A FHIR server without a sign-in."""
    kind = "CapabilityStatement" if path == "/metadata" else "Bundle"
    return 200, {}, json.dumps({"resourceType": kind, "fhirVersion": "4.0.1"}).encode()


@pytest.mark.parametrize(
    ("off_by", "status"), [(-1, "ok"), (-100, "warn"), (100, "warn"), (-1000, "bad"), (1000, "bad")]
)
def test_a_clock_that_is_off_is_told_with_its_seconds(tmp_path: Path, off_by: int, status: str) -> None:
    """Beyond a minute it is told; assertions live for four, from there on nothing works."""
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    theirs = format_datetime(datetime.now(UTC) + timedelta(seconds=off_by), usegmt=True)
    with serving(open_server, theirs) as server:
        setup = Setup(tmp_path, "smart", server.url, {"kind": "none"})
        setup.source["export"] = {"level": "patient"}
        verdicts = setup.verdicts()
    clock = verdicts[-1]
    assert (clock.name, clock.status) == ("clock", status)
    if status == "ok":
        assert first_bad(verdicts) is None
        return
    assert ("behind" if off_by > 0 else "ahead of") in clock.cause
    assert server.url in clock.cause
    assert clock.advice
    assert clock.exit_code == (2 if status == "bad" else 0)
    assert (first_bad(verdicts) is clock) == (status == "bad")


def test_without_a_sign_in_nothing_about_it_is_looked_at(tmp_path: Path) -> None:
    with serving(open_server) as server:
        setup = Setup(tmp_path, "smart", server.url, {"kind": "none"})
        setup.source["export"] = {"level": "patient"}
        verdicts = setup.verdicts()
    assert {each.name: each.status for each in verdicts} == {
        "server": "ok",
        "capability": "ok",
        "identity": "skipped",
        "read": "ok",
        "incremental": "ok",
        "lake": "ok",
        "clock": "ok",
    }


def test_what_a_read_gives_is_shown_nowhere(tmp_path: Path) -> None:
    """The read may bring patient data, whatever was asked for."""

    def telling(path: str) -> tuple[int, dict[str, str], bytes]:
        if path == "/metadata":
            return open_server(path)
        patient = {"resourceType": "Patient", "id": "p1", "name": [{"family": "Okonkwo-Lindqvist"}]}
        return 200, {}, json.dumps({"resourceType": "Bundle", "entry": [{"resource": patient}]}).encode()

    with serving(telling) as server:
        setup = Setup(tmp_path, "smart", server.url, {"kind": "none"})
        verdicts = setup.verdicts()
    assert "/Patient?_count=1&_elements=id" in server.requests[-2].split(" ")[1]
    assert "Okonkwo" not in str(verdicts)
