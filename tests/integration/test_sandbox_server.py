"""The sandbox over real HTTP, with a client made of nothing but httpx and pyjwt."""

from __future__ import annotations

import base64
import gzip
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pipeline.sandbox import truth
from pipeline.sandbox.process import SandboxProcess, start_sandbox

PATIENTS = 12
KICK = {"Accept": "application/fhir+json", "Prefer": "respond-async"}
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP384R1())
KEYS: dict[str, Any] = {"RS384": RSA_KEY, "ES384": EC_KEY}


def jwk(algorithm: str, key: Any, kid: str) -> dict[str, Any]:
    kind = jwt.algorithms.RSAAlgorithm if algorithm == "RS384" else jwt.algorithms.ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": algorithm}


JWKS = {"keys": [jwk("RS384", RSA_KEY, "rsa-1"), jwk("ES384", EC_KEY, "ec-1")]}
KIDS = {"RS384": "rsa-1", "ES384": "ec-1"}


def assertion(token_url: str, algorithm: str = "RS384", *, key: Any = None, **changes: Any) -> str:
    claims: dict[str, Any] = {
        "iss": "nightly",
        "sub": "nightly",
        "aud": token_url,
        "exp": int(time.time()) + 240,
        "jti": str(uuid.uuid4()),
    }
    headers = {"kid": KIDS.get(algorithm, "rsa-1"), **changes.pop("headers", {})}
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    return jwt.encode(claims, key or KEYS[algorithm], algorithm, headers)


def ask_token(
    sandbox: SandboxProcess, signed: str, scope: str = "system/*.rs", **changes: str
) -> httpx.Response:
    form = {
        "grant_type": "client_credentials",
        "scope": scope,
        "client_assertion_type": ASSERTION,
        "client_assertion": signed,
        **changes,
    }
    return httpx.post(sandbox.token_url, data=form)


def client(sandbox: SandboxProcess, scope: str = "system/*.rs") -> httpx.Client:
    answer = ask_token(sandbox, assertion(sandbox.token_url), scope)
    assert answer.status_code == 200, answer.text
    token = answer.json()["access_token"]
    return httpx.Client(headers={"Authorization": f"Bearer {token}"}, base_url=sandbox.fhir_url, timeout=30)


def poll(http: httpx.Client, where: str, pace: float = 0.1) -> httpx.Response:
    for _ in range(200):
        answer = http.get(where, headers={"Accept": "application/json"})
        if answer.status_code != 202:
            return answer
        time.sleep(pace)
    raise AssertionError("the export did not end")


def kick(http: httpx.Client, path: str = "/Group/demo/$export", **parameters: Any) -> str:
    answer = http.get(path, params=parameters, headers=KICK)
    assert answer.status_code == 202, answer.text
    return answer.headers["content-location"]


def export(http: httpx.Client, path: str = "/Group/demo/$export", **parameters: Any) -> dict[str, Any]:
    answer = poll(http, kick(http, path, **parameters))
    assert answer.status_code == 200, answer.text
    return answer.json()


def lines(http: httpx.Client, manifest: dict[str, Any], kind: str = "output") -> list[tuple[str, bytes]]:
    found = []
    for entry in manifest[kind]:
        answer = http.get(entry["url"], headers={"Accept": "application/fhir+ndjson"})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/fhir+ndjson"
        assert answer.content.endswith(b"\n")
        texts = answer.content[:-1].split(b"\n")
        assert len(texts) == entry["count"]
        found += [(entry["type"], text) for text in texts]
    return found


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with start_sandbox(
        patients=PATIENTS, jwks=JWKS, export_seconds=0.2, poll_seconds=0, file_lines=100
    ) as running:
        yield running


@pytest.fixture
def http(sandbox: SandboxProcess) -> Iterator[httpx.Client]:
    with client(sandbox) as open_client:
        yield open_client
    sandbox.control(night=1, faults=[])


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    outcome = answer.json()
    assert outcome["resourceType"] == "OperationOutcome"
    return outcome["issue"][0]["code"]


# -- signing in


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_both_algorithms_sign_in(sandbox: SandboxProcess, algorithm: str) -> None:
    """Protocol fact 4."""
    answer = ask_token(sandbox, assertion(sandbox.token_url, algorithm))
    assert answer.status_code == 200
    assert answer.json()["token_type"] == "bearer"
    assert answer.json()["expires_in"] == 300
    assert answer.headers["cache-control"] == "no-store"


OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.mark.parametrize(
    "make",
    [
        lambda url: assertion(url, iss="stranger"),
        lambda url: assertion(url, sub="stranger"),
        lambda url: assertion(url, aud=url + "/"),
        lambda url: assertion(url, aud=[url]),
        lambda url: assertion(url, exp=int(time.time()) + 400),
        lambda url: assertion(url, exp=int(time.time()) - 5),
        lambda url: assertion(url, exp=None),
        lambda url: assertion(url, jti=None),
        lambda url: assertion(url, headers={"kid": "unknown"}),
        lambda url: assertion(url, headers={"kid": "ec-1"}),
        lambda url: assertion(url, headers={"typ": "JOSE"}),
        lambda url: assertion(url, headers={"jku": "https://elsewhere.example/jwks"}),
        lambda url: assertion(url, key=OTHER_RSA),
        lambda url: jwt.encode({"iss": "nightly"}, RSA_KEY, "RS256", {"kid": "rsa-1"}),
        lambda url: jwt.encode({"iss": "nightly"}, None, "none", {"kid": "rsa-1"}),
        lambda url: jwt.encode({"iss": "nightly"}, "x" * 64, "HS384", {"kid": "rsa-1"}),
        lambda url: "not-a-jwt",
    ],
)
def test_a_wrong_assertion_is_refused(sandbox: SandboxProcess, make: Callable[[str], str]) -> None:
    """Protocol fact 6."""
    answer = ask_token(sandbox, make(sandbox.token_url))
    assert answer.status_code == 401
    assert answer.json()["error"] == "invalid_client"


def test_an_assertion_is_good_once(sandbox: SandboxProcess) -> None:
    """Protocol fact 6: a retried token request needs a new assertion."""
    signed = assertion(sandbox.token_url)
    assert ask_token(sandbox, signed).status_code == 200
    again = ask_token(sandbox, signed)
    assert (again.status_code, again.json()["error"]) == (401, "invalid_client")


def test_token_requests_must_be_as_specified(sandbox: SandboxProcess) -> None:
    """Protocol fact 7."""
    url = sandbox.token_url
    for changes, error in (
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"client_assertion_type": "jwt"}, "invalid_request"),
        ({"scope": ""}, "invalid_request"),
        ({"scope": "user/*.read"}, "invalid_scope"),
    ):
        answer = ask_token(sandbox, assertion(url), **changes)
        assert (answer.status_code, answer.json()["error"]) == (400, error)
    as_json = httpx.post(url, json={"client_assertion": assertion(url)})
    assert (as_json.status_code, as_json.json()["error"]) == (400, "invalid_request")


def test_keys_can_be_rotated_while_it_runs() -> None:
    with start_sandbox(patients=0, jwks={"keys": [JWKS["keys"][0]]}) as fresh:
        assert ask_token(fresh, assertion(fresh.token_url, "ES384")).status_code == 401
        fresh.jwks_file.write_text(json.dumps({"keys": [JWKS["keys"][1]]}))
        assert ask_token(fresh, assertion(fresh.token_url, "ES384")).status_code == 200
        assert ask_token(fresh, assertion(fresh.token_url, "RS384")).status_code == 401
        leaked = jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True)
        fresh.jwks_file.write_text(json.dumps({"keys": [{**leaked, "kid": "rsa-1"}]}))
        assert ask_token(fresh, assertion(fresh.token_url, "RS384")).status_code == 401


def test_keys_are_fetched_from_a_registered_url() -> None:
    """Protocol facts 3 and 6: registration by URL, and `jku` must equal it."""
    with start_sandbox(patients=0, jwks=JWKS) as host:
        host.control(faults=[{"path": "^/keys", "times": None, "status": 200, "body": JWKS}])
        url = host.base_url + "/keys"
        with start_sandbox(patients=0, jwks=url, expires_in="string") as fresh:
            answer = ask_token(fresh, assertion(fresh.token_url, "ES384", headers={"jku": url}))
            assert (answer.status_code, answer.json()["expires_in"]) == (200, "300")
            wrong = assertion(fresh.token_url, headers={"jku": url + "/"})
            assert ask_token(fresh, wrong).status_code == 401
            host.stop()
            assert ask_token(fresh, assertion(fresh.token_url)).status_code == 401


def test_only_discovery_is_open_without_a_token(sandbox: SandboxProcess) -> None:
    base = sandbox.fhir_url
    smart = httpx.get(base + "/.well-known/smart-configuration").json()
    assert smart["token_endpoint"] == sandbox.token_url
    statement = httpx.get(base + "/metadata").json()
    assert statement["fhirVersion"] == "4.0.1"
    assert sandbox.token_url in json.dumps(statement["rest"][0]["security"])
    for path in ("/$export", "/Group/demo/$export", "/Patient", "/Patient/x"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
            answer = httpx.get(base + path, headers={**KICK, **headers})
            refused(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_token_expires_and_can_be_revoked() -> None:
    with start_sandbox(patients=1, jwks=JWKS, token_seconds=5) as fresh, client(fresh) as http:
        assert http.get("/Patient").status_code == 200
        time.sleep(5.1)
        refused(http.get("/Patient"), 401)
        with client(fresh) as another:
            assert another.get("/Patient").status_code == 200
            fresh.control(revoke_tokens=True)
            refused(another.get("/Patient"), 401)


def test_a_narrow_scope_covers_its_types_only(sandbox: SandboxProcess) -> None:
    with client(sandbox, "system/Patient.rs system/Observation.read") as http:
        assert http.get("/Patient").status_code == 200
        refused(http.get("/Encounter"), 403)
        refused(http.get("/Group/demo/$export", params={"_type": "Claim"}, headers=KICK), 403)
        manifest = export(http)
        assert {entry["type"] for entry in manifest["output"]} == {"Patient", "Observation"}


# -- kick-off


def test_kick_off_headers_are_required(http: httpx.Client) -> None:
    """Protocol fact 10."""
    path = "/Group/demo/$export"
    for accept in ("*/*", "application/json", "application/fhir+json, application/json"):
        refused(http.get(path, headers={**KICK, "Accept": accept}), 400)
    refused(http.get(path, headers={"Accept": KICK["Accept"]}), 400)
    refused(http.get(path, headers={**KICK, "Prefer": "respond-sync"}), 400)


def test_unknown_groups_and_parameters_are_refused(http: httpx.Client) -> None:
    refused(http.get("/Group/nobody/$export", headers=KICK), 404)
    refused(http.get("/Group/demo/$export", params={"_sort": "x"}, headers=KICK), 400)
    refused(http.get("/Group/demo/$export", params={"patient": "Patient/1"}, headers=KICK), 400)


def test_posted_parameters_are_checked(http: httpx.Client) -> None:
    path, fhir = "/Group/demo/$export", {**KICK, "Content-Type": "application/fhir+json"}
    refused(http.post(path, content=b"{}", headers={**KICK, "Content-Type": "application/json"}), 415)
    refused(http.post(path, content=b"{", headers=fhir), 400)
    refused(http.post(path, content=b'{"resourceType":"Patient"}', headers=fhir), 400)
    for parameter in (
        {"name": "_since", "valueString": "2026-01-01T00:00:00Z"},
        {"name": "_type", "valueString": ["Patient"]},
        {"valueString": "Patient"},
        {"name": "_type"},
    ):
        body = {"resourceType": "Parameters", "parameter": [parameter]}
        refused(http.post(path, content=json.dumps(body), headers=fhir), 400)


def test_a_full_group_export_is_the_truth(http: httpx.Client) -> None:
    manifest = export(http)
    assert manifest["requiresAccessToken"] is True
    assert manifest["transactionTime"] == "2026-01-01T02:00:00.417Z"
    assert manifest["request"].endswith("/fhir/Group/demo/$export")
    assert manifest["deleted"] == manifest["error"] == []
    assert lines(http, manifest) == list(truth(1, PATIENTS, 1))
    assert sum(entry["type"] == "Observation" for entry in manifest["output"]) > 1


def test_other_levels_and_groups_deliver_their_part(http: httpx.Client) -> None:
    assert lines(http, export(http, "/Patient/$export")) == list(truth(1, PATIENTS, 1))
    assert lines(http, export(http, "/$export")) == list(truth(1, PATIENTS, 1, level="system"))
    assert lines(http, export(http, "/Group/cohort-a/$export")) == list(truth(1, PATIENTS, 1, "cohort-a"))
    assert export(http, "/Group/empty/$export", _type="Patient")["output"] == []


def test_post_and_get_export_the_same(http: httpx.Client) -> None:
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "_type", "valueString": "Patient"},
            {"name": "_type", "valueString": "Encounter"},
            {"name": "_outputFormat", "valueString": "application/ndjson"},
        ],
    }
    headers = {**KICK, "Content-Type": "application/fhir+json"}
    answer = http.post("/Group/demo/$export", content=json.dumps(body), headers=headers)
    posted = poll(http, answer.headers["content-location"]).json()
    assert lines(http, posted) == lines(http, export(http, _type="Patient,Encounter"))


def test_patient_narrows_a_posted_export(http: httpx.Client) -> None:
    patient = http.get("/Patient", params={"_count": "1"}).json()["entry"][0]["resource"]
    reference = f"Patient/{patient['id']}"
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "patient", "valueReference": {"reference": reference}},
            {"name": "_type", "valueString": "Patient,Encounter"},
        ],
    }
    headers = {**KICK, "Content-Type": "application/fhir+json"}
    answer = http.post("/Group/demo/$export", content=json.dumps(body), headers=headers)
    found = lines(http, poll(http, answer.headers["content-location"]).json())
    assert len(found) > 1
    assert all(patient["id"] in text.decode() for _, text in found)


def test_since_delivers_changes_and_deletions_of_the_next_night(
    sandbox: SandboxProcess, http: httpx.Client
) -> None:
    """Protocol facts 26 and 31: transactionTime is the next `_since`; deletions are transaction Bundles."""

    def key(kind: str, text: bytes) -> tuple[str, str]:
        return kind, json.loads(text)["id"]

    first = export(http)
    tables = {key(kind, text): text for kind, text in lines(http, first)}
    sandbox.control(night=2)
    second = export(http, _since=first["transactionTime"])
    assert second["transactionTime"] == "2026-01-02T02:00:00.417Z"
    changes = {key(kind, text): text for kind, text in lines(http, second) if kind != "Location"}
    assert 0 < len(changes) < len(tables) / 2
    tables.update(changes)
    for kind, text in lines(http, second, "deleted"):
        bundle = json.loads(text)
        assert (kind, bundle["type"]) == ("Bundle", "transaction")
        for entry in bundle["entry"]:
            assert entry["request"]["method"] == "DELETE"
            del tables[tuple(entry["request"]["url"].split("/"))]
    assert tables == {key(kind, text): text for kind, text in truth(1, PATIENTS, 2)}


def test_an_export_keeps_the_night_of_its_kick_off(sandbox: SandboxProcess, http: httpx.Client) -> None:
    where = kick(http, _type="Patient")
    sandbox.control(night=2)
    assert poll(http, where).json()["transactionTime"] == "2026-01-01T02:00:00.417Z"


def test_filters_and_elements_reach_the_files(http: httpx.Client) -> None:
    manifest = export(http, _type="Patient", _typeFilter="Patient?gender=female", _elements="Patient.gender")
    found = [json.loads(text) for _, text in lines(http, manifest)]
    assert 0 < len(found) < PATIENTS
    for patient in found:
        assert set(patient) - {"_gender"} == {"resourceType", "id", "meta", "gender"}
        assert patient["gender"] == "female"
        assert patient["meta"]["tag"][0]["code"] == "SUBSETTED"


def test_lenient_handling_comes_back_as_error_file(http: httpx.Client) -> None:
    """Protocol fact 12."""
    answer = http.get(
        "/Group/demo/$export",
        params={"_type": "Patient", "organizeOutputBy": "Patient"},
        headers={**KICK, "Prefer": "respond-async, handling=lenient"},
    )
    manifest = poll(http, answer.headers["content-location"]).json()
    [(kind, text)] = lines(http, manifest, "error")
    assert kind == "OperationOutcome"
    assert json.loads(text)["issue"][0]["severity"] == "warning"


# -- status, files, delete


def test_status_tells_progress_then_the_manifest_then_nothing() -> None:
    """Protocol facts 17 to 20, 35."""
    with (
        start_sandbox(patients=3, jwks=JWKS, export_seconds=3, poll_seconds=1) as fresh,
        client(fresh) as http,
    ):
        where = kick(http)
        assert where.startswith(fresh.base_url)
        accept = {"Accept": "application/json"}
        answer = http.get(where, headers=accept)
        assert answer.status_code == 202
        assert answer.headers["retry-after"] == "1"
        assert 0 < len(answer.headers["x-progress"]) <= 100
        refused(http.get(where), 400)
        hasty = [http.get(where, headers=accept) for _ in range(4)]
        assert refused(hasty[-1], 429) == "throttled"
        assert hasty[-1].headers["retry-after"] == "1"
        time.sleep(3.1)  # asked meanwhile, it goes on refusing
        done = http.get(where, headers=accept)
        assert done.status_code == 200
        assert done.headers["expires"].endswith("GMT")
        file = done.json()["output"][0]["url"]
        assert http.get(file).status_code == 200
        assert http.delete(where).status_code == 202
        refused(http.get(where, headers=accept), 404)
        refused(http.get(file), 404)
        refused(http.delete(where), 404)
        assert [job["state"] for job in fresh.control()["jobs"]] == ["deleted"]


def test_file_urls_change_with_each_status_read_and_need_token_and_signature(http: httpx.Client) -> None:
    where = kick(http, _type="Patient")
    first = poll(http, where).json()["output"][0]["url"]
    second = poll(http, where).json()["output"][0]["url"]
    assert first != second
    assert first.split("?")[0] == second.split("?")[0]
    assert http.get(first).content == http.get(second).content
    refused(http.get(first.split("?")[0]), 403)
    refused(http.get(first[:-1] + ("0" if first[-1] != "0" else "1")), 403)
    refused(httpx.get(first), 401)


def test_files_come_as_gzip_where_that_is_accepted(http: httpx.Client) -> None:
    """Protocol fact 29."""
    url = export(http, _type="Observation")["output"][0]["url"]
    with http.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as answer:
        packed = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    plain = http.get(url, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(packed) == plain.content
    assert answer.headers["etag"] != plain.headers["etag"]


def test_a_range_is_that_part_of_the_file(http: httpx.Client) -> None:
    url = export(http, _type="Observation")["output"][0]["url"]
    whole = http.get(url, headers={"Accept-Encoding": "identity"})
    size = len(whole.content)
    for wanted, content in (
        ("bytes=0-99", whole.content[:100]),
        (f"bytes={size - 7}-", whole.content[-7:]),
        ("bytes=-10", whole.content[-10:]),
    ):
        answer = http.get(url, headers={"Range": wanted, "If-Range": whole.headers["etag"]})
        assert (answer.status_code, answer.content) == (206, content)
        assert answer.headers["content-range"].endswith(f"/{size}")
    refused(http.get(url, headers={"Range": f"bytes={size}-"}), 416)
    assert http.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200


def test_manifest_pages_together_hold_every_file() -> None:
    options: dict[str, Any] = {"export_seconds": 0, "poll_seconds": 0, "file_lines": 20, "page_size": 7}
    with start_sandbox(patients=6, jwks=JWKS, **options) as fresh, client(fresh) as http:
        page = export(http)
        files = []
        pages = 1
        while True:
            files += lines(http, page)
            if "link" not in page:
                break
            [link] = page["link"]
            assert link["relation"] == "next"
            page = http.get(link["url"]).json()
            pages += 1
        assert pages > 2
        assert files == list(truth(1, 6, 1))


def test_one_export_at_a_time_where_that_is_set() -> None:
    """Protocol fact 17."""
    with (
        start_sandbox(patients=1, jwks=JWKS, export_seconds=60, one_at_a_time=True) as fresh,
        client(fresh) as http,
    ):
        where = kick(http)
        busy = http.get("/Group/demo/$export", headers=KICK)
        assert refused(busy, 429) == "throttled"
        assert busy.headers["retry-after"]
        http.delete(where)
        kick(http)
        assert fresh.control()["kickoffs"] == 2


# -- reads and search


def test_reads_and_search_agree_with_the_export(sandbox: SandboxProcess, http: httpx.Client) -> None:
    by_id = {json.loads(text)["id"]: text for kind, text in truth(1, PATIENTS, 1) if kind == "Encounter"}
    some = next(iter(by_id))
    assert http.get(f"/Encounter/{some}").content == by_id[some]
    assert http.get("/Encounter", params={"_summary": "count"}).json()["total"] == len(by_id)
    found = http.get("/Encounter", params={"_id": some}).json()
    assert [entry["resource"]["id"] for entry in found["entry"]] == [some]
    page, seen = http.get("/Encounter", params={"_count": "10"}).json(), set()
    while True:
        seen |= {entry["resource"]["id"] for entry in page["entry"]}
        following = [link["url"] for link in page["link"] if link["relation"] == "next"]
        if not following:
            break
        page = http.get(following[0]).json()
    assert seen == set(by_id)
    subject = json.loads(by_id[some])["subject"]["reference"].split("/_history")[0].rpartition("/")[2]
    mine = http.get("/Encounter", params={"patient": subject}).json()
    assert some in {entry["resource"]["id"] for entry in mine["entry"]}
    assert http.get("/Group/demo").json()["quantity"] == PATIENTS
    refused(http.get("/Encounter/unknown"), 404)
    refused(http.get("/Nonsense"), 404)
    refused(http.get("/Encounter", params={"colour": "red"}), 400)
    sandbox.control(night=2)
    now = {json.loads(text)["id"] for kind, text in truth(1, PATIENTS, 2) if kind == "Condition"}
    before = {json.loads(text)["id"] for kind, text in truth(1, PATIENTS, 1) if kind == "Condition"}
    refused(http.get(f"/Condition/{(before - now).pop()}"), 410)


# -- faults


def test_faults_happen_as_often_as_scripted(sandbox: SandboxProcess, http: httpx.Client) -> None:
    where = kick(http, _type="Patient")
    for status in (404, 410, 429, 500):
        fault = {"path": "^/bulk/status/", "times": 2, "status": status, "headers": {"Retry-After": "3"}}
        sandbox.control(faults=[fault])
        answers = [http.get(where, headers={"Accept": "application/json"}) for _ in range(3)]
        assert [answer.status_code for answer in answers[:2]] == [status, status]
        assert answers[0].headers["retry-after"] == "3"
        assert answers[2].status_code in (200, 202)
        assert sandbox.control()["faults"][0]["used"] == 2


def test_a_status_can_be_stuck_for_ever(sandbox: SandboxProcess, http: httpx.Client) -> None:
    """Protocol fact 25."""
    where = kick(http, _type="Patient")
    assert poll(http, where).status_code == 200
    sandbox.control(faults=[{"path": "^/bulk/status/", "method": "GET", "times": None, "status": 202}])
    for _ in range(5):
        assert http.get(where, headers={"Accept": "application/json"}).status_code == 202
    assert http.delete(where).status_code == 202


def test_a_file_can_be_cut_short_silently_or_with_the_connection(
    sandbox: SandboxProcess, http: httpx.Client
) -> None:
    url = export(http, _type="Observation")["output"][0]["url"]
    plain = {"Accept-Encoding": "identity"}
    whole = http.get(url, headers=plain).content
    sandbox.control(faults=[{"path": "^/bulk/files/", "truncate_after": 5000}])
    assert http.get(url, headers=plain).content == whole[:5000]
    assert http.get(url, headers=plain).content == whole
    sandbox.control(faults=[{"path": "^/bulk/files/", "truncate_after": 5000, "cut": True}])
    with pytest.raises(httpx.RemoteProtocolError):
        http.get(url, headers=plain)
    assert http.get(url, headers=plain).content == whole


def test_a_login_page_can_stand_in_for_a_file(sandbox: SandboxProcess, http: httpx.Client) -> None:
    """Protocol fact 34."""
    url = export(http, _type="Patient")["output"][0]["url"]
    page = "<!doctype html><title>Sign in</title>"
    sandbox.control(faults=[{"path": r"/0\.ndjson", "status": 200, "body": page}])
    answer = http.get(url)
    assert (answer.status_code, answer.text) == (200, page)
    assert answer.headers["content-type"].startswith("text/html")


def test_a_manifest_can_promise_a_wrong_count(sandbox: SandboxProcess, http: httpx.Client) -> None:
    """Protocol fact 33."""
    where = kick(http, _type="Patient,Encounter")
    right = poll(http, where).json()["output"]
    sandbox.control(faults=[{"path": "^/bulk/status/", "wrong_count": -2, "type": "Encounter"}])
    wrong = poll(http, where).json()["output"]
    differences = {a["type"]: b["count"] - a["count"] for a, b in zip(right, wrong, strict=True)}
    assert differences == {"Patient": 0, "Encounter": -2}
    sandbox.control(faults=[{"path": "^/bulk/status/", "wrong_count": True}])
    assert poll(http, where).json()["output"][0]["count"] == right[0]["count"] + 1


def test_bytes_can_be_put_into_a_file_and_its_entry_can_declare_another_type_or_none(
    sandbox: SandboxProcess, http: httpx.Client
) -> None:
    """Protocol facts 27 and 34."""
    where = kick(http, _type="Patient")
    url = poll(http, where).json()["output"][0]["url"]
    whole = http.get(url, headers={"Accept-Encoding": "identity"}).content
    odd = [(b"\xff\n", 0), (b"null\r\n", 2), (b'{"half', None)]
    insert = [{"base64": base64.b64encode(data).decode(), "after": after} for data, after in odd]
    sandbox.control(faults=[{"path": "^/bulk/files/", "insert": insert}])
    answer = http.get(url, headers={"Accept-Encoding": "gzip"})
    lines = whole.splitlines(keepends=True)
    expected = [b"\xff\n", *lines[:2], b"null\r\n", *lines[2:], b'{"half']
    assert answer.content == b"".join(expected)
    assert answer.headers["content-length"] == str(len(answer.content))
    for retype, declared in (("Nonsense", "Nonsense"), ("", None)):
        sandbox.control(faults=[{"path": "^/bulk/status/", "retype": retype}])
        assert poll(http, where).json()["output"][0]["type"] == declared


def test_a_malformed_script_is_refused_and_changes_nothing(
    sandbox: SandboxProcess, http: httpx.Client
) -> None:
    for script in ([{"path": "["}], [{"status": 500}], [{"path": "x", "colour": "red"}], 7):
        with pytest.raises(ValueError, match="fault"):
            sandbox.control(faults=script)
    with pytest.raises(ValueError, match="night"):
        sandbox.control(night=0)
    assert sandbox.control()["faults"] == []


# -- the process


def test_the_access_log_holds_every_request_and_no_token(tmp_path: Path) -> None:
    log = tmp_path / "access.ndjson"
    with start_sandbox(patients=1, jwks=JWKS, access_log=log) as fresh, client(fresh) as http:
        http.get("/Patient", params={"_count": "1"})
        token = http.headers["authorization"].removeprefix("Bearer ")
        entries = fresh.access_log()
        assert [(entry["method"], entry["path"], entry["status"]) for entry in entries[-2:]] == [
            ("POST", "/auth/token", 200),
            ("GET", "/fhir/Patient", 200),
        ]
        assert (entries[-1]["auth"], entries[-1]["query"]) == ("Bearer", "_count=1")
        assert entries[-2]["auth"] is None
        assert token not in log.read_text()


def test_jobs_and_night_survive_a_crash_where_a_state_folder_is_given(tmp_path: Path) -> None:
    options: dict[str, Any] = {"patients": 4, "jwks": JWKS, "state": tmp_path, "export_seconds": 0.3}
    with start_sandbox(**options) as before, client(before) as http:
        before.control(night=2)
        where = kick(http, _type="Patient", _since="2025-06-01T00:00:00Z")
        port = before.base_url.rpartition(":")[2]
        before.kill()
    with start_sandbox(**options, port=port) as after, client(after) as http:
        assert after.control()["night"] == 2
        manifest = poll(http, where, 0.6).json()
        assert manifest["transactionTime"].startswith("2026-01-02")
        assert lines(http, manifest)


def test_it_ends_cleanly_on_sigterm_and_with_its_starter(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "pipeline.sandbox", "--patients=1", f"--ready-file={ready}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        assert httpx.get(base_url + "/fhir/metadata").status_code == 200
        assert json.loads(ready.read_text()) == {"base_url": base_url, "pid": process.pid}
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    orphan = start_sandbox(patients=1)
    assert orphan._process.stdin is not None
    orphan._process.stdin.close()
    assert orphan._process.wait(15) == 0
    with orphan:
        pass


def test_a_wrong_option_is_one_clear_line() -> None:
    command = [sys.executable, "-m", "pipeline.sandbox", "--scope=openid"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_large_export_needs_no_more_memory_than_a_small_one() -> None:
    """The server makes lines while it sends them: twenty times the resources, the same memory."""

    def growth(observations: int) -> tuple[int, int]:
        options: dict[str, Any] = {
            "observations_per_patient": observations,
            "file_lines": 100_000,
            "poll_seconds": 0,
        }
        with (
            start_sandbox(patients=100, jwks=JWKS, export_seconds=0, **options) as fresh,
            client(fresh) as http,
        ):
            manifest = export(http, _type="Observation")
            count = sum(entry["count"] for entry in manifest["output"])
            peak, seen = 0, 0
            for entry in manifest["output"]:
                with http.stream("GET", entry["url"], headers={"Accept-Encoding": "identity"}) as answer:
                    for piece in answer.iter_raw():
                        seen += piece.count(b"\n")
                        peak = max(peak, psutil.Process(fresh.pid).memory_info().rss)
            assert seen == count
            return count, peak

    small, small_peak = growth(20)
    large, large_peak = growth(400)
    assert large > 15 * small
    assert large_peak < small_peak + 12_000_000
