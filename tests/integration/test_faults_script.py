"""Each member of a scripted fault as it is on the wire, plain and with a stand-in, asked with httpx alone."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from sandbox_as_caller import (
    JWKS,
    POLL,
    assertion,
    caller,
    export,
    kick,
    poll,
    token_form,
    where,
)

from pipeline.sandbox.process import SandboxProcess, start_sandbox

PLAIN = {"Accept-Encoding": "identity"}
STATUS = r"^/bulk/status/\w+$"
FILES = "^/bulk/files/"
QUERY = "_type=Patient,Encounter"


def ask_token(box: SandboxProcess) -> httpx.Response:
    form = token_form(assertion(box.audience))
    return httpx.post(box.token_url, data={**form, "scope": "system/*.rs"})


@pytest.fixture(scope="module")
def box() -> Iterator[SandboxProcess]:
    with start_sandbox(
        patients=8, jwks=JWKS, export_seconds=0, poll_seconds=0, file_lines=40, state=None
    ) as running:
        yield running


@pytest.fixture
def http(box: SandboxProcess) -> Iterator[httpx.Client]:
    with caller(box.fhir_url, ask_token(box).json()["access_token"]) as client:
        yield client
    box.control(faults=[])


def script(box: SandboxProcess, *faults: dict[str, Any]) -> None:
    box.control(faults=list(faults))


def counts(box: SandboxProcess) -> list[tuple[int, int, int]]:
    return [(each["seen"], each["used"], each["happened"]) for each in box.control()["faults"]]


def statuses(http: httpx.Client, url: str, times: int) -> list[int]:
    return [http.get(url, headers=POLL).status_code for _ in range(times)]


def ended(http: httpx.Client, box: SandboxProcess) -> str:
    """The status URL of an export that is complete."""
    url = where(kick(http, query=QUERY))
    assert poll(http, url).status_code == 200
    return url


# -- which requests


def test_skip_every_and_times_choose_by_count_alone(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    script(box, {"path": STATUS, "name": "busy", "status": 503, "skip": 1, "every": 2, "times": 2})
    assert statuses(http, url, 7) == [200, 200, 503, 200, 503, 200, 200]
    assert counts(box) == [(7, 2, 2)]
    assert box.control()["faults"][0]["name"] == "busy"


def test_the_first_that_takes_a_request_has_it_alone(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    script(
        box, {"path": STATUS, "status": 500}, {"path": STATUS, "status": 501}, {"path": FILES, "status": 502}
    )
    assert statuses(http, url, 3) == [500, 501, 200]
    assert counts(box) == [(3, 1, 1), (2, 1, 1), (0, 0, 0)]


def test_answer_waits_for_what_the_application_says(http: httpx.Client, box: SandboxProcess) -> None:
    """The export is accepted, and the client is told that it was not."""
    kickoffs = box.control()["kickoffs"]
    script(box, {"path": r"\$export", "answer": 202, "status": 500, "body": "<html>no</html>"})
    assert kick(http, query="_type=Nonsense").status_code == 400
    lost = kick(http, query=QUERY)
    assert (lost.status_code, lost.text) == (500, "<html>no</html>")
    assert "content-location" not in lost.headers
    assert box.control()["kickoffs"] == kickoffs + 1
    assert counts(box) == [(1, 1, 1)]


def test_method_and_query_belong_to_the_pattern(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    script(
        box,
        {"path": STATUS, "method": "DELETE", "status": 503},
        {"path": r"Patient\?_count=1$", "status": 418},
    )
    assert statuses(http, url, 1) == [200]
    assert http.delete(url).status_code == 503
    assert http.get("/Patient?_count=2").status_code == 200
    assert http.get("/Patient?_count=1").status_code == 418


def test_counted_but_without_effect_is_told_apart(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    script(box, {"path": STATUS, "wrong_count": 1, "type": "Device"}, {"path": FILES, "truncate_after": 9**9})
    manifest = http.get(url, headers=POLL).json()
    http.get(manifest["output"][0]["url"])
    assert counts(box) == [(1, 1, 0), (1, 1, 0)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 500}, "fault 2 .*required field `path`"),
        ({"path": "["}, "fault 2 .*path is no regular expression"),
        ({"path": "x", "colour": 1}, "fault 2 .*unknown field `colour`"),
        ({"path": "x", "skip": -1}, r"fault 2 .*>= 0 - at `\$.skip`"),
        ({"path": "x", "every": 0}, r"fault 2 .*at `\$.every`"),
        ({"path": "x", "changes": ["melted"]}, r"fault 2 .*'melted' - at `\$.changes\[0\]`"),
        ({"path": "x", "gone": 500}, r"fault 2 .*at `\$.gone`"),
        ({"path": "x", "insert": [{"base64": "!"}]}, r"fault 2 .*at `\$.insert\[0\].base64`"),
        ({"path": "x", "cut": True}, "fault 2 .*cut needs truncate_after"),
        ({"path": "x", "body": "y"}, "fault 2 .*body needs status"),
        ({"path": "x", "redirect": "http://h", "status": 200}, "fault 2 .*status of a redirect"),
        ({"path": "x", "stuck": True, "gone": 410}, "fault 2 .*one of gone, stuck and failed"),
        ({"path": "x", "status": 500, "wrong_count": 1}, "fault 2 .*in the place of"),
        ({"path": "x", "status": 500, "headers": {"A": "b\r\nC: d"}}, "fault 2 .*no header can have"),
        ({"path": "x", "status": 500, "headers": {"A": "ä"}}, "fault 2 .*must be ASCII"),
    ],
)
def test_a_wrong_entry_is_refused_by_its_number_and_member(
    box: SandboxProcess, fault: dict[str, Any], words: str
) -> None:
    script(box, {"path": "untouched"})
    with pytest.raises(ValueError, match=words):
        box.control(faults=[{"path": "good"}, fault])
    assert [each["path"] for each in box.control()["faults"]] == ["untouched"]


# -- before the answer, and the job


def test_delay_waits_first(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    script(box, {"path": STATUS, "delay": 0.5})
    began = time.monotonic()
    assert statuses(http, url, 1) == [200]
    assert time.monotonic() - began >= 0.5


def test_tokens_are_revoked_at_the_request_that_is_chosen(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    script(box, {"path": STATUS, "revoke_tokens": True, "skip": 2})
    assert statuses(http, url, 4) == [200, 200, 401, 401]
    http.headers["Authorization"] = f"Bearer {ask_token(box).json()['access_token']}"
    assert statuses(http, url, 1) == [200]


def test_a_token_can_be_said_to_live_shorter(http: httpx.Client, box: SandboxProcess) -> None:
    """Protocol fact 8."""
    script(box, {"path": "^/auth/token", "members": {"expires_in": "1", "scope": None}})
    told = ask_token(box).json()
    assert told["expires_in"] == "1"
    assert "scope" not in told
    assert ask_token(box).json()["expires_in"] == 300


@pytest.mark.parametrize("status", [404, 410])
def test_a_job_that_is_gone_stays_gone(http: httpx.Client, box: SandboxProcess, status: int) -> None:
    """Protocol fact 24."""
    url, other = ended(http, box), ended(http, box)
    file = http.get(url, headers=POLL).json()["output"][0]["url"]
    script(box, {"path": STATUS, "gone": status})
    assert statuses(http, url, 2) == [status, status]
    script(box)
    assert (http.get(file).status_code, http.delete(url).status_code) == (status, status)
    assert statuses(http, other, 1) == [200]


def test_a_stuck_job_never_ends_but_can_be_deleted(http: httpx.Client, box: SandboxProcess) -> None:
    """Protocol fact 25."""
    url = where(kick(http, query=QUERY))
    script(box, {"path": STATUS, "stuck": True})
    assert statuses(http, url, 3) == [202] * 3
    assert "99%" in http.get(url, headers=POLL).headers["x-progress"]
    assert http.delete(url).status_code == 202
    assert statuses(http, url, 1) == [404]


def test_a_job_can_fail_with_a_status_of_its_own(http: httpx.Client, box: SandboxProcess) -> None:
    url = where(kick(http, query=QUERY))
    script(box, {"path": STATUS, "failed": 413})
    answer = http.get(url, headers=POLL)
    assert (answer.status_code, answer.json()["resourceType"]) == (413, "OperationOutcome")
    assert statuses(http, url, 1) == [413]


# -- the answer


def test_html_nonsense_headers_and_json_in_the_applications_place(
    http: httpx.Client, box: SandboxProcess
) -> None:
    url = ended(http, box)
    page = "<!doctype html><title>Sign in</title>"
    script(
        box,
        {"path": STATUS, "status": 200, "body": page},
        {"path": STATUS, "status": 429, "headers": {"Retry-After": -1}, "body": {"a": 1}},
        {"path": STATUS, "headers": {"Content-Type": "text/html", "Expires": None, "X-Long": "x" * 9000}},
    )
    login = http.get(url, headers=POLL)
    assert (login.status_code, login.text) == (200, page)
    assert login.headers["content-type"].startswith("text/html")
    busy = http.get(url, headers=POLL)
    assert (busy.status_code, busy.headers["retry-after"], busy.json()) == (429, "-1", {"a": 1})
    bent = http.get(url, headers=POLL)
    assert bent.json()["output"]
    assert (bent.headers["content-type"], len(bent.headers["x-long"])) == ("text/html", 9000)
    assert "expires" not in bent.headers


def test_a_redirect_goes_where_it_says_with_the_path(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    file = http.get(url, headers=POLL).json()["output"][0]["url"]
    elsewhere = box.base_url.replace("127.0.0.1", "localhost")
    script(
        box,
        {"path": FILES, "redirect": elsewhere + "{target}"},
        {"path": FILES, "redirect": "/", "status": 301},
    )
    first = http.get(file, follow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (307, file.replace("127.0.0.1", "localhost"))
    assert http.get(file, follow_redirects=False).status_code == 301
    assert http.get(file).status_code == 200


# -- the manifest


def test_a_manifest_changes_from_the_second_reading_on(http: httpx.Client, box: SandboxProcess) -> None:
    """Readings count, not the polls before them."""
    fault = {"path": STATUS, "answer": 200, "skip": 1, "times": None, "type": "Encounter"}
    for change in ("vanished", "appeared", "repeated", "reordered", "new_urls"):
        script(box, {**fault, "changes": [change]})
        url = where(kick(http, query=QUERY))
        first, second = (poll(http, url).json()["output"] for _ in range(2))
        was, now = (
            [(each["type"], each["url"].split("?")[0]) for each in output] for output in (first, second)
        )
        assert len(was) > 1
        if change == "vanished":
            was.remove(next(each for each in was if each[0] == "Encounter"))
            assert now == was
        elif change == "appeared":
            assert now[:-1] == was
            assert now[-1] not in was
            assert http.get(second[-1]["url"]).status_code == 404
        elif change == "repeated":
            assert now[:-1] == was
            assert now[-1] in was
        elif change == "reordered":
            assert now == was[::-1]
        else:
            assert now == was
            assert all("again=" in each["url"] for each in second)
            assert http.get(second[0]["url"]).status_code == 200
        assert counts(box)[0][1:] == (1, 1)


@pytest.mark.parametrize("count", [None, -1, 1.5, "12", True, 10**30])
def test_a_count_can_be_anything(http: httpx.Client, box: SandboxProcess, count: object) -> None:
    """Protocol fact 33."""
    url = ended(http, box)
    script(box, {"path": STATUS, "count": count, "type": "Encounter"})
    output = http.get(url, headers=POLL).json()["output"]
    chosen = next(each for each in output if each["type"] == "Encounter")
    assert chosen.get("count") == count
    assert ("count" in chosen) is (count is not None)
    assert isinstance(output[0]["count"], int)


def test_members_of_a_manifest_can_be_set_and_taken_away(http: httpx.Client, box: SandboxProcess) -> None:
    """Protocol facts 26 and 27."""
    url = ended(http, box)
    script(box, {"path": STATUS, "members": {"transactionTime": "yesterday", "request": None}})
    manifest = http.get(url, headers=POLL).json()
    assert manifest["transactionTime"] == "yesterday"
    assert "request" not in manifest


# -- files and bytes


def test_lines_change_their_type_and_the_last_ones_are_dropped(
    http: httpx.Client, box: SandboxProcess
) -> None:
    """Protocol fact 34; the end is clean, its length announced: no byte tells that a line is missing."""
    url = ended(http, box)
    file = http.get(url, headers=POLL).json()["output"][0]["url"]
    whole = http.get(file, headers=PLAIN).content.splitlines(keepends=True)
    script(box, {"path": FILES, "line_types": [{"line": 1, "type": "Device"}], "drop_lines": 2})
    answer = http.get(file)
    lines = answer.content.splitlines(keepends=True)
    assert answer.headers["content-length"] == str(len(answer.content))
    assert "content-encoding" not in answer.headers
    assert len(lines) == len(whole) - 2
    assert json.loads(lines[1]) == {**json.loads(whole[1]), "resourceType": "Device"}
    assert [lines[0], *lines[2:]] == [whole[0], *whole[2:-2]]
    insert = [{"base64": base64.b64encode(whole[0]).decode(), "after": 1}]
    script(box, {"path": FILES, "insert": insert})
    assert http.get(file).content.splitlines(keepends=True)[:3] == [whole[0], whole[0], whole[1]]


def test_corruption_keeps_the_length(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    file = http.get(url, headers=POLL).json()["output"][0]["url"]
    whole = http.get(file, headers=PLAIN).content
    script(
        box, {"path": FILES, "corrupt": {"at": 7, "every": 1000}, "times": 2}, {"path": FILES, "corrupt": {}}
    )
    bent = http.get(file, headers=PLAIN).content
    differ = [place for place, (a, b) in enumerate(zip(whole, bent, strict=True)) if a != b]
    assert differ == list(range(7, len(whole), 1000))
    assert all(bent[place] == whole[place] ^ 0xFF for place in differ)
    with pytest.raises(UnicodeDecodeError):
        bent.decode()
    with pytest.raises(httpx.DecodingError):
        http.get(file, headers={"Accept-Encoding": "gzip"})
    assert http.get(file, headers=PLAIN).content == bytes([whole[0] ^ 0xFF]) + whole[1:]


def test_gzip_can_be_cut_and_ends_as_if_it_were_whole(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    file = http.get(url, headers=POLL).json()["output"][0]["url"]
    script(box, {"path": FILES, "truncate_after": 200})
    with http.stream("GET", file, headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert len(raw) == 200
    with pytest.raises(EOFError):
        gzip.decompress(raw)
    assert zlib.decompressobj(31).decompress(raw).startswith(b'{"resourceType"')


def test_a_connection_is_dropped_in_an_answer_of_the_script_too(
    http: httpx.Client, box: SandboxProcess
) -> None:
    url = ended(http, box)
    script(box, {"path": STATUS, "status": 200, "body": {"output": []}, "truncate_after": 3, "cut": True})
    with pytest.raises(httpx.RemoteProtocolError):
        http.get(url, headers=POLL)
    assert counts(box) == [(1, 1, 1)]
    assert statuses(http, url, 1) == [200]


def test_slow_bytes_take_their_time(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    script(box, {"path": STATUS, "status": 200, "body": "x" * 50, "slow": 100})
    began = time.monotonic()
    assert len(http.get(url, headers=POLL).content) == 50
    assert time.monotonic() - began >= 0.3


def test_a_body_that_never_ends_goes_on_until_nobody_listens(http: httpx.Client, box: SandboxProcess) -> None:
    url = ended(http, box)
    file = http.get(url, headers=POLL).json()["output"][0]["url"]
    whole = http.get(file, headers=PLAIN).content
    script(
        box,
        {"path": FILES, "never_ends": "again and "},
        {"path": STATUS, "status": 200, "body": "", "never_ends": "<"},
    )
    for address, start in ((file, whole), (url, b"")):
        seen = b""
        with http.stream("GET", address, headers={**POLL, **PLAIN}) as answer:
            assert "content-length" not in answer.headers
            for piece in answer.iter_raw():
                seen += piece
                if len(seen) > len(start) + 3_000_000:
                    break
        assert seen.startswith(start + (b"again and again and " if start else b"<<<"))
    assert statuses(http, url, 1) == [200]
    deadline = time.monotonic() + 20
    while [each[2] for each in counts(box)] != [1, 1] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [each[2] for each in counts(box)] == [1, 1]  # the server has stopped sending


# -- the file, and the stand-ins


def test_a_script_is_read_from_a_file_and_replaced_by_the_control_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text(
        "# a note\n- path: ^/fhir/metadata\n  status: 503\n  headers: {Retry-After: 99999999999}\n"
    )
    with start_sandbox(patients=1, jwks=JWKS, faults=path) as running:
        answer = httpx.get(running.fhir_url + "/metadata")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "99999999999")
        assert httpx.get(running.fhir_url + "/metadata").status_code == 200
        assert counts(running) == [(2, 1, 1)]
        assert running.control(faults=[])["faults"] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "- path: x\n  times: never\n",
            "fault 1 is malformed: Expected `int | null`, got `str` - at `$.times`",
        ),
        ("path: x\n", "A script is a list of faults"),
        ("- {path: x\n", "is not YAML"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_ends_the_start_with_its_reason(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "faults.yaml"
    if text is not None:
        path.write_text(text)
    command = [sys.executable, "-m", "pipeline.sandbox", "--faults", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stand_in_takes_the_same_script(tmp_path: Path) -> None:
    """Aidbox: relative status URLs with a dollar sign, files at another origin."""
    options = {"stand_in": "aidbox", "registered": True, "export_seconds": 0, "patients": 4}
    faults = [
        {"path": r"export-status", "answer": 200, "changes": ["vanished"], "times": None, "skip": 1},
        {"path": "^/signed/", "truncate_after": 100},
    ]
    with start_sandbox(jwks=JWKS, faults=faults, **options) as running:
        token = httpx.post(running.token_url, data=token_form(assertion(running.audience))).json()
        with caller(running.fhir_url, token["access_token"]) as http:
            status = where(kick(http))
            manifest, again = poll(http, status).json(), poll(http, status).json()
            assert len(again["output"]) == len(manifest["output"]) - 1
            file = manifest["output"][0]["url"]
            assert [len(httpx.get(file).content) > 100 for _ in range(2)] == [False, True]
            running.control(faults=[{"path": "export-status", "failed": 413}])
            failed = http.get(status, headers=POLL)
            assert failed.status_code == 413
            assert "export operation failed for reason" in failed.text
            running.control(faults=[{"path": "export-status", "gone": 410}])
            assert http.get(status, headers=POLL).status_code == 410
            assert httpx.get(file).status_code == 404
            # One export at a time: the one that is gone is in nobody's way, one that is stuck is.
            stuck = where(kick(http))
            running.control(faults=[{"path": "export-status", "stuck": True}])
            assert http.get(stuck, headers=POLL).status_code == 202
            assert kick(http).status_code == 429
            assert export_after_delete(http, stuck)["output"]


def export_after_delete(http: httpx.Client, stuck: str) -> dict[str, Any]:
    assert http.delete(stuck).status_code == 202
    return export(http)


def test_a_doomed_job_stays_so_over_a_restart(tmp_path: Path) -> None:
    options = {"patients": 1, "jwks": JWKS, "export_seconds": 0, "state": tmp_path / "state"}
    ids = []
    with ExitStack() as stack:
        running = stack.enter_context(start_sandbox(**options))
        token = ask_token(running).json()["access_token"]
        with caller(running.fhir_url, token) as http:
            for fate in ({"gone": 410}, {"stuck": True}, {"failed": 503}):
                url = where(kick(http, query="_type=Patient"))
                ids.append(url.rpartition("/")[2])
                running.control(faults=[{"path": STATUS, **fate}])
                http.get(url, headers=POLL)
    with start_sandbox(**options) as running:
        assert {each["id"]: each["state"] for each in running.control()["jobs"]} == dict(
            zip(ids, ["gone", "in-progress", "failed"], strict=True)
        )
