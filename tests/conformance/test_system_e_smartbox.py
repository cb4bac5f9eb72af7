"""System E: Smartbox tenants (azure-and-aidbox B and E)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from azure_storage import Azurite
from boxes import ADMIN, box_entry, register
from course import (
    PATIENTS,
    SEED,
    TYPES,
    bearers_at,
    cancel,
    export_by_hand,
    full_export,
    incremental_export,
    session_of,
)
from installation import Installation, truth_of

from pipeline.sandbox.process import SandboxProcess, start_sandbox

TENANT = "my-clinic"
FORMS = {"tenant": "meta.tenant", "_tenant": "meta._tenant"}

Opened = tuple[Installation, SandboxProcess]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, azurite: Azurite) -> Iterator[Opened]:
    site = Installation(tmp_path_factory.mktemp("smartbox"), azurite, azurite.new_container(), [])
    site.new_key("smartbox")
    with start_sandbox(
        stand_in="smartbox",
        patients=PATIENTS,
        seed=SEED,
        export_seconds=1.0,
        admin_token=ADMIN,
        jwks_cache_seconds=1,
        tenant=TENANT,
        storage=azurite.connection_string,
        storage_container=azurite.new_container("smartbox"),
    ) as box:
        site.sources.append(box_entry("smartbox", box, box.base_url, tenant=TENANT))
        site.write()
        yield site, box


def test_register_puts_a_client_of_the_tenant_and_check_is_green(opened: Opened) -> None:
    site, box = opened
    dry = site.cli("register", "smartbox").stdout
    assert TENANT in dry
    assert not [each for each in box.access_log() if each["method"] == "PUT"]
    register(site, "smartbox", "--tenant-form", "tenant")
    assert site.require_green("smartbox") >= {"server", "key", "token", "lake"}


def test_a_night_lands_whole_in_azure_storage(opened: Opened) -> None:
    site, _ = opened
    full_export(site, "smartbox")


def test_the_next_export_brings_what_has_changed_since(opened: Opened) -> None:
    site, box = opened
    incremental_export(site, "smartbox", box)


def test_an_export_is_cancelled_at_the_server(opened: Opened) -> None:
    site, box = opened
    cancel(site, "smartbox", box)


def test_quirk_the_fhir_base_is_the_tenants_and_the_token_endpoint_the_boxs(opened: Opened) -> None:
    """B: `{base}/tenant/{tenant}/bulk-api`, and `{base}/auth/token`."""
    site, box = opened
    export_by_hand(session_of(site, "smartbox"), "20260104T020000Z")
    paths = {each["path"] for each in box.access_log()}
    assert f"/tenant/{TENANT}/bulk-api/Group/demo/$export" in paths
    assert "/auth/token" in paths
    assert not [path for path in paths if path.startswith("/fhir")]


@pytest.mark.parametrize("form", FORMS)
def test_quirk_the_link_to_the_tenant_has_two_forms_and_the_wrong_one_is_a_403_with_words(
    tmp_path_factory: pytest.TempPathFactory, opened: Opened, form: str
) -> None:
    """B: `meta._tenant: my-clinic`, newer: `meta.tenant {id, resourceType: Tenant}`."""
    site, _ = opened
    other = next(each for each in FORMS if each != form)
    with start_sandbox(
        stand_in="smartbox",
        patients=2,
        admin_token=ADMIN,
        jwks_cache_seconds=0,
        tenant=TENANT,
        tenant_form=FORMS[form],
    ) as box:
        folder = tmp_path_factory.mktemp("forms")
        one = site.beside(folder, box_entry("smartbox", box, box.base_url, tenant=TENANT))
        register(one, "smartbox", "--tenant-form", other)
        wrong = one.check("smartbox")
        assert [each["name"] for each in wrong.values() if each["status"] == "bad"] == ["read"]
        assert "tenant" in (wrong["read"]["cause"] + wrong["read"]["advice"]).lower()
        register(one, "smartbox", "--tenant-form", form)
        one.require_green("smartbox")


def test_quirk_signed_links_into_a_storage_account_are_fetched_without_any_token(opened: Opened) -> None:
    """B: requiresAccessToken false, signed URLs of Azure storage."""
    site, box = opened
    export_id = "20260105T020000Z"
    before = len(site.azurite.requests())
    export_by_hand(session_of(site, "smartbox"), export_id)
    site.require_same("smartbox", export_id, truth_of(SEED, PATIENTS, 1, TYPES))
    fetched = [line for line in site.azurite.requests()[before:] if "sig=" in line and "GET " in line]
    assert fetched
    assert bearers_at(box.access_log())
    shown = site.cli("show", f"smartbox/{export_id}").stdout
    assert "sig=" not in shown
    assert not [name for name in site.blobs("smartbox/exports/") if b"sig=" in site.read(name)]
