"""System B: Aidbox (azure-and-aidbox B)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from azure_storage import Azurite
from boxes import ADMIN, box_entry, register
from course import (
    PATIENTS,
    SEED,
    TYPES,
    cancel,
    export_by_hand,
    full_export,
    incremental_export,
    ready_by_hand,
    session_of,
)
from ingest_by_hand import ingest
from installation import Installation, truth_of

from pipeline.errors import AuthError, DownloadRefused
from pipeline.exports.attempt import claim_attempt, recorded
from pipeline.exports.manifests import open_manifest
from pipeline.exports.request import request_export
from pipeline.exports.staging import groups_of, stage_type
from pipeline.sandbox.process import SandboxProcess, start_sandbox

Opened = tuple[Installation, SandboxProcess]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, azurite: Azurite) -> Iterator[Opened]:
    site = Installation(tmp_path_factory.mktemp("aidbox"), azurite, azurite.new_container(), [])
    site.new_key("aidbox")
    with start_sandbox(
        stand_in="aidbox",
        patients=PATIENTS,
        seed=SEED,
        export_seconds=2.5,
        admin_token=ADMIN,
        jwks_cache_seconds=1,
        signed_url_seconds=60,
        storage=azurite.connection_string,
        storage_container=azurite.new_container("aidbox"),
    ) as box:
        site.sources.append(box_entry("aidbox", box, box.fhir_url))
        site.write()
        yield site, box


def test_register_puts_client_and_access_policy_and_check_tells_before_and_after(opened: Opened) -> None:
    site, box = opened
    dry = site.cli("register", "aidbox").stdout
    assert "Client/nightly" in dry
    assert "AccessPolicy/nightly" in dry
    assert not [each for each in box.access_log() if each["method"] == "PUT"], "it only prints"
    before = site.check("aidbox")["token"]
    assert before["status"] == "bad"
    register(site, "aidbox")
    puts = [each["path"] for each in box.access_log() if each["method"] == "PUT" and each["status"] < 300]
    assert puts == ["/Client/nightly", "/AccessPolicy/nightly"]
    assert site.require_green("aidbox") >= {"server", "key", "token", "read", "lake"}
    register(site, "aidbox")  # twice is as good as once


def test_a_night_lands_whole_in_azure_storage(opened: Opened) -> None:
    site, _ = opened
    full_export(site, "aidbox")


def test_the_next_export_brings_what_has_changed_since(opened: Opened) -> None:
    site, box = opened
    asked = incremental_export(site, "aidbox", box)
    assert set(asked) <= {"_outputFormat", "_type", "_since", "patient"}


def test_an_export_is_cancelled_at_the_server(opened: Opened) -> None:
    site, box = opened
    cancel(site, "aidbox", box)


def test_quirk_signed_urls_that_have_died_are_fetched_anew_with_a_fresh_manifest(
    tmp_path_factory: pytest.TempPathFactory, opened: Opened
) -> None:
    """B: signed URLs live shortly: on 403 fetch the manifest again. No bearer goes to them."""
    site, _ = opened
    keys = site.home / "aidbox-keys.json"
    keys.write_text(site.cli("jwks").stdout)
    with start_sandbox(
        stand_in="aidbox",
        patients=PATIENTS,
        seed=SEED,
        export_seconds=0,
        registered=True,
        jwks=keys,
        signed_url_seconds=2,
    ) as box:
        folder = tmp_path_factory.mktemp("signed")
        short = site.beside(folder, box_entry("aidbox", box, box.fhir_url))
        session = session_of(short, "aidbox")
        export_id = "20260201T020000Z"
        ready_by_hand(session, export_id)
        attempt = claim_attempt(session, export_id)
        with recorded(session, attempt):
            manifest = open_manifest(session, attempt)
            first, *_ = groups_of(manifest)
            stage_type(session, attempt, manifest, first)
        time.sleep(2.5)
        late = groups_of(manifest)[1]
        with suppress(DownloadRefused):  # then this attempt is over, and the next has a fresh manifest
            stage_type(session, attempt, manifest, late)
        receipt = ingest(session_of(short, "aidbox"), export_id)
        assert receipt.rows == sum(map(len, truth_of(SEED, PATIENTS, 1, TYPES).values()))
        assert any(each["status"] == 403 and "/signed/" in each["path"] for each in box.access_log()) or (
            len([each for each in box.access_log() if "$export-status" in each["path"]]) > 2
        )
        assert not [each for each in box.access_log() if "/signed/" in each["path"] and each.get("bearer")]


def test_quirk_one_export_at_a_time_is_waited_for(opened: Opened) -> None:
    """B: 429: another export runs on the box."""
    site, box = opened
    first, second = session_of(site, "aidbox"), session_of(site, "aidbox")
    facts = request_export(first, "20260301T020000Z")
    assert facts.request is not None
    url = facts.request.status_url
    box.control(faults=[{"path": r"export-status/", "method": "GET", "stuck": True}])
    first.client.status(url)  # from here on it runs until it is deleted
    box.control(faults=[])

    def refused() -> bool:
        return any(each["status"] == 429 and each["path"].endswith("/$export") for each in box.access_log())

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(export_by_hand, second, "20260302T020000Z")
        until = time.monotonic() + 120
        while not (refused() or waiting.done()) and time.monotonic() < until:
            time.sleep(0.2)
        first.client.delete(url)
        receipt = waiting.result(180)
    assert receipt.rows > 0
    assert refused()
    intents = [name for name in site.blobs("aidbox/exports/20260302T020000Z/") if "intent" in name]
    assert len(intents) > 2, "each refusal is a fact, and so is each new try"


def test_quirk_types_beyond_us_core_need_a_scope_of_their_own_and_the_refusal_says_so(opened: Opened) -> None:
    """B: system/*.read expands to about 19 US Core types; others need explicit scopes."""
    site, _ = opened
    export = site.entry("aidbox")["export"]
    export["types"] = ["Patient", "ExplanationOfBenefit"]
    site.write()
    try:
        with pytest.raises(AuthError) as refused:
            export_by_hand(session_of(site, "aidbox"), "20260401T020000Z")
    finally:
        export["types"] = list(TYPES)
        site.write()
    assert "403" in refused.value.cause
    assert "scope" in refused.value.advice


def test_quirk_tokens_of_seconds_are_renewed_through_a_long_export(opened: Opened) -> None:
    """B: the answer is good for 300 s; here for 10, in an export of 12."""
    site, _ = opened
    keys = site.home / "short-keys.json"
    keys.write_text(site.cli("jwks").stdout)
    with start_sandbox(
        stand_in="aidbox",
        patients=PATIENTS,
        seed=SEED,
        export_seconds=12,
        registered=True,
        jwks=keys,
        token_seconds=10,  # renewed at 8: a second is left, also when its end was rounded down
    ) as box:
        short = site.beside(site.folder / "short", box_entry("aidbox", box, box.fhir_url))
        receipt = export_by_hand(session_of(short, "aidbox"), "20260501T020000Z")
        assert receipt.rows == sum(map(len, truth_of(SEED, PATIENTS, 1, TYPES).values()))
        tokens = {each["bearer"] for each in box.access_log() if each.get("bearer")}
        assert len(tokens) > 1
        assert 401 not in {each["status"] for each in box.access_log()}


def test_what_register_prints_is_json_that_can_be_pasted(opened: Opened) -> None:
    site, _ = opened
    found = json.loads(site.cli("register", "aidbox", "--json").stdout)
    assert "bulk-api-client" in json.dumps(found)
