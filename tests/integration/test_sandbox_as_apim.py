"""The stand-in for API Management in front of Azure FHIR, called by hand (azure-and-aidbox A)."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from authority import Authority
from sandbox_as_caller import (
    EC_KEY,
    ENTRA_JWKS,
    JWKS,
    KICK,
    NEXT_JWKS,
    NEXT_KEY,
    POLL,
    assertion,
    caller,
    diagnostics,
    entra_token,
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
QUICK: dict[str, Any] = {"stand_in": "apim", "patients": PATIENTS, "export_seconds": 0, "jwks": JWKS}


def sign_in(box: SandboxProcess) -> str:
    answer = httpx.post(box.token_url, data=token_form(assertion(box.audience)))
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access_token"]
    return token


@pytest.fixture(scope="module")
def box() -> Iterator[SandboxProcess]:
    with start_sandbox(
        **QUICK, file_lines=50, error_file=True, token_keys=ENTRA_JWKS, token_audience="https://x.example"
    ) as running:
        yield running


@pytest.fixture
def http(box: SandboxProcess) -> Iterator[httpx.Client]:
    with caller(box.fhir_url, sign_in(box)) as client:
        yield client
    box.control(night=1, faults=[])


def test_discovery_names_neither_system_scopes_nor_algorithms(box: SandboxProcess) -> None:
    found = httpx.get(box.fhir_url + "/.well-known/smart-configuration").json()
    assert found["token_endpoint"] == box.token_url
    assert not any(scope.startswith("system/") for scope in found["scopes_supported"])
    assert "token_endpoint_auth_signing_alg_values_supported" not in found
    assert httpx.get(box.fhir_url + "/metadata").json()["fhirVersion"] == "4.0.1"


def test_the_named_value_is_served_as_it_was_pasted(box: SandboxProcess) -> None:
    answer = httpx.get(box.fhir_url + "/.well-known/jwks.json")
    assert answer.content == box.jwks_file.read_bytes()
    assert answer.json() == JWKS


def test_a_token_is_an_entra_token_of_60_to_90_minutes(box: SandboxProcess) -> None:
    for signed in (assertion(box.audience), assertion(box.audience, key=EC_KEY, kid="ec", alg="ES384")):
        answer = httpx.post(box.token_url, data=token_form(signed, scope="nonsense that nobody reads"))
        assert answer.status_code == 200, answer.text
        assert 3600 <= answer.json()["expires_in"] < 5400
        assert "scope" not in answer.json()
        claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
        assert (claims["aud"], claims["roles"]) == ("https://x.example", ["system.all.read"])


def test_errors_of_the_token_endpoint_are_not_those_of_oauth(box: SandboxProcess) -> None:
    url, good = box.token_url, assertion(box.audience)
    for answer, status in (
        (httpx.post(url, json=token_form(good)), 400),
        (httpx.post(url, data=token_form("no-jwt")), 400),
        (httpx.post(url, data=token_form(good, grant_type="password")), 400),
        (httpx.post(url, data=token_form(assertion(box.audience, iss="other"))), 401),
        (httpx.post(url, data=token_form(assertion(box.audience, sub="other", iss="other"))), 401),
        (httpx.post(url, data=token_form(assertion(box.fhir_url))), 401),
        (httpx.post(url, data=token_form(assertion(box.audience + "/"))), 401),
        (httpx.post(url, data=token_form(assertion(box.audience, key=NEXT_KEY))), 401),
        (httpx.post(url, data=token_form(assertion(box.audience, jti=None))), 401),
        (httpx.post(url, data=token_form(assertion(box.audience, exp=int(time.time()) + 400))), 401),
    ):
        assert answer.status_code == status, answer.text
        body = answer.json()
        assert {"Name", "Id", "Code"} <= body.keys()
        assert body["Code"] == status
        assert "error" not in body


def test_the_audience_is_the_configured_host_and_not_the_url_called() -> None:
    """With a custom domain the two differ."""
    with start_sandbox(**QUICK, apim_host="https://apim-host.example") as fresh:
        assert fresh.audience == "https://apim-host.example/auth/token"
        wrong = httpx.post(fresh.token_url, data=token_form(assertion(fresh.token_url)))
        assert wrong.status_code == 401
        assert httpx.post(fresh.token_url, data=token_form(assertion(fresh.audience))).status_code == 200


@pytest.mark.parametrize(("entry", "status"), [("absent", 401), ("without-tag", 401), ("wrong-value", 500)])
def test_a_client_is_one_by_its_secret_in_the_key_vault(entry: str, status: int) -> None:
    with start_sandbox(**QUICK, vault_entry=entry) as fresh:
        answer = httpx.post(fresh.token_url, data=token_form(assertion(fresh.audience)))
        assert (answer.status_code, answer.json()["Code"]) == (status, status)


def test_a_rotated_named_value_works_at_once(tmp_path: Path) -> None:
    pasted = tmp_path / "named.json"
    pasted.write_text(json.dumps(JWKS))
    with start_sandbox(**QUICK, named_value=pasted) as fresh:
        following = assertion(fresh.audience, key=NEXT_KEY, kid="two")
        assert httpx.post(fresh.token_url, data=token_form(following)).status_code == 401
        pasted.write_text(json.dumps(NEXT_JWKS))
        assert httpx.get(fresh.fhir_url + "/.well-known/jwks.json").json() == NEXT_JWKS
        following = assertion(fresh.audience, key=NEXT_KEY, kid="two")
        assert httpx.post(fresh.token_url, data=token_form(following)).status_code == 200
        assert httpx.post(fresh.token_url, data=token_form(assertion(fresh.audience))).status_code == 401


def test_a_group_export_is_the_truth_through_the_front(box: SandboxProcess, http: httpx.Client) -> None:
    manifest = export(http)
    assert manifest["requiresAccessToken"] is True
    found = []
    for entry in manifest["output"]:
        assert entry["url"].startswith(box.fhir_url + "/_export/")
        answer = http.get(entry["url"], headers={"Range": "bytes=0-9"})
        assert answer.status_code == 200, "a Range is not understood"
        assert int(answer.headers["content-length"]) == len(answer.content)
        part = lines(entry["type"], answer.content)
        assert len(part) == entry["count"]
        found += part
    assert found == list(truth(1, PATIENTS, 1))
    assert len(manifest["output"]) > len({entry["type"] for entry in manifest["output"]})
    [job] = [job for job in box.control()["jobs"] if manifest["output"][0]["url"].find(job["id"]) > 0]
    assert job["group"] == "demo"


def test_files_need_the_bearer_and_the_error_entry_is_not_rewritten(
    box: SandboxProcess, http: httpx.Client
) -> None:
    manifest = export(http, query="_type=Patient")
    assert httpx.get(manifest["output"][0]["url"]).status_code == 401
    [error] = manifest["error"]
    assert error["url"].startswith(f"{box.storage_url}/")
    assert not error["url"].startswith(box.base_url + "/")
    assert httpx.get(error["url"]).status_code == 409
    assert http.get(error["url"]).status_code == 403
    assert box.access_log()[-1]["note"] == "bearer at the blob host"


def test_the_container_is_forced_to_the_callers_object_id(http: httpx.Client) -> None:
    manifest = export(http, query="_type=Patient&_container=Somebody_Elses")
    oid = jwt.decode(http.headers["authorization"][7:], options={"verify_signature": False})["oid"]
    path = manifest["output"][0]["url"].partition("/_export/")[2]
    assert re.fullmatch(rf"{oid}/\d{{8}}T\d{{6}}-[0-9a-f]+/Patient-\d+-\d+\.ndjson", path)


def test_another_object_id_gets_nothing_of_an_export(box: SandboxProcess, http: httpx.Client) -> None:
    status = where(kick(http, query="_type=Patient"))
    url = poll(http, status).json()["output"][0]["url"]
    stranger = entra_token("https://x.example", roles=["system.all.read"])
    with caller(box.fhir_url, stranger) as other:
        diagnostics(other.get(status, headers=POLL), 401)
        diagnostics(other.get(url), 401)


def test_only_group_level_and_plain_group_ids_can_be_exported(http: httpx.Client) -> None:
    for path in ("/$export", "/Patient/$export", "/Group/de_mo/$export", "/Group/de.mo/$export"):
        assert kick(http, path).status_code == 404, path
    assert http.post("/Group/demo/$export", headers=KICK).status_code == 405


def test_kick_off_headers_must_be_exact(http: httpx.Client) -> None:
    """azure-and-aidbox A, protocol fact 10."""
    for headers in (
        {**KICK, "Accept": "*/*"},
        {**KICK, "Accept": "application/json"},
        {**KICK, "Accept": "application/fhir+json, application/json"},
        {"Accept": KICK["Accept"]},
    ):
        diagnostics(http.get("/Group/demo/$export", headers=headers), 400)


def test_a_poll_is_a_bare_202() -> None:
    with (
        start_sandbox(**{**QUICK, "export_seconds": 2}) as fresh,
        caller(fresh.fhir_url, sign_in(fresh)) as http,
    ):
        status = where(kick(http))
        assert status.startswith(fresh.fhir_url + "/_operations/export/")
        answer = http.get(status, headers=POLL)
        assert (answer.status_code, answer.content) == (202, b"")
        assert not {"retry-after", "x-progress"} & answer.headers.keys()
        assert poll(http, status).status_code == 200
        assert http.delete(status).status_code == 202
        assert http.get(status, headers=POLL).status_code == 404


def test_a_wholly_empty_result_is_a_bare_404_in_version_2() -> None:
    with start_sandbox(**QUICK, empty_is_404=True) as fresh, caller(fresh.fhir_url, sign_in(fresh)) as http:
        answer = poll(http, where(kick(http, "/Group/empty/$export", "_type=Patient")))
        assert (answer.status_code, answer.content) == (404, b"")
        assert export(http, query="_type=Patient")["output"]


def test_an_empty_result_is_an_empty_manifest_in_version_1(http: httpx.Client) -> None:
    assert export(http, "/Group/empty/$export", "_type=Patient")["output"] == []


def test_tokens_for_something_else_are_refused(box: SandboxProcess) -> None:
    """Another audience is 401, a token of scopes `user.*` is 403 since July 2026."""
    for token, status in (
        (entra_token("https://x.example", roles=["system.all.read"]), 202),
        (entra_token("https://y.example", roles=["system.all.read"]), 401),
        (entra_token("https://x.example", roles=["system.all.read"], key=NEXT_KEY), 401),
        (entra_token("https://x.example", roles=["system.all.read"], exp=int(time.time()) - 1), 401),
        (entra_token("https://x.example", roles=["user.all.read"]), 403),
        ("opaque", 401),
    ):
        with caller(box.fhir_url, token) as http:
            answer = kick(http)
            assert answer.status_code == status
            assert ("www-authenticate" in answer.headers) == (status == 401)


def test_a_client_that_was_granted_user_scopes_may_not_export() -> None:
    with (
        start_sandbox(**QUICK, granted_role="user.all.read") as fresh,
        caller(fresh.fhir_url, sign_in(fresh)) as http,
    ):
        diagnostics(kick(http), 403)


def test_tokens_end_and_can_be_revoked() -> None:
    with start_sandbox(**QUICK, token_seconds=5) as fresh:
        with caller(fresh.fhir_url, sign_in(fresh)) as http:
            assert http.get("/Patient").status_code == 200
            fresh.control(revoke_tokens=True)
            assert http.get("/Patient").status_code == 401
        with caller(fresh.fhir_url, sign_in(fresh)) as http:
            assert http.get("/Patient").status_code == 200
            time.sleep(5.1)
            assert http.get("/Patient").status_code == 401


def test_urls_can_carry_the_host_that_it_takes_itself_for() -> None:
    options: dict[str, Any] = {**QUICK, "apim_host": "https://front.example", "apim_host_in_urls": True}
    with start_sandbox(**options) as fresh, caller(fresh.fhir_url, sign_in(fresh)) as http:
        location = kick(http, query="_type=Patient").headers["content-location"]
        assert location.startswith("https://front.example/smart/_operations/export/")
        manifest = poll(http, location.replace("https://front.example", fresh.base_url)).json()
        assert manifest["output"][0]["url"].startswith("https://front.example/smart/_export/")


def test_the_access_log_knows_tokens_by_their_hash_only(box: SandboxProcess, http: httpx.Client) -> None:
    http.get("/Patient", params={"_id": "somebody"})
    entry = box.access_log()[-1]
    token = http.headers["authorization"].removeprefix("Bearer ")
    assert entry["auth"] == "Bearer"
    assert entry["bearer"] == hashlib.sha256(token.encode()).hexdigest()[:16]
    assert entry["query"] == "_id"
    text = json.dumps(box.access_log())
    assert token not in text
    assert "somebody" not in text


def test_it_is_served_over_tls(authority: Authority) -> None:
    with start_sandbox(**QUICK, certificate=authority.certificate, key=authority.key) as fresh:
        assert fresh.base_url.startswith("https://")
        with caller(fresh.fhir_url, sign_in(fresh)) as http:
            assert export(http, query="_type=Patient")["output"][0]["url"].startswith(fresh.fhir_url)
        assert fresh.control()["kickoffs"] == 1
        with pytest.raises(httpx.ConnectError):
            httpx.get(fresh.fhir_url + "/metadata", verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
