"""The stand-ins for Azure's FHIR servers, called by hand (azure-and-aidbox C and D)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from authority import Authority
from azure_storage import Azurite, storage_token
from sandbox_as_caller import (
    ENTRA_JWKS,
    KICK,
    NEXT_KEY,
    POLL,
    caller,
    diagnostics,
    entra_token,
    export,
    kick,
    lines,
    poll,
    where,
)

from pipeline.sandbox import truth
from pipeline.sandbox.process import SandboxProcess, start_sandbox

PATIENTS = 8
AUDIENCE = "https://azurehealthcareapis.com"
ISSUER = "https://sts.windows.net/3f9a0c52-0000-4000-8000-52b1e7d94c11/"
QUICK: dict[str, Any] = {
    "patients": PATIENTS,
    "export_seconds": 0,
    "token_keys": ENTRA_JWKS,
    "token_audience": AUDIENCE,
}


@pytest.fixture(scope="module")
def box() -> Iterator[SandboxProcess]:
    """It serves its files itself."""
    with start_sandbox(stand_in="azure-fhir", token_issuer=ISSUER, file_lines=100, **QUICK) as running:
        yield running


@pytest.fixture
def http(box: SandboxProcess) -> Iterator[httpx.Client]:
    with caller(box.fhir_url, entra_token(AUDIENCE)) as client:
        yield client
    box.control(night=1, faults=[])


def exporting(azurite: Azurite, **options: Any) -> SandboxProcess:
    where_to = {"storage": azurite.connection_string, "storage_container": "fhir-export"}
    return start_sandbox(stand_in="azure-export", **{**where_to, **QUICK, **options})


def blob(azurite: Azurite, url: str) -> bytes:
    """Read with the account's own credential."""
    container, _, name = url.removeprefix(azurite.endpoint + "/").partition("/")
    return azurite.container(container).download_blob(name).readall()


# -- bearers


def test_metadata_is_open_and_nothing_else(box: SandboxProcess) -> None:
    statement = httpx.get(box.fhir_url + "/metadata").json()
    assert statement["fhirVersion"] == "4.0.1"
    for path in ("/Patient", "/Group/demo/$export", "/_operations/export/x"):
        answer = httpx.get(box.fhir_url + path, headers=KICK)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200),
        ({"aud": AUDIENCE + "/"}, 401),
        ({"aud": "https://storage.azure.com"}, 401),
        ({"aud": [AUDIENCE]}, 401),
        ({"iss": "https://sts.windows.net/another-tenant/"}, 401),
        ({"exp": int(time.time()) - 1}, 401),
        ({"nbf": int(time.time()) + 86_400}, 401),  # collected long before it is run
        ({"key": NEXT_KEY}, 401),
        ({"kid": "unknown"}, 401),
        ({"roles": []}, 403),
        ({"roles": ["FHIR Data Reader"]}, 403),
    ],
)
def test_tokens_are_judged(box: SandboxProcess, changes: dict[str, Any], status: int) -> None:
    """azure-and-aidbox C, check step 3: 401 is the audience or the tenant, 403 the role."""
    with caller(box.fhir_url, entra_token(AUDIENCE, **changes)) as http:
        answer = http.get("/Patient", params={"_count": "1", "_elements": "id"})
        assert answer.status_code == status, answer.text
        assert ("www-authenticate" in answer.headers) == (status == 401)
        if status != 200:
            diagnostics(answer, status)


def test_a_stand_in_without_what_it_needs_does_not_start() -> None:
    for arguments in (["--as=azure-fhir"], ["--as=azure-export", "--token-keys=x"], ["--certificate=x"]):
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline.sandbox", *arguments],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 2
        assert b"--" in ended.stderr


# -- kick-off


@pytest.mark.parametrize(
    "query",
    [
        "_elements=id",
        "_until=2026-01-01T00:00:00Z",
        "organizeOutputBy=Patient",
        "allowPartialManifests=true",
        "patient=Patient/1",
        "_outputFormat=application/fhir+ndjson",
        "_outputFormat=Application%2Ffhir%2Bndjson",
        "_outputFormat=NDJSON",
        "_outputFormat=application%2Ffhir%2Bndjson%2Bgzip",
        "_typeFilter=Patient%3Fgender%3Dfemale",
        "_type=Observation&_typeFilter=Observation%3Fstatus%3Dfinal%2Camended",
        "_type=Observation&_typeFilter=Observation%3Fstatus%3Dfinal%5C%2Camended",
        "_type=Patient&_typeFilter=Patient%3Fgender%3Dfemale&includeAssociatedData=_deleted",
        "_type=Patient&_typeFilter=Observation%3Fstatus%3Dfinal",
        "_type=",
        "_type=Nonsense",
        "_since=2026-01-01",
        "_till=2999-01-01T00:00:00Z",
        "_container=Not_A_Container",
        "_format=xml",
        "_isParallel=maybe",
        "_maxCount=0",
        "includeAssociatedData=LatestProvenanceResources",
    ],
)
def test_a_parameter_that_the_server_does_not_take_is_refused(http: httpx.Client, query: str) -> None:
    """azure-and-aidbox D."""
    diagnostics(kick(http, query=query), 400)


@pytest.mark.parametrize(
    "query",
    [
        "_outputFormat=application%2Ffhir%2Bndjson",
        "_outputFormat=ndjson&_format=json&_isParallel=false&_maxCount=100",
        "_since=2026-01-01T00:00:00Z&_till=2026-01-01T02:00:00Z",
        "_since=2026-01-01T00:00:00%2B00:00",
        "_type=Patient&_typeFilter=Patient%3Fgender%3Dfemale,Patient%3Fgender%3Dmale",
        "_container=a-container&_anonymizationConfig=a.json&_anonymizationConfigEtag=x",
        "includeAssociatedData=_history,_deleted",
    ],
)
def test_a_parameter_that_the_server_takes_is_accepted(http: httpx.Client, query: str) -> None:
    where(kick(http, query=query))


def test_kick_off_is_by_get_with_exact_headers(http: httpx.Client) -> None:
    """azure-and-aidbox D, protocol fact 10."""
    body = {"resourceType": "Parameters"}
    assert http.post("/Group/demo/$export", headers=KICK, json=body).status_code == 405
    for headers in (
        {**KICK, "Accept": "*/*"},
        {**KICK, "Accept": "application/fhir+json,application/json"},
        {"Accept": KICK["Accept"]},
    ):
        diagnostics(http.get("/Group/demo/$export", headers=headers), 400)


def test_only_the_first_of_a_repeated_type_counts(http: httpx.Client) -> None:
    """Protocol fact 13."""
    manifest = export(http, query="_type=Patient&_type=Condition")
    assert {entry["type"] for entry in manifest["output"]} == {"Patient"}
    both = export(http, query="_type=Patient,Condition")
    assert {entry["type"] for entry in both["output"]} == {"Patient", "Condition"}


# -- status and files


def test_an_export_is_the_truth_with_the_bearer(box: SandboxProcess, http: httpx.Client) -> None:
    manifest = export(http)
    assert manifest["requiresAccessToken"] is True
    assert manifest["error"] == []
    assert "deleted" not in manifest
    found = []
    for entry in manifest["output"]:
        assert entry["url"].startswith(box.base_url + "/_export/")
        assert httpx.get(entry["url"]).status_code == 401
        part = lines(entry["type"], http.get(entry["url"]).content)
        assert len(part) == entry["count"]
        found += part
    assert found == list(truth(1, PATIENTS, 1))


def test_other_levels_export_too(http: httpx.Client) -> None:
    for path, level in (("/Patient/$export", "patient"), ("/$export", "system")):
        counts = sum(entry["count"] for entry in export(http, path)["output"])
        assert counts == sum(1 for _ in truth(1, PATIENTS, 1, level=level))


def test_an_unknown_group_is_accepted_and_fails_with_404(http: httpx.Client) -> None:
    """Protocol fact 24: a failed job answers with the failure's own status."""
    answer = poll(http, where(kick(http, "/Group/nobody/$export")))
    assert diagnostics(answer, 404).startswith("export operation failed for reason")


@pytest.mark.parametrize("status", [413, 429])
def test_a_failed_job_answers_with_the_failures_own_status(azurite: Azurite, status: int) -> None:
    """Protocol fact 24: a 429 here is the end, not throttling. Its files are orphans."""
    container = azurite.new_container("failed")
    with (
        exporting(azurite, fail_with=status, storage_container=container) as fresh,
        caller(fresh.fhir_url, entra_token(AUDIENCE)) as http,
    ):
        answers = [poll(http, where(kick(http, query="_type=Patient,Condition")))]
        answers.append(http.get(str(answers[0].request.url), headers=POLL))
        for answer in answers:
            assert diagnostics(answer, status).startswith("export operation failed for reason")
            assert "retry-after" not in answer.headers
        assert len(azurite.names(container)) == 1


def test_a_poll_is_bare_and_a_delete_is_202_then_404() -> None:
    """azure-and-aidbox D. The location is relative where that is set (protocol fact 17)."""
    with (
        start_sandbox(
            stand_in="azure-fhir", relative_location=True, **{**QUICK, "export_seconds": 30, "token_role": ""}
        ) as fresh,
        caller(fresh.fhir_url, entra_token(AUDIENCE, roles=[])) as http,
    ):
        answer = kick(http)
        assert answer.headers["content-location"].startswith("/_operations/export/")
        pending = http.get(where(answer), headers=POLL)
        assert (pending.status_code, pending.content) == (202, b"")
        assert not {"retry-after", "x-progress"} & pending.headers.keys()
        where(kick(http))
        assert http.delete(where(answer)).status_code == 202
        assert http.get(where(answer), headers=POLL).status_code == 404
        assert http.delete(where(answer)).status_code == 404


def test_till_ends_the_window_and_is_the_next_since(box: SandboxProcess, http: httpx.Client) -> None:
    """azure-and-aidbox D: `_till` comes from the real clock, and two windows that touch lose nothing."""

    def everything(manifest: dict[str, Any]) -> dict[str, bytes]:
        found = {}
        for entry in manifest["output"]:
            for kind, text in lines(entry["type"], http.get(entry["url"]).content):
                found[f"{kind}/{json.loads(text)['id']}"] = text
        return found

    till = (datetime.now(UTC) - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    first = export(http, query=f"_type=Condition,Encounter&_till={till}")
    assert f"_till={till}" in first["request"]
    box.control(night=2)
    later = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    second = export(http, query=f"_type=Condition,Encounter&_since={till}&_till={later}")
    changes = everything(second)
    living = {
        f"{kind}/{json.loads(text)['id']}": text
        for kind, text in truth(1, PATIENTS, 2)
        if kind in ("Condition", "Encounter")
    }
    table = {**everything(first), **changes}
    assert 0 < len(changes) < len(living) / 2
    assert {name: table[name] for name in living} == living
    past = export(http, query="_type=Condition&_till=2024-06-01T00:00:00Z")
    assert 0 < sum(entry["count"] for entry in past["output"]) < len(everything(first))


def test_since_can_miss_changes_of_unchanged_patients() -> None:
    """Protocol, 6: only compartments of changed patients are walked; at system level nothing is missed."""
    query = "_type=Patient,Observation,Encounter&_since=2026-01-01T02:00:00.417Z"
    counts = []
    many = {**QUICK, "patients": 40, "night": 4, "since_by_patient": True}
    with (
        start_sandbox(stand_in="azure-fhir", **many) as fresh,
        caller(fresh.fhir_url, entra_token(AUDIENCE)) as http,
    ):
        for path in ("/$export", "/Patient/$export"):
            counts.append(sum(entry["count"] for entry in export(http, path, query)["output"]))
    assert 0 < counts[1] < counts[0]


def test_a_job_that_the_system_cancelled_answers_200_with_part_of_the_files() -> None:
    """Protocol fact 22."""
    with (
        start_sandbox(stand_in="azure-fhir", cancelled_by_server=True, **QUICK) as fresh,
        caller(fresh.fhir_url, entra_token(AUDIENCE)) as http,
    ):
        manifest = export(http)
    assert manifest["error"] == []
    assert 0 < sum(entry["count"] for entry in manifest["output"]) < sum(1 for _ in truth(1, PATIENTS, 1))


def test_jobs_survive_a_crash_where_a_state_folder_is_given(tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "stand_in": "azure-fhir", "state": tmp_path}
    token = entra_token(AUDIENCE)
    with start_sandbox(**options) as before, caller(before.fhir_url, token) as http:
        status = where(kick(http, query="_type=Patient&_container=a-place&_till=2026-01-01T03:00:00Z"))
        asked = before.control()["jobs"][0]["parameters"]
        port = before.base_url.rpartition(":")[2]
        before.kill()
    with start_sandbox(**options, port=port) as after, caller(after.fhir_url, token) as http:
        assert poll(http, status).json()["output"][0]["count"] == PATIENTS
        assert after.control()["jobs"][0]["parameters"] == asked
    assert asked[1] == ["_container", "a-place"]


# -- files in the customer's storage


def test_files_lie_in_the_storage_account_as_plain_urls(azurite: Azurite) -> None:
    """azure-and-aidbox D: many files, and the FHIR bearer is no key to them."""
    container = azurite.new_container("export")
    with (
        exporting(azurite, storage_container=container, file_lines=5) as fresh,
        caller(fresh.fhir_url, entra_token(AUDIENCE)) as http,
    ):
        status = where(kick(http))
        manifest = poll(http, status).json()
        assert manifest["requiresAccessToken"] is False
        found = []
        for entry in manifest["output"]:
            url = entry["url"]
            assert re.fullmatch(
                rf"{azurite.endpoint}/{container}/export-[0-9a-f]+/{entry['type']}-\d+-\d+\.ndjson", url
            )
            part = lines(entry["type"], blob(azurite, url))
            assert len(part) == entry["count"]
            found += part
        assert found == list(truth(1, PATIENTS, 1))
        assert len(manifest["output"]) > 80
        assert httpx.get(url).status_code in (401, 403, 404, 409)
        assert http.get(url).status_code in (401, 403)
        assert http.delete(status).status_code == 202
        assert len(azurite.names(container)) == len(manifest["output"]), "the files are the customer's"


def test_containers_by_parameter_and_by_job(azurite: Azurite) -> None:
    with (
        exporting(azurite, storage_container="") as fresh,
        caller(fresh.fhir_url, entra_token(AUDIENCE)) as http,
    ):
        named = export(http, query="_type=Patient&_container=my-own-place")["output"][0]["url"]
        own = export(http, query="_type=Patient")["output"][0]["url"]
    pattern = rf"{azurite.endpoint}/my-own-place/\d{{8}}T\d{{6}}-[0-9a-f]+/Patient-1-1\.ndjson"
    assert re.fullmatch(pattern, named)
    assert re.fullmatch(rf"{azurite.endpoint}/export-[0-9a-f]+/Patient-1-1\.ndjson", own)
    assert blob(azurite, named) == blob(azurite, own)


def test_lines_can_end_with_carriage_returns(azurite: Azurite) -> None:
    with (
        exporting(azurite, line_ends="crlf") as fresh,
        caller(fresh.fhir_url, entra_token(AUDIENCE)) as http,
    ):
        content = blob(azurite, export(http, query="_type=Patient")["output"][0]["url"])
    assert content.count(b"\r\n") == content.count(b"\n") == PATIENTS
    assert lines("Patient", content) == [pair for pair in truth(1, PATIENTS, 1) if pair[0] == "Patient"]


def test_azure_fhir_writes_into_storage_too_and_over_tls(azurite_tls: Azurite, authority: Authority) -> None:
    container = azurite_tls.new_container("export")
    options = {"storage": azurite_tls.connection_string, "storage_container": container}
    tls = {"certificate": authority.certificate, "key": authority.key}
    with (
        start_sandbox(stand_in="azure-fhir", **options, **tls, **QUICK) as fresh,
        caller(fresh.fhir_url, entra_token(AUDIENCE)) as http,
    ):
        manifest = export(http, query="_type=Patient")
    assert manifest["requiresAccessToken"] is False
    url = manifest["output"][0]["url"]
    assert url.startswith("https://")
    headers = {"Authorization": f"Bearer {storage_token()}", "x-ms-version": "2021-12-02"}
    assert httpx.get(url, headers=headers).content == blob(azurite_tls, url)


def test_a_storage_account_that_refuses_ends_the_job(azurite: Azurite) -> None:
    broken = azurite.connection_string.replace("AccountKey=E", "AccountKey=F")
    with (
        exporting(azurite, storage=broken) as fresh,
        caller(fresh.fhir_url, entra_token(AUDIENCE)) as http,
    ):
        answer = poll(http, where(kick(http, query="_type=Patient")))
        assert diagnostics(answer, 403).startswith("export operation failed for reason")
