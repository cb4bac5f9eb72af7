"""`fhir-export check` names what is wrong and what to do: against a real server, one cause at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.auth.signers import PemSigner
from pipeline.config import Config
from pipeline.exports.check import Verdict, check_source, first_bad
from pipeline.sandbox.process import SandboxProcess, start_sandbox

ALL = [
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
]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    found = {name: folder / f"{name}.pem" for name in ("registered", "other", "rsa")}
    for name, path in found.items():
        write_private_key(path, generate_key("RS384" if name == "rsa" else "ES384"))
    return found


@pytest.fixture(scope="module")
def kid(keys: dict[str, Path]) -> str:
    return PemSigner.from_file(keys["registered"], "ES384").kid


@pytest.fixture(scope="module")
def sandbox(keys: dict[str, Path]) -> Iterator[SandboxProcess]:
    jwk = PemSigner.from_file(keys["registered"], "ES384").public_jwk()
    with start_sandbox(patients=3, jwks={"keys": [jwk]}) as running:
        yield running


class Setup:
    """A configuration that is in order, to be changed by one thing at a time."""

    def __init__(self, sandbox: SandboxProcess, keys: dict[str, Path], folder: Path) -> None:
        self.lake = str(folder / "lake")
        self.fhir_url = sandbox.fhir_url
        self.auth: dict[str, Any] = {
            "client_id": "nightly",
            "private_key": f"file:{keys['registered']}",
            "algorithm": "ES384",
        }
        self.export: dict[str, Any] = {"level": "group", "group": "demo"}
        self.folder = folder

    def verdicts(self) -> list[Verdict]:
        source = {
            "name": "hosp_a",
            "fhir_url": self.fhir_url,
            "auth": self.auth,
            "export": self.export,
        }
        config = Config.model_validate({"lake": self.lake, "sources": [source], "folder": self.folder})
        return check_source(config, config.source(None))


@pytest.fixture
def setup(sandbox: SandboxProcess, keys: dict[str, Path], tmp_path: Path) -> Setup:
    return Setup(sandbox, keys, tmp_path)


def statuses(verdicts: list[Verdict]) -> dict[str, str]:
    return {verdict.name: verdict.status for verdict in verdicts}


def the_bad_one(verdicts: list[Verdict], name: str) -> Verdict:
    """The first bad verdict, which must be the named one and say what to do."""
    bad = first_bad(verdicts)
    assert bad is not None, verdicts
    assert bad.name == name, verdicts
    assert bad.cause
    assert bad.advice
    assert bad.exit_code
    for verdict in verdicts:
        for secret in ("PRIVATE KEY", "eyJ", "client_assertion=", "Bearer "):
            assert secret not in verdict.cause + verdict.advice
    return bad


def test_all_is_well_where_all_is_well(setup: Setup, kid: str, tmp_path: Path) -> None:
    verdicts = setup.verdicts()
    assert [verdict.name for verdict in verdicts] == ALL
    assert {verdict.status for verdict in verdicts} == {"ok"}, verdicts
    words = {verdict.name: verdict.cause for verdict in verdicts}
    assert kid in words["key"]
    assert "nightly" in words["key"]
    assert "without TLS" in words["server"]
    assert "4.0.1" in words["capability"]
    assert "$export is offered" in words["capability"]
    assert "/auth/token" in words["sign-in address"]
    assert str(tmp_path / "lake") in words["lake"]
    assert not [path for path in (tmp_path / "lake").rglob("*") if path.is_file()], "the probe is removed"


def test_no_export_is_kicked_off(setup: Setup, sandbox: SandboxProcess) -> None:
    setup.verdicts()
    assert not [entry for entry in sandbox.access_log() if "export" in entry["path"]]


def test_a_url_that_nothing_listens_at(setup: Setup) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setup.fhir_url = f"http://127.0.0.1:{port}/fhir"
    bad = the_bad_one(setup.verdicts(), "server")
    assert f"127.0.0.1:{port}" in bad.cause
    assert "the connection was refused" in bad.cause
    assert "Check host and port" in bad.advice
    assert bad.exit_code == 6


def test_a_url_with_the_wrong_path(setup: Setup, sandbox: SandboxProcess) -> None:
    setup.fhir_url = f"{sandbox.base_url}/r4"
    verdicts = setup.verdicts()
    bad = the_bad_one(verdicts, "capability")
    assert "/r4/metadata" in bad.cause
    assert "404" in bad.cause
    assert "fhir_url" in bad.advice
    assert bad.exit_code == 3
    assert statuses(verdicts) == {
        "server": "ok",
        "capability": "bad",
        "key": "ok",
        "sign-in address": "skipped",
        "token": "skipped",
        "read": "skipped",
        "group": "skipped",
        "incremental": "skipped",
        "lake": "ok",
        "clock": "ok",
    }
    skipped = [verdict.cause for verdict in verdicts if verdict.status == "skipped"]
    assert all("'capability'" in cause for cause in skipped)


def test_https_at_a_port_that_speaks_http(setup: Setup) -> None:
    setup.fhir_url = setup.fhir_url.replace("http://", "https://")
    bad = the_bad_one(setup.verdicts(), "server")
    assert "TLS" in bad.cause


def test_a_key_that_the_server_does_not_have(setup: Setup, keys: dict[str, Path]) -> None:
    setup.auth["private_key"] = f"file:{keys['other']}"
    other = PemSigner.from_file(keys["other"], "ES384").kid
    verdicts = setup.verdicts()
    bad = the_bad_one(verdicts, "token")
    assert "our key is not the one" in bad.cause
    assert "nightly" in bad.cause
    assert "Register our public key" in bad.advice
    assert other in bad.advice
    assert "fhir-export jwks" in bad.advice
    assert bad.exit_code == 3
    assert statuses(verdicts)["read"] == statuses(verdicts)["group"] == "skipped"


def test_another_key_under_the_registered_kid(setup: Setup, keys: dict[str, Path], kid: str) -> None:
    setup.auth |= {"private_key": f"file:{keys['other']}", "kid": kid}
    bad = the_bad_one(setup.verdicts(), "token")
    assert "our key is not the one" in bad.cause
    assert "signature" in bad.cause


def test_a_key_that_does_not_fit_the_algorithm(setup: Setup, keys: dict[str, Path]) -> None:
    setup.auth["private_key"] = f"file:{keys['rsa']}"
    verdicts = setup.verdicts()
    bad = the_bad_one(verdicts, "key")
    assert "ES384 needs an elliptic curve key" in bad.cause
    assert "auth.algorithm" in bad.advice
    assert bad.exit_code == 2
    assert statuses(verdicts)["server"] == statuses(verdicts)["sign-in address"] == "ok"


def test_a_key_that_is_not_there(setup: Setup, tmp_path: Path) -> None:
    setup.auth["private_key"] = "file:nowhere.pem"
    bad = the_bad_one(setup.verdicts(), "key")
    assert str(tmp_path / "nowhere.pem") in bad.cause
    assert "keys new" in bad.advice


def test_a_client_that_the_server_does_not_know(setup: Setup, kid: str) -> None:
    setup.auth["client_id"] = "nobody"
    bad = the_bad_one(setup.verdicts(), "token")
    assert "does not know client 'nobody'" in bad.cause
    assert "auth.client_id" in bad.advice
    assert kid in bad.advice
    assert bad.exit_code == 3


def test_a_scope_that_is_not_granted(setup: Setup) -> None:
    setup.auth["scope"] = "user/*.read"
    bad = the_bad_one(setup.verdicts(), "token")
    assert "invalid_scope" in bad.cause
    assert "user/*.read" in bad.advice
    assert "auth.scope" in bad.advice


def test_a_scope_that_is_granted_but_does_not_cover_the_read(setup: Setup) -> None:
    setup.auth["scope"] = "system/Observation.rs"
    verdicts = setup.verdicts()
    bad = the_bad_one(verdicts, "read")
    assert "403" in bad.cause
    assert "token is good" in bad.cause
    assert "system/Observation.rs" in bad.advice
    assert statuses(verdicts)["token"] == "ok"


def test_a_group_that_is_not_there(setup: Setup) -> None:
    setup.export["group"] = "no-such-group"
    verdicts = setup.verdicts()
    bad = the_bad_one(verdicts, "group")
    assert "'no-such-group'" in bad.cause
    assert "export.group" in bad.advice
    assert bad.exit_code == 2
    assert statuses(verdicts)["read"] == "ok"


def test_without_a_group_level_no_group_is_looked_for(setup: Setup) -> None:
    setup.export = {"level": "patient"}
    assert [verdict.name for verdict in setup.verdicts()] == [name for name in ALL if name != "group"]


def test_a_lake_below_a_file(setup: Setup, tmp_path: Path) -> None:
    """Not writable for root either."""
    (tmp_path / "file").write_text("")
    setup.lake = str(tmp_path / "file" / "lake")
    verdicts = setup.verdicts()
    bad = the_bad_one(verdicts, "lake")
    assert setup.lake in bad.cause
    assert "write" in bad.advice
    assert bad.exit_code == 7
    assert {status for name, status in statuses(verdicts).items() if name != "lake"} == {"ok"}


def test_a_lake_that_may_only_be_read(setup: Setup, tmp_path: Path) -> None:
    """As anybody but root; root may write everywhere, and then all is well."""
    (tmp_path / "lake").mkdir(mode=0o555)
    verdicts = setup.verdicts()
    if os.access(tmp_path / "lake", os.W_OK):
        assert first_bad(verdicts) is None
    else:
        assert "Permission denied" in the_bad_one(verdicts, "lake").cause


def test_several_things_at_once_are_told_in_the_order_to_mend_them(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    setup.lake = str(tmp_path / "file" / "lake")
    setup.auth["client_id"] = "nobody"
    setup.export["group"] = "no-such-group"
    verdicts = setup.verdicts()
    assert [verdict.name for verdict in verdicts if verdict.status == "bad"] == ["token", "lake"]


@pytest.fixture
def misbehave(sandbox: SandboxProcess) -> Iterator[Callable[..., None]]:
    yield lambda **fault: sandbox.control(faults=[{"times": None, **fault}])
    sandbox.control(faults=[])


def test_a_token_for_another_server_is_told_from_a_missing_role(
    setup: Setup, misbehave: Callable[..., None]
) -> None:
    """Azure-and-aidbox C: 401 at the read means audience or tenant, 403 means role."""
    misbehave(path="/fhir/Patient", status=401, body={"resourceType": "OperationOutcome"})
    bad = the_bad_one(setup.verdicts(), "read")
    assert "401" in bad.cause
    assert "auth.audience" in bad.advice


def test_a_server_of_another_fhir_version(setup: Setup, misbehave: Callable[..., None]) -> None:
    statement = {"resourceType": "CapabilityStatement", "fhirVersion": "5.0.0"}
    misbehave(path="/metadata", status=200, body=statement)
    bad = the_bad_one(setup.verdicts(), "capability")
    assert "5.0.0" in bad.cause
    assert "R4" in bad.cause


def test_a_login_page_in_place_of_a_server(setup: Setup, misbehave: Callable[..., None]) -> None:
    misbehave(path="/metadata", status=200, body="<html><body>Please sign in</body></html>")
    bad = the_bad_one(setup.verdicts(), "capability")
    assert "HTML page" in bad.cause
    assert "FHIR base" in bad.advice
    assert bad.exit_code == 3


def test_a_server_that_is_silent_about_export_may_be_in_order(
    setup: Setup, misbehave: Callable[..., None]
) -> None:
    statement = {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1", "rest": [{"mode": "server"}]}
    misbehave(path="/metadata", status=200, body=statement)
    verdicts = setup.verdicts()
    assert first_bad(verdicts) is None
    assert "does not mention $export" in verdicts[1].cause


def test_metadata_behind_a_sign_in_does_not_stop_the_check(
    setup: Setup, misbehave: Callable[..., None]
) -> None:
    misbehave(path="/metadata", status=401, body="")
    verdicts = setup.verdicts()
    assert first_bad(verdicts) is None
    assert "does not show /metadata to everyone" in verdicts[1].cause


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_patient_search_may_be_in_order(
    setup: Setup, misbehave: Callable[..., None], status: int
) -> None:
    misbehave(path="/fhir/Patient", status=status, body="")
    found = statuses(setup.verdicts())
    assert (found["read"], found["group"]) == ("skipped", "ok")


def test_a_group_that_may_not_be_read_is_left_to_the_kickoff(
    setup: Setup, misbehave: Callable[..., None]
) -> None:
    misbehave(path="/fhir/Group", status=403, body="")
    verdicts = setup.verdicts()
    assert first_bad(verdicts) is None
    assert statuses(verdicts)["group"] == "skipped"


def test_a_server_in_trouble_is_not_taken_for_a_wrong_configuration(
    setup: Setup, misbehave: Callable[..., None]
) -> None:
    misbehave(path="/fhir/Patient", status=503, body="")
    bad = the_bad_one(setup.verdicts(), "read")
    assert "503" in bad.cause
    assert "later" in bad.advice
    assert bad.exit_code == 6


def test_a_configured_token_url_is_used_without_discovery(setup: Setup, sandbox: SandboxProcess) -> None:
    setup.auth |= {"token_url": sandbox.token_url}
    before = len(sandbox.access_log())
    verdicts = setup.verdicts()
    assert first_bad(verdicts) is None
    assert "by the configuration" in verdicts[3].cause
    assert "smart-configuration" not in str(sandbox.access_log()[before:])
