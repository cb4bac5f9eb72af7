"""System D: the Microsoft FHIR server that writes the export into the customer's storage account
(azure-and-aidbox D)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from authority import Authority
from azure_storage import ACCOUNT, Azurite, start_azurite
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

from pipeline.errors import DownloadRefused
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud
from pipeline.sandbox.process import SandboxProcess, start_sandbox

AUDIENCE = "https://exports.fhir.azurehealthcareapis.com"

Opened = tuple[Installation, SandboxProcess, Azurite, str]


@pytest.fixture(scope="module")
def exports_account(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Azurite]:
    """The customer's account, apart from the lake's; it writes down every request's headers."""
    with start_azurite(tmp_path_factory.mktemp("exports"), authority, headers=True) as running:
        yield running


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory,
    azurite: Azurite,
    exports_account: Azurite,
    authority: Authority,
) -> Iterator[Opened]:
    site = Installation(tmp_path_factory.mktemp("azure-export"), azurite, azurite.new_container(), [])
    container = exports_account.new_container("exports")
    with start_cloud(certificate=authority.certificate, key=authority.key) as cloud:
        cloud.register_application(client_id="nightly", secret="s1", roles={AUDIENCE: ["FHIR Data Exporter"]})
        cloud.register_application(client_id="blob-reader", secret="s2")
        with start_sandbox(
            stand_in="azure-export",
            patients=PATIENTS,
            seed=SEED,
            export_seconds=0.5,
            file_lines=7,
            line_ends="crlf",
            token_keys=cloud.token_keys_url,
            token_audience=AUDIENCE,
            storage=exports_account.connection_string,
            storage_container=container,
        ) as box:
            site.sources.append(entry(site, box, cloud, exports_account))
            site.write()
            yield site, box, exports_account, container


def entry(
    site: Installation, box: SandboxProcess, cloud: CloudProcess, account: Azurite
) -> dict[str, object]:
    identity = {"tenant_id": cloud.tenant, "authority": cloud.authority}
    return {
        "name": "exports",
        "profile": "azure-fhir-export",
        "fhir_url": box.fhir_url,
        "auth": {
            "kind": "entra-secret",
            "client_id": "nightly",
            "client_secret": site.secret("entra", "s1"),
            "audience": AUDIENCE,
            **identity,
        },
        "downloads": {
            "storage": {
                "account": ACCOUNT,
                "endpoint": account.endpoint,
                "kind": "service-principal",
                "client_id": "blob-reader",
                "client_secret": site.secret("reader", "s2"),
                **identity,
            }
        },
        "export": export_entry(),
        "flat": False,
        "current": False,
        "knobs": {"first_poll": 0.3},
    }


def credentials_in(account: Azurite) -> set[str]:
    """Fingerprints of the bearer tokens that Azurite has been sent, by its own log."""
    seen = re.findall(r'"authorization":"Bearer ([^"]+)"', account.headers_log.read_text())
    return {hashlib.sha256(each.encode()).hexdigest()[:16] for each in seen}


def test_check_finds_everything_in_order_the_export_storage_too(opened: Opened) -> None:
    site, _, _, _ = opened
    assert site.require_green("exports") >= {"server", "token", "read", "export storage", "lake"}


def test_check_looks_into_one_container_where_the_role_is_for_that_one(opened: Opened) -> None:
    site, _, _, container = opened
    storage = site.entry("exports")["downloads"]["storage"]
    try:
        storage["container"] = container
        site.write()
        assert "export storage" in site.require_green("exports")
        storage["container"] = "not-there"
        site.write()
        found = site.check("exports")["export storage"]
    finally:
        del storage["container"]
        site.write()
    assert found["status"] == "bad"
    assert "not-there" in found["cause"]


def test_register_prints_both_roles_on_the_storage_account_and_the_export_setting(opened: Opened) -> None:
    site, _, _, _ = opened
    said = site.cli("register", "exports").stdout
    assert "Storage Blob Data Reader" in said
    assert "Storage Blob Data Contributor" in said
    assert "FHIR Data Exporter" in said
    assert "export" in said.lower()


def test_a_night_of_many_small_files_with_windows_line_ends_lands_whole(opened: Opened) -> None:
    site, _, _, _ = opened
    export_id = full_export(site, "exports")
    assert site.fact("exports", export_id, "receipts/0001.json")["files"] >= 10


def test_the_next_export_brings_what_has_changed_since(opened: Opened) -> None:
    site, box, _, _ = opened
    incremental_export(site, "exports", box)


def test_an_export_is_cancelled_at_the_server(opened: Opened) -> None:
    """D: cancel: DELETE 202, then 404."""
    site, box, _, _ = opened
    cancel(site, "exports", box)


def test_quirk_blobs_are_read_with_the_storage_credential_and_no_token_sees_the_others_server(
    opened: Opened,
) -> None:
    """D: the FHIR bearer gets 403 there; whole-run proof by the logs of both servers."""
    site, box, account, _ = opened
    export_id = "20260104T020000Z"
    export_by_hand(session_of(site, "exports"), export_id)
    site.require_same("exports", export_id, truth_of(SEED, PATIENTS, 1, TYPES))
    at_fhir, at_storage = bearers_at(box.access_log()), credentials_in(account)
    assert at_fhir
    assert at_storage
    assert at_fhir & at_storage == set()
    got = [line for line in account.requests() if '"GET ' in line and ".ndjson" in line]
    assert len(got) >= 10
    assert not [line for line in got if "sig=" in line]


def test_quirk_what_a_failed_job_left_in_the_container_is_never_read_or_listed(opened: Opened) -> None:
    """D: a failed job leaves orphans: read the manifest, never list the container."""
    site, _, account, container = opened
    orphan = b'{"resourceType":"Patient","id":"of-a-failed-job"}\n'
    account.container(container).upload_blob("export-failed/Patient-1-1.ndjson", orphan)
    before = len(account.requests())
    export_id = "20260105T020000Z"
    receipt = export_by_hand(session_of(site, "exports"), export_id)
    assert receipt.rows == sum(map(len, truth_of(SEED, PATIENTS, 1, TYPES).values()))
    ours = account.requests()[before:]
    assert not [line for line in ours if "comp=list" in line]
    # Azurite writes its log a little late: our own upload of the orphan may be in it.
    assert not [line for line in ours if "export-failed" in line and '"PUT ' not in line]


def test_quirk_a_manifest_that_names_another_account_gets_no_credential(opened: Opened) -> None:
    """D: only for hosts of the configured account."""
    site, _, account, _ = opened
    storage = site.entry("exports")["downloads"]["storage"]
    right = storage["endpoint"]
    storage["endpoint"] = right.rsplit("/", 1)[0].rsplit(":", 1)[0] + ":1/devstoreaccount1"
    site.write()
    try:
        before = len(account.requests())
        with pytest.raises(DownloadRefused) as refused:
            export_by_hand(session_of(site, "exports"), "20260106T020000Z")
        assert not [line for line in account.requests()[before:] if '"GET ' in line and ".ndjson" in line]
    finally:
        storage["endpoint"] = right
        site.write()
    assert "storage" in str(refused.value)


def test_quirk_the_next_since_is_the_till_that_was_sent_where_exports_go_on_from_each_other(
    opened: Opened,
) -> None:
    """D: send `_till` a few minutes behind now; next `_since` = `_till` (or transactionTime, if earlier).

    A group's exports are always full: an end would only leave out what is newest, so none is sent.
    """
    site, box, _, _ = opened
    export_by_hand(session_of(site, "exports"), "20260107T020000Z")
    assert "_till" not in dict(box.control()["jobs"][-1]["parameters"])
    export = site.entry("exports")["export"]
    export.update(level="system", group=None)
    site.write()
    try:
        first = export_by_hand(session_of(site, "exports"), "20260108T020000Z")
        asked = dict(box.control()["jobs"][-1]["parameters"])
        assert "_since" not in asked
        assert datetime.fromisoformat(asked["_till"]) < datetime.now(UTC) - timedelta(minutes=4)
        ends = [asked["_till"], first.transaction_time or ""]
        assert first.watermark == min(ends, key=datetime.fromisoformat)
        export_by_hand(session_of(site, "exports"), "20260109T020000Z")
        assert dict(box.control()["jobs"][-1]["parameters"])["_since"] == first.watermark
    finally:
        export.update(level="group", group="demo")
        site.write()
