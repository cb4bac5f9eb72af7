"""`fhir-export register` as it is typed: prints, sends nothing, and never shows a secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.auth.keys import generate_key, write_private_key

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sources on hosts that do not exist: whatever were sent would fail."""
    home = tmp_path_factory.mktemp("home")
    write_private_key(home / "key.pem", generate_key("RS384"))
    (home / "entra.txt").write_text("never-to-be-shown")
    smart = {"client_id": "nightly", "private_key": "file:key.pem"}
    entra = {
        "kind": "entra-secret",
        "client_id": "an-application",
        "tenant_id": "contoso.example",
        "client_secret": "file:entra.txt",
    }
    fhir = "https://clinic-main.fhir.azurehealthcareapis.com"
    rows: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("apim-smart", "https://apim.invalid/smart", smart, {}),
        ("aidbox", "https://box.invalid", smart, {}),
        ("smartbox", "https://box.invalid", smart, {"tenant": "my-clinic"}),
        ("azure-fhir", fhir, entra, {}),
        ("azure-fhir-export", fhir, entra, {"downloads": {"storage": {"account": "contosoexports"}}}),
        ("smart", "https://fhir.invalid/r4", smart, {}),
    ]
    sources = [
        {
            "name": profile.replace("-", "_"),
            "profile": profile,
            "fhir_url": url,
            "auth": auth,
            "export": {"group": "g"},
            **more,
        }
        for profile, url, auth, more in rows
    ]
    (home / "exports.yaml").write_text(yaml.safe_dump({"lake": "lake", "sources": sources}))
    return home


def register(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "fhir-export"), "--config", str(folder / "exports.yaml"), "register", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("source", "telling"),
    [
        ("apim_smart", "az keyvault secret set"),
        ("aidbox", "PUT https://box.invalid/AccessPolicy/nightly"),
        ("smartbox", '"_tenant": "my-clinic"'),
        ("azure_fhir", "FHIR Data Exporter"),
        ("azure_fhir_export", "Storage Blob Data Contributor"),
        ("smart", '"token_endpoint_auth_method": "private_key_jwt"'),
    ],
)
def test_it_prints_without_any_network_or_secret(folder: Path, source: str, telling: str) -> None:
    done = register(folder, source)
    assert done.returncode == 0, done.stderr
    assert telling in done.stdout
    assert done.stderr == ""
    assert "never-to-be-shown" not in done.stdout
    assert "PRIVATE" not in done.stdout


def test_as_json_it_is_one_value(folder: Path) -> None:
    found = json.loads(register(folder, "aidbox", "--json").stdout)
    assert [step["requests"][0]["url"] for step in found["steps"]] == [
        "https://box.invalid/Client/nightly",
        "https://box.invalid/AccessPolicy/nightly",
    ]


def test_names_that_are_given_take_the_place_of_what_is_to_be_filled_in(folder: Path) -> None:
    given = ("--vault", "contosobackkv", "--apim-name", "contoso", "--resource-group", "rg")
    found = json.loads(register(folder, "apim_smart", "--json", *given).stdout)
    assert set(found["fill_in"]) == {"<secret-file>", "<fhir-app-id>"}


def test_a_refused_option_is_told_in_plain_words(folder: Path) -> None:
    done = register(folder, "smartbox", "--tenant-form", "bad")
    assert done.returncode == 2
    assert "'--tenant-form': 'bad' is not one of" in done.stderr
    assert "Value error" not in done.stderr


@pytest.mark.parametrize("source", ["azure_fhir", "azure_fhir_export", "smart"])
def test_where_nothing_can_be_done_from_here_apply_says_so(folder: Path, source: str) -> None:
    done = register(folder, source, "--apply")
    assert done.returncode == 2
    assert "can be done from here" in done.stderr


@pytest.mark.parametrize("url", ["http://exports.example.org/jwks.json", "https://x.example/jwks?key=1"])
def test_the_url_of_our_keys_must_be_one_that_a_server_may_trust(folder: Path, url: str) -> None:
    done = register(folder, "aidbox", "--jwks-url", url)
    assert done.returncode == 2
