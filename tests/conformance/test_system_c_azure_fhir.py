"""System C: Azure Health Data Services with an Entra identity (azure-and-aidbox C).

FHIR server, Entra and storage speak TLS; the lake is opened with a bearer token of a service principal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from authority import Authority
from azure_storage import Azurite
from course import (
    PATIENTS,
    SEED,
    TYPES,
    cancel,
    export_by_hand,
    export_entry,
    full_export,
    incremental_export,
    session_of,
)
from installation import Installation, truth_of

from pipeline.errors import ConfigError
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud
from pipeline.sandbox.process import SandboxProcess, start_sandbox

AUDIENCE = "https://hospital-fhir.fhir.azurehealthcareapis.com"
EXPORTER = "FHIR Data Exporter"
SECRET = "the-secret-of-the-night"

Opened = tuple[Installation, SandboxProcess, CloudProcess]


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, azurite_tls: Azurite, authority: Authority
) -> Iterator[Opened]:
    site = Installation(tmp_path_factory.mktemp("azure-fhir"), azurite_tls, azurite_tls.new_container(), [])
    tls = {"certificate": authority.certificate, "key": authority.key}
    with start_cloud(**tls) as cloud:
        cloud.register_application(client_id="nightly", secret=SECRET, roles={AUDIENCE: [EXPORTER]})
        cloud.register_application(client_id="lake-writer", secret="of-the-lake")
        with start_sandbox(
            stand_in="azure-fhir",
            patients=PATIENTS,
            seed=SEED,
            export_seconds=0.5,
            token_keys=cloud.token_keys_url,
            token_audience=AUDIENCE,
            relative_location=True,
            **tls,
        ) as box:
            site.lake_auth = {
                "kind": "service-principal",
                "tenant_id": cloud.tenant,
                "client_id": "lake-writer",
                "client_secret": site.secret("lake", "of-the-lake"),
                "authority": cloud.authority,
                "endpoint": azurite_tls.endpoint,
            }
            site.sources.append(
                {
                    "name": "azure",
                    "profile": "azure-fhir",
                    "fhir_url": box.fhir_url,
                    "auth": entra(site, cloud),
                    "export": export_entry(),
                    "flat": False,
                    "current": False,
                    "knobs": {"first_poll": 0.3},
                }
            )
            site.write()
            yield site, box, cloud


def entra(site: Installation, cloud: CloudProcess, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "entra-secret",
        "tenant_id": cloud.tenant,
        "client_id": "nightly",
        "client_secret": site.secret("entra", SECRET),
        "authority": cloud.authority,
        "audience": AUDIENCE,
        **changes,
    }


def with_auth(site: Installation, auth: dict[str, Any]) -> None:
    site.entry("azure")["auth"] = auth
    site.write()


def test_check_finds_everything_in_order(opened: Opened) -> None:
    site, _, _ = opened
    assert site.require_green("azure") >= {"server", "token", "read", "group", "lake"}


def test_register_prints_the_role_and_whose_object_id_it_is_for(opened: Opened) -> None:
    site, _, _ = opened
    said = site.cli("register", "azure").stdout
    assert "az role assignment create" in said
    assert EXPORTER in said
    assert "enterprise application" in said.lower()
    assert SECRET not in said


def test_a_night_lands_whole_in_azure_storage_by_bearer_tokens_alone(opened: Opened) -> None:
    site, _, cloud = opened
    before = len(site.azurite.requests())
    full_export(site, "azure")
    assert len(site.azurite.requests()) > before
    assert {each.get("resource") for each in cloud.requests(on="entra") if each["status"] == 200} >= {
        AUDIENCE,
        "https://storage.azure.com",
    }


def test_the_next_export_brings_what_has_changed_since(opened: Opened) -> None:
    site, box, _ = opened
    incremental_export(site, "azure", box)


def test_an_export_is_cancelled_at_the_server(opened: Opened) -> None:
    site, box, _ = opened
    cancel(site, "azure", box)


def test_quirk_a_wrong_and_an_expired_secret_are_not_tried_again_and_say_what_to_do(opened: Opened) -> None:
    """C: AADSTS7000215, 7000222: not retryable."""
    site, _, cloud = opened
    with_auth(site, entra(site, cloud, client_secret=site.secret("wrong", "not-the-secret")))
    try:
        before = len(cloud.requests(on="entra"))
        wrong = site.check("azure")["token"]
        asked = [
            each
            for each in cloud.requests(on="entra")[before:]
            if each.get("resource") != "https://storage.azure.com"
        ]
        assert wrong["status"] == "bad"
        assert "secret is wrong" in wrong["advice"]
        assert len([each for each in asked if each["status"] == 401]) == 1, "asked once"
        cloud.register_application(client_id="old", secret="was-good", roles={AUDIENCE: [EXPORTER]})
        cloud.expire_secret("old")
        with_auth(site, entra(site, cloud, client_id="old", client_secret=site.secret("old", "was-good")))
        expired = site.check("azure")["token"]
        assert "expired" in expired["advice"]
    finally:
        with_auth(site, entra(site, cloud))


def test_quirk_the_older_endpoint_takes_a_resource_and_counts_in_strings(opened: Opened) -> None:
    """C: v1 with `resource={audience}`; `expires_in` is a string there."""
    site, _, cloud = opened
    with_auth(site, entra(site, cloud, entra_version="v1"))
    try:
        export_id = "20260104T020000Z"
        export_by_hand(session_of(site, "azure"), export_id)
    finally:
        with_auth(site, entra(site, cloud))
    site.require_same("azure", export_id, truth_of(SEED, PATIENTS, 1, TYPES))
    assert any(each["path"].endswith("/oauth2/token") for each in cloud.requests(on="entra"))


@pytest.mark.parametrize("kind", ["managed-identity", "workload-identity"])
def test_quirk_the_identity_of_the_machine_replaces_the_secret(opened: Opened, kind: str) -> None:
    """C: managed identity or workload identity through azure-identity; prefer it."""
    site, _, cloud = opened
    if kind == "managed-identity":
        cloud.assign_identity(roles={AUDIENCE: [EXPORTER]})
        environment = cloud.identity_environment
    else:
        cloud.register_application(client_id="pod", federated=True, roles={AUDIENCE: [EXPORTER]})
        environment = cloud.workload_environment("pod", site.folder)
    with_auth(
        site,
        {
            "kind": kind,
            "audience": AUDIENCE,
            **({"authority": cloud.authority} if kind != "managed-identity" else {}),
        },
    )
    try:
        assert site.require_green("azure", **environment) >= {"token", "read", "lake"}
    finally:
        with_auth(site, entra(site, cloud))


def test_quirk_401_is_the_audience_and_403_the_role(opened: Opened) -> None:
    """C: the connectivity check's third step."""
    site, _, cloud = opened
    cloud.allow_resource("https://another.example.org")
    with_auth(site, entra(site, cloud, audience="https://another.example.org"))
    try:
        audience = site.check("azure")["read"]
        cloud.register_application(
            client_id="guest", secret="welcome", roles={AUDIENCE: ["FHIR Data Nobody"]}
        )
        with_auth(site, entra(site, cloud, client_id="guest", client_secret=site.secret("guest", "welcome")))
        role = site.check("azure")["read"]
    finally:
        with_auth(site, entra(site, cloud))
    assert audience["status"] == role["status"] == "bad"
    assert "audience" in audience["advice"]
    assert "role" in role["advice"]


def test_quirk_what_the_strict_server_refuses_is_refused_before_anything_is_sent(opened: Opened) -> None:
    """D: `_typeFilter` breaks on commas in values; other parameters get 400."""
    site, box, _ = opened
    kicks = len([each for each in box.access_log() if each["path"].endswith("$export")])
    for number, changes in enumerate(
        ({"type_filters": ["Patient?gender=male,female"]}, {"elements": ["id"]})
    ):
        site.entry("azure")["export"].update(changes)
        site.write()
        try:
            with pytest.raises(ConfigError):
                export_by_hand(session_of(site, "azure"), f"20260201T02000{number}Z")
        finally:
            for name in changes:
                del site.entry("azure")["export"][name]
            site.write()
    assert len([each for each in box.access_log() if each["path"].endswith("$export")]) == kicks
