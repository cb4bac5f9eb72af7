"""System A: Azure API Management's "SMART on FHIR g10" front (azure-and-aidbox A)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from azure_storage import Azurite
from course import (
    PATIENTS,
    SEED,
    TYPES,
    bearers_at,
    cancel,
    export_by_hand,
    export_entry,
    full_export,
    incremental_export,
    session_of,
)
from installation import Installation, truth_of

from pipeline.errors import AuthError
from pipeline.sandbox.process import SandboxProcess, start_sandbox

CUSTOM_HOST = "https://gateway-of-the-hospital.azure-api.net"
"""ApiManagementHostName: what `aud` must name although the gateway is called by another name."""

Opened = tuple[Installation, SandboxProcess]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, azurite: Azurite) -> Iterator[Opened]:
    site = Installation(tmp_path_factory.mktemp("apim"), azurite, azurite.new_container(), [])
    with start_sandbox(
        stand_in="apim",
        patients=PATIENTS,
        seed=SEED,
        jwks=site.new_key("apim"),
        export_seconds=0.5,
        apim_host=CUSTOM_HOST,
        empty_is_404=True,
        error_file=True,
    ) as box:
        site.sources.append(entry(box))
        site.write()
        yield site, box


def entry(box: SandboxProcess, **auth: Any) -> dict[str, Any]:
    return {
        "name": "apim",
        "profile": "apim-smart",
        "fhir_url": box.fhir_url,
        "auth": {
            "client_id": "nightly",
            "private_key": "file:keys/apim.pem",
            "audience": f"{CUSTOM_HOST}/auth/token",
            **auth,
        },
        "export": export_entry(),
        "flat": False,
        "current": False,
        "knobs": {"first_poll": 0.3},
    }


def test_check_finds_everything_in_order(opened: Opened) -> None:
    site, _ = opened
    assert site.require_green("apim") >= {"server", "key", "token", "lake"}


def test_register_prints_the_vault_secret_and_the_named_value_with_our_public_key(opened: Opened) -> None:
    site, box = opened
    said = site.cli("register", "apim").stdout
    (key,) = json.loads(site.cli("jwks").stdout)["keys"]
    assert "az keyvault secret set" in said
    assert f"jwks_url={box.fhir_url}/.well-known/jwks.json" in said
    assert "az apim nv" in said
    assert key["n"] in said
    assert "system.all.read" in said


def test_a_night_lands_whole_in_azure_storage(opened: Opened) -> None:
    site, _ = opened
    full_export(site, "apim")


def test_the_next_export_brings_what_has_changed_since(opened: Opened) -> None:
    site, box = opened
    incremental_export(site, "apim", box)


def test_an_export_is_cancelled_at_the_server(opened: Opened) -> None:
    site, box = opened
    cancel(site, "apim", box)


def test_quirk_the_audience_is_the_management_host_and_not_the_url_that_is_called(opened: Opened) -> None:
    """A: `aud` exactly `https://{ApiManagementHostName}/auth/token`; errors are {"Name","Id","Code"}."""
    site, box = opened
    auth = site.entry("apim")["auth"]
    right = auth.pop("audience")
    site.write()
    try:
        token = site.check("apim")["token"]
    finally:
        auth["audience"] = right
        site.write()
    assert token["status"] == "bad"
    assert "auth.audience" in token["advice"]
    assert box.token_url != right


def test_quirk_a_404_for_a_wholly_empty_result_is_an_export_without_rows(opened: Opened) -> None:
    """A: v2 answers 404 when the result is wholly empty."""
    site, box = opened
    site.entry("apim")["export"]["group"] = "empty"
    site.write()
    try:
        receipt = export_by_hand(session_of(site, "apim"), "20260104T020000Z")
    finally:
        site.entry("apim")["export"]["group"] = "demo"
        site.write()
    assert receipt.rows == 0
    polls = [each for each in box.access_log() if "/_operations/export/" in each["path"]]
    assert polls[-1]["status"] in (202, 404)
    assert any(each["status"] == 404 and each["method"] == "GET" for each in polls)


def test_quirk_the_bearer_stays_at_the_gateway_though_the_manifest_wants_it_at_a_blob_host(
    opened: Opened,
) -> None:
    """A: requiresAccessToken is forced true, error[].url is not rewritten and lies on another host."""
    site, box = opened
    export_id = "20260105T020000Z"
    receipt = export_by_hand(session_of(site, "apim"), export_id)
    site.require_same("apim", export_id, truth_of(SEED, PATIENTS, 1, TYPES))
    assert receipt.watermark is None, "what the error file says is not known: the next export begins before"
    host = (box.storage_url or "").split("//")[1]
    at_storage = [each for each in box.access_log() if each.get("host") == host]
    assert bearers_at(at_storage) == set()
    assert bearers_at(box.access_log())


def test_quirk_a_token_without_the_role_for_all_is_refused_with_words(opened: Opened) -> None:
    """A: fhir-server answers 403 to exports with user.* scopes; the role is system.all.read."""
    site, _ = opened
    keys = site.home / "keys.json"
    keys.write_text(site.cli("jwks").stdout)
    with start_sandbox(
        stand_in="apim", patients=2, jwks=keys, apim_host=CUSTOM_HOST, granted_role="user.all.read"
    ) as box:
        elsewhere = site.beside(site.folder / "role", entry(box))
        with pytest.raises(AuthError) as refused:
            export_by_hand(session_of(elsewhere, "apim"), "20260106T020000Z")
    assert "403" in refused.value.cause
    assert "role" in refused.value.advice
