"""The stand-ins for Aidbox and Smartbox, called by hand (azure-and-aidbox B)."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure_storage import Azurite
from sandbox_as_caller import (
    ASSERTION,
    EC_KEY,
    JWKS,
    KICK,
    NEXT_JWKS,
    NEXT_KEY,
    POLL,
    assertion,
    caller,
    diagnostics,
    export,
    kick,
    lines,
    poll,
    token_form,
    where,
)

from pipeline.sandbox import truth
from pipeline.sandbox.process import SandboxProcess, start_sandbox

PATIENTS = 8
ADMIN = {"Authorization": "Bearer root-of-all"}
WIDE = "system/*.read system/Claim.read system/Coverage.read system/ExplanationOfBenefit.read"
QUICK: dict[str, Any] = {"patients": PATIENTS, "export_seconds": 0, "admin_token": "root-of-all"}
US_CORE_TYPES = 19


def ask(box: SandboxProcess, signed: str | None = None, **changes: str) -> httpx.Response:
    return httpx.post(box.token_url, data=token_form(signed or assertion(box.audience), **changes))


def sign_in(box: SandboxProcess, scope: str = "system/*.read", **claims: Any) -> str:
    answer = ask(box, assertion(box.audience, **claims), scope=scope)
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access_token"]
    return token


def client_body(**changes: Any) -> dict[str, Any]:
    return {
        "resourceType": "Client",
        "type": "bulk-api-client",
        "active": True,
        "grant_types": ["client_credentials"],
        "auth": {
            "client_credentials": {
                "client_assertion_types": [ASSERTION],
                "access_token_expiration": 120,
                "token_format": "jwt",
            }
        },
        "scope": ["system/*.read"],
        "jwks": JWKS["keys"],
        **changes,
    }


def policy_body(client: str) -> dict[str, Any]:
    return {"engine": "allow", "link": [{"id": client, "resourceType": "Client"}]}


def put(box: SandboxProcess, path: str, body: Any, headers: dict[str, str] = ADMIN) -> httpx.Response:
    return httpx.put(f"{box.base_url}/{path}", json=body, headers=headers)


@pytest.fixture(scope="module")
def box() -> Iterator[SandboxProcess]:
    with start_sandbox(
        stand_in="aidbox", jwks=JWKS, registered=True, scope=WIDE, file_lines=100, **QUICK
    ) as running:
        yield running


@pytest.fixture
def http(box: SandboxProcess) -> Iterator[httpx.Client]:
    with caller(box.fhir_url, sign_in(box)) as client:
        yield client
    box.control(night=1, faults=[])


@pytest.fixture(scope="module")
def slow() -> Iterator[SandboxProcess]:
    """An export takes two seconds, a signed URL lives for three, a remembered JWK Set for four."""
    with start_sandbox(
        stand_in="smartbox",
        jwks=JWKS,
        registered=True,
        tenant_form="meta._tenant",
        signed_url_seconds=3,
        jwks_cache_seconds=4,
        **{**QUICK, "export_seconds": 2},
    ) as running:
        yield running


# -- registering


def test_only_the_administrator_registers(box: SandboxProcess) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic cm9vdDp4"}):
        assert put(box, "Client/someone", client_body(), headers).status_code == 401
        assert put(box, "AccessPolicy/someone", policy_body("someone"), headers).status_code == 401
    assert httpx.get(f"{box.base_url}/Client/someone", headers=ADMIN).status_code == 404


def test_a_client_without_a_policy_gets_a_token_and_then_403(box: SandboxProcess) -> None:
    assert put(box, "Client/fresh", client_body()).status_code == 201
    token = sign_in(box, iss="fresh", sub="fresh")
    with caller(box.fhir_url, token) as http:
        assert "AccessPolicy" in diagnostics(kick(http), 403)
        assert put(box, "AccessPolicy/fresh", policy_body("another")).status_code == 201
        diagnostics(kick(http), 403)
        assert put(box, "AccessPolicy/fresh", policy_body("fresh")).status_code == 200
        assert export(http, query="_type=Patient")["output"]
    kept = httpx.get(f"{box.base_url}/Client/fresh", headers=ADMIN).json()
    assert (kept["id"], kept["jwks"]) == ("fresh", JWKS["keys"])


@pytest.mark.parametrize(
    "changes",
    [
        {"active": False},
        {"type": "client"},
        {"grant_types": ["authorization_code"]},
        {"auth": {}},
        {"jwks": None},
        {"jwks": []},
        {"jwks": JWKS},
    ],
)
def test_a_client_that_is_not_for_bulk_exports_gets_no_token(
    box: SandboxProcess, changes: dict[str, Any]
) -> None:
    assert put(box, "Client/odd", client_body(**changes)).status_code in (200, 201)
    answer = ask(box, assertion(box.audience, iss="odd", sub="odd"))
    assert answer.status_code in (400, 401)
    assert answer.json()["error"]


def test_a_malformed_client_is_refused(box: SandboxProcess) -> None:
    for changes in ({"grant_types": "client_credentials"}, {"id": "x"}, {"resourceType": "Patient"}):
        assert put(box, "Client/bad", client_body(**changes)).status_code == 422


def test_a_name_and_a_secret_are_an_administrator_too() -> None:
    with start_sandbox(stand_in="aidbox", **{**QUICK, "admin_token": "root:of-all"}) as fresh:
        basic = {"Authorization": "Basic " + base64.b64encode(b"root:of-all").decode()}
        assert put(fresh, "Client/one", client_body(), basic).status_code == 201
        assert ask(fresh).status_code == 401, "nobody is registered without --registered"


# -- tokens


def test_the_token_endpoint_takes_form_and_json(box: SandboxProcess) -> None:
    assert ask(box).status_code == 200
    assert httpx.post(box.token_url, json=token_form(assertion(box.audience))).status_code == 200
    plain = httpx.post(box.token_url, content=b"x", headers={"Content-Type": "text/plain"})
    assert (plain.status_code, plain.json()["error"]) == (400, "invalid_request")


def test_scope_is_required(box: SandboxProcess) -> None:
    for scope in ("", "user/*.read", "system/Device.write"):
        answer = ask(box, scope=scope)
        assert (answer.status_code, answer.json()["error"]) in (
            (400, "invalid_request"),
            (400, "invalid_scope"),
        )


def test_a_token_lives_300_seconds_and_its_scope_is_expanded(box: SandboxProcess) -> None:
    told = ask(box).json()
    assert told["expires_in"] == 300
    scopes = told["scope"].split(" ")
    assert len(scopes) == US_CORE_TYPES
    assert "system/*.read" not in scopes
    assert "system/Patient.read" in scopes
    assert "system/Claim.read" not in scopes
    wide = ask(box, scope=WIDE).json()["scope"].split(" ")
    assert len(wide) == US_CORE_TYPES + 3


def test_a_client_may_shorten_the_life_of_its_tokens(box: SandboxProcess) -> None:
    put(box, "Client/short", client_body())
    assert ask(box, assertion(box.audience, iss="short", sub="short")).json()["expires_in"] == 120


def test_a_scope_beyond_the_registered_ones_is_refused(box: SandboxProcess) -> None:
    put(box, "Client/narrow", client_body())
    answer = ask(box, assertion(box.audience, iss="narrow", sub="narrow"), scope="system/Claim.read")
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")


def test_assertions_must_be_rs384_for_this_token_url_with_kid_and_jti(box: SandboxProcess) -> None:
    for signed in (
        assertion(box.audience, key=EC_KEY, kid="ec", alg="ES384"),
        assertion(box.fhir_url),
        assertion(box.audience, jti=None),
        assertion(box.audience, exp=int(time.time()) + 400),
        assertion(box.audience, kid="unknown"),
        assertion(box.audience, iss="stranger", sub="stranger"),
        assertion(box.audience, sub="stranger"),
        assertion(box.audience, key=NEXT_KEY),
        "no-jwt",
    ):
        answer = ask(box, signed)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    once = assertion(box.audience)
    assert [ask(box, once).status_code for _ in range(2)] == [200, 401]


def test_keys_are_remembered_for_a_while(slow: SandboxProcess) -> None:
    """A key that was published just now is not known yet."""
    assert ask(slow).status_code == 200
    before = slow.jwks_file.read_text()
    slow.jwks_file.write_text(json.dumps(NEXT_JWKS))
    try:
        following = assertion(slow.audience, key=NEXT_KEY, kid="two")
        assert ask(slow, following).status_code == 401
        assert ask(slow).status_code == 200
        time.sleep(4.1)
        assert ask(slow, assertion(slow.audience, key=NEXT_KEY, kid="two")).status_code == 200
        assert ask(slow).status_code == 401
    finally:
        slow.jwks_file.write_text(before)
        time.sleep(4.1)


def test_a_token_ends() -> None:
    """At a whole second: one of five seconds lives for four at least."""
    with (
        start_sandbox(stand_in="smartbox", jwks=JWKS, registered=True, token_seconds=5, **QUICK) as brief,
        caller(brief.fhir_url, sign_in(brief)) as http,
    ):
        assert http.get("/Patient").status_code == 200
        time.sleep(5.1)
        answer = http.get("/Patient")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")


# -- exporting


def test_an_export_is_the_truth_behind_signed_urls(box: SandboxProcess) -> None:
    """`requiresAccessToken` is false; `request` and `error` are missing, `status` is extra."""
    with caller(box.fhir_url, sign_in(box, WIDE)) as http:
        manifest = export(http)
    assert manifest["requiresAccessToken"] is False
    assert not {"request", "error", "deleted"} & manifest.keys()
    assert manifest["status"] == "completed"
    found = []
    for entry in manifest["output"]:
        assert entry["url"].startswith(f"{box.storage_url}/")
        answer = httpx.get(entry["url"])
        assert answer.status_code == 200
        part = lines(entry["type"], answer.content)
        assert len(part) == entry["count"]
        found += part
    assert found == list(truth(1, PATIENTS, 1))


def test_a_wildcard_exports_the_us_core_types_only(http: httpx.Client) -> None:
    kinds = {entry["type"] for entry in export(http)["output"]}
    assert "Observation" in kinds
    assert not kinds & {"Claim", "Coverage", "ExplanationOfBenefit"}
    diagnostics(kick(http, query="_type=Patient,Claim"), 403)


def test_the_location_of_the_status_is_relative_with_a_dollar_sign(http: httpx.Client) -> None:
    """Protocol fact 17."""
    for path in ("/Group/demo/$export", "/Patient/$export", "/$export"):
        answer = kick(http, path, "_type=Patient")
        assert answer.headers["content-location"].startswith("/fhir/$export-status/")
        assert poll(http, where(answer)).status_code == 200


def test_other_parameters_than_the_known_are_refused(http: httpx.Client) -> None:
    for query in (
        "_typeFilter=Patient%3Fgender%3Dfemale",
        "_elements=id",
        "_until=2026-01-01T00:00:00Z",
        "x=1",
    ):
        diagnostics(kick(http, query="_type=Patient&" + query), 400)
    diagnostics(kick(http, query="_type=Nonsense"), 400)
    diagnostics(kick(http, query="_outputFormat=csv"), 400)
    diagnostics(kick(http, "/Group/nobody/$export"), 404)
    for headers in ({**KICK, "Accept": "*/*"}, {"Accept": KICK["Accept"]}):
        diagnostics(http.get("/Group/demo/$export", headers=headers), 400)


def test_patient_narrows_an_export_by_get(http: httpx.Client) -> None:
    bundle = http.get("/Patient", params={"_count": "2"}).json()
    ids = [entry["resource"]["id"] for entry in bundle["entry"]]
    manifest = export(http, "/Patient/$export", f"_type=Patient&patient={ids[0]},Patient/{ids[1]}")
    [entry] = manifest["output"]
    assert [json.loads(text)["id"] for _, text in lines("Patient", httpx.get(entry["url"]).content)] == ids


def test_gzip_files_do_not_say_that_they_are(http: httpx.Client) -> None:
    """Protocol fact 29: the first bytes tell."""
    manifest = export(http, query="_type=Patient&_outputFormat=application%2Ffhir%2Bndjson%2Bgzip")
    answer = httpx.get(manifest["output"][0]["url"])
    assert "content-encoding" not in answer.headers
    assert answer.content[:2] == b"\x1f\x8b"
    expected = [pair for pair in truth(1, PATIENTS, 1) if pair[0] == "Patient"]
    assert lines("Patient", gzip.decompress(answer.content)) == expected


def test_since_delivers_what_changed(box: SandboxProcess, http: httpx.Client) -> None:
    first = export(http, query="_type=Condition,Encounter")
    box.control(night=2)
    second = export(http, query=f"_type=Condition,Encounter&_since={first['transactionTime']}")
    counted = [sum(entry["count"] for entry in manifest["output"]) for manifest in (first, second)]
    assert 0 < counted[1] < counted[0]


def test_without_storage_a_kick_off_fails() -> None:
    with (
        start_sandbox(stand_in="aidbox", jwks=JWKS, registered=True, no_storage=True, **QUICK) as fresh,
        caller(fresh.fhir_url, sign_in(fresh)) as http,
    ):
        diagnostics(kick(http), 500)


def test_one_export_at_a_time_runs_on_the_box(slow: SandboxProcess) -> None:
    with caller(slow.fhir_url, sign_in(slow)) as http:
        first = kick(http, query="_type=Patient")
        busy = kick(http, query="_type=Condition")
        diagnostics(busy, 429)
        assert int(busy.headers["retry-after"]) >= 1
        status = where(first)
        pending = http.get(status, headers=POLL)
        assert (pending.status_code, pending.content) == (202, b"")
        assert http.delete(status).status_code == 202
        assert http.get(status, headers=POLL).status_code == 404
        assert poll(http, where(kick(http, query="_type=Patient"))).status_code == 200


def test_signed_urls_die_and_a_fresh_status_read_gives_new_ones(slow: SandboxProcess) -> None:
    with caller(slow.fhir_url, sign_in(slow)) as http:
        status = where(kick(http, query="_type=Patient"))
        old = poll(http, status).json()["output"][0]["url"]
        assert httpx.get(old).status_code == 200
        time.sleep(3.1)
        dead = httpx.get(old)
        assert dead.status_code == 403
        assert b"AuthenticationFailed" in dead.content
        new = poll(http, status).json()["output"][0]["url"]
        assert new.partition("?")[0] == old.partition("?")[0]
        assert httpx.get(new).status_code == 200


def test_a_bearer_on_a_signed_url_is_refused_and_noted(box: SandboxProcess, http: httpx.Client) -> None:
    url = export(http, query="_type=Patient")["output"][0]["url"]
    assert http.get(url).status_code == 400
    assert box.access_log()[-1]["note"] == "bearer on a signed URL"
    assert box.access_log()[-1]["host"] == httpx.URL(url).netloc.decode()
    assert httpx.get(url.partition("?")[0]).status_code == 403
    assert httpx.get(url[:-1] + ("0" if url[-1] != "0" else "1")).status_code == 403
    assert box.access_log()[-1]["note"] is None
    assert url.partition("sig=")[2] not in json.dumps(box.access_log())
    assert httpx.get(url.replace(str(box.storage_url), box.base_url)).status_code == 404


def test_a_file_can_be_resumed(http: httpx.Client) -> None:
    url = export(http, query="_type=Observation")["output"][0]["url"]
    whole = httpx.get(url)
    rest = httpx.get(url, headers={"Range": "bytes=1000-", "If-Match": whole.headers["etag"]})
    assert (rest.status_code, rest.content) == (206, whole.content[1000:])
    assert httpx.get(url, headers={"Range": "bytes=1-", "If-Match": '"other"'}).status_code == 412
    beyond = httpx.get(url, headers={"Range": f"bytes={len(whole.content)}-"})
    assert beyond.status_code == 416


def test_with_a_storage_account_the_urls_are_real_sas_urls(azurite: Azurite) -> None:
    container = azurite.new_container("aidbox")
    with (
        start_sandbox(
            stand_in="aidbox",
            jwks=JWKS,
            registered=True,
            storage=azurite.connection_string,
            storage_container=container,
            signed_url_seconds=5,
            **QUICK,
        ) as fresh,
        caller(fresh.fhir_url, sign_in(fresh)) as http,
    ):
        status = where(kick(http, query="_type=Patient"))
        url = poll(http, status).json()["output"][0]["url"]
        assert url.startswith(f"{azurite.endpoint}/{container}/")
        expected = [pair for pair in truth(1, PATIENTS, 1) if pair[0] == "Patient"]
        assert lines("Patient", httpx.get(url).content) == expected
        assert httpx.get(url.partition("?")[0]).status_code in (403, 404, 409)
        time.sleep(6)
        assert httpx.get(url).status_code == 403
        assert httpx.get(poll(http, status).json()["output"][0]["url"]).status_code == 200


# -- tenants


def test_smartbox_keeps_tenants_apart(slow: SandboxProcess) -> None:
    assert slow.tenant == "my-clinic"
    assert slow.fhir_url == f"{slow.base_url}/tenant/my-clinic/bulk-api"
    token = sign_in(slow)
    with caller(slow.fhir_url, token) as http:
        answer = kick(http, query="_type=Patient")
        assert answer.headers["content-location"].startswith("/tenant/my-clinic/bulk-api/$export-status/")
        assert poll(http, where(answer)).status_code == 200
    with caller(slow.fhir_url.replace("my-clinic", "other-clinic"), token) as http:
        assert "tenant" in diagnostics(kick(http), 403)
        assert http.get("/Patient").status_code == 403


OLD = {"_tenant": "my-clinic"}
NEW = {"tenant": {"id": "my-clinic", "resourceType": "Tenant"}}
OTHER = {"tenant": {"id": "other-clinic", "resourceType": "Tenant"}}


def test_a_server_understands_one_form_of_the_tenant(slow: SandboxProcess, tmp_path: Path) -> None:
    """`meta._tenant`, or newer `meta.tenant` {id, resourceType: Tenant}."""

    def outcomes(box: SandboxProcess) -> list[int]:
        found = []
        for name, meta in (("old", OLD), ("new", NEW), ("other", OTHER), ("none", {})):
            put(box, f"Client/{name}", client_body(meta=meta))
            put(box, f"AccessPolicy/{name}", policy_body(name))
            with caller(box.fhir_url, sign_in(box, iss=name, sub=name)) as http:
                found.append(http.get("/Patient", params={"_count": "1"}).status_code)
        return found

    assert outcomes(slow) == [200, 403, 403, 403]
    with start_sandbox(stand_in="smartbox", tenant_form="meta.tenant", **QUICK) as newer:
        assert outcomes(newer) == [403, 200, 403, 403]
