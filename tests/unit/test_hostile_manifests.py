"""Manifests that no honest server gives: too many files, endless pages, nesting, numbers, half characters."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from pipeline.bulkdata import pages as paging
from pipeline.bulkdata.limits import Limits
from pipeline.bulkdata.manifest import parse_manifest, redacted_page
from pipeline.bulkdata.outcome import describe, read_json, read_outcome
from pipeline.bulkdata.pages import Pages
from pipeline.bulkdata.verdicts import progress
from pipeline.errors import Unreachable, VerificationFailed

TIME = "2026-01-01T00:00:00Z"


def page(*files: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"transactionTime": TIME, "requiresAccessToken": False, "output": list(files), **members}


def file_(number: int, **members: Any) -> dict[str, Any]:
    return {"type": "Patient", "url": f"https://files.example.org/{number}.ndjson", **members}


def test_as_many_files_as_allowed_are_taken_and_one_more_is_not() -> None:
    """`downloads.limits.files` counts over all pages, output, deleted and error together."""
    pages = Pages(Limits(files=4))
    pages.add(page(file_(1), file_(2), deleted=[file_(3)]), "https://a.example.org/1", 100)
    pages.add({"output": [file_(4)]}, "https://a.example.org/2", 100)
    assert len(pages.manifest().files) == 4
    with pytest.raises(VerificationFailed, match=r"downloads\.limits\.files"):
        pages.add({"error": [file_(5)]}, "https://a.example.org/3", 100)


def test_a_page_that_comes_again_under_another_address_is_no_new_page() -> None:
    pages = Pages(Limits())
    pages.add(page(), "https://a.example.org/0", 100)
    pages.add({"output": [file_(1), file_(2)]}, "https://a.example.org/1", 100)
    pages.add({"output": []}, "https://a.example.org/2", 100)
    pages.add({"output": []}, "https://a.example.org/3", 100)
    with pytest.raises(VerificationFailed, match="no end"):
        pages.add({"output": [file_(1), file_(2)]}, "https://a.example.org/4", 100)


def test_pages_are_bounded_in_number_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(Limits())
    pages.add(page(file_(1)), "https://a.example.org/1", paging.MOST_BYTES)
    with pytest.raises(VerificationFailed, match="larger than"):
        pages.add({"output": [file_(2)]}, "https://a.example.org/2", 1)
    monkeypatch.setattr(paging, "MOST_PAGES", 3)
    pages = Pages(Limits())
    for number in range(3):
        pages.add(page(file_(number)), f"https://a.example.org/{number}", 1)
    with pytest.raises(VerificationFailed, match="no end"):
        pages.add({"output": [file_(9)]}, "https://a.example.org/9", 1)
    monkeypatch.setattr(paging, "LONGEST", -1.0)
    with pytest.raises(Unreachable, match="had not ended"):
        Pages(Limits()).add(page(), "https://a.example.org/1", 1)


def test_a_manifest_of_very_many_files_costs_memory_in_proportion() -> None:
    """A fifth of what `downloads.limits.files` allows: parsed, gathered, redacted; in a fresh process."""
    script = """
        import json, time
        from pathlib import Path
        from pipeline.bulkdata.limits import Limits
        from pipeline.bulkdata.manifest import redacted_page
        from pipeline.bulkdata.outcome import read_json
        from pipeline.bulkdata.pages import Pages

        entry = '{"type":"Observation","url":"https://files.example.org/export/%032d.ndjson?sig=%064d","count":1000}'
        body = '{"transactionTime":"2026-01-01T00:00:00Z","requiresAccessToken":false,"output":['
        body = (body + ",".join(entry % (n, n) for n in range(200_000)) + "]}").encode()
        begun = time.process_time()
        pages = Pages(Limits())
        pages.add(read_json(body), "https://a.example.org/1", len(body))
        manifest = pages.manifest()
        redacted_page(manifest.pages[0])
        took = time.process_time() - begun
        # VmHWM, since `ru_maxrss` also remembers the process that started this one
        status = Path("/proc/self/status").read_text()
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        print(json.dumps([len(manifest.files), len(body), took, memory]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={"PYTHONPATH": ":".join(each for each in sys.path if each)},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    files, _, seconds, kilobytes = json.loads(done.stdout)
    assert files == 200_000
    assert kilobytes < 1 << 20
    assert seconds < 120


@pytest.mark.parametrize("depth", [300, 10_000, 1_000_000])
@pytest.mark.parametrize("where", ["manifest", "extension", "outcome"])
def test_nesting_without_end_is_no_json(depth: int, where: str) -> None:
    deep = b"[" * depth + b"]" * depth
    body = {
        "manifest": deep,
        "extension": b'{"transactionTime":"2026-01-01T00:00:00Z","output":[],"extension":' + deep + b"}",
        "outcome": b'{"resourceType":"OperationOutcome","issue":' + deep + b"}",
    }[where]
    assert read_json(body) is None
    assert read_outcome(body) is None
    assert len(describe(body)) <= 300


def test_what_is_nested_as_deep_as_may_be_can_be_stored() -> None:
    """The parser's bound is far below what redaction and the JSON writer can walk."""
    deep = b"[" * 190 + b"]" * 190
    value = read_json(b'{"transactionTime":"%s","output":[],"extension":%s}' % (TIME.encode(), deep))
    assert value is not None
    json.dumps(redacted_page(dict(parse_manifest(value).pages[0])))


@pytest.mark.parametrize(
    "count",
    ["1e300", "10000000000000000000000", "-1", "1e999", "-1e999", "NaN", '"9999999999999999999"', "1.5"],
)
def test_a_count_that_no_table_can_hold_is_refused(count: str) -> None:
    value = read_json(
        b'{"transactionTime":"%s","output":[{"url":"https://f.example.org/1","count":%s}]}'
        % (TIME.encode(), count.encode())
    )
    with pytest.raises(VerificationFailed, match="count"):
        parse_manifest(value)


@pytest.mark.parametrize("number", [b"1" * 5000, b"-" + b"9" * 100_000])
def test_a_number_of_thousands_of_digits_is_no_json(number: bytes) -> None:
    assert read_json(b'{"count":' + number + b"}") is None


@pytest.mark.parametrize("text", [rb"\ud800", rb"\udfff", rb"\ud800\ud800"])
def test_half_a_character_is_no_json(text: bytes) -> None:
    """It could be read, but never be written as UTF-8 again."""
    assert read_json(b'{"url":"' + text + b'"}') is None


def test_odd_but_whole_json_is_read() -> None:
    assert read_json(b"\xef\xbb\xbf" + b'{"a":1,"a":2,"b":"\\u0000\\ud83d\\ude00"}') == {
        "a": 2,
        "b": "\0\U0001f600",
    }


@pytest.mark.parametrize(
    "name",
    ["../../etc", "Patient/../..", "Patient\0", "/etc", "..", "P\u0430tient", "patient", "PATIENT",
     "P" * 100_000,
     "Patient\x1b[31m", "CON", "Patient ", "Patient\n", "%2e%2e", "\\\\host\\share", "Patient\u202e"],
)  # fmt: skip
def test_no_word_of_the_server_becomes_part_of_a_path_or_of_a_message(name: str) -> None:
    """A type that is none of R4 is kept apart, and its files bear numbers."""
    from pipeline.exports.staging import UNTYPED, group_of

    file = parse_manifest(page(file_(0, type=name))).files[0]
    assert group_of(file) == UNTYPED

    assert file.label.isprintable()
    assert len(file.label) < 100


@pytest.mark.parametrize(
    "said",
    [
        "\x1b[2J\x1b[31mred",
        "a\r\nFAKE LOG LINE",
        "a\x00b",
        "\u202eevil",
        "\x9b31m",
        "a\u2028b",
        "\ufeffx",
        "x" * 10**6,
    ],
)
def test_what_a_server_says_is_one_printable_line(said: str) -> None:
    """In terminals, logs and the UI; from an OperationOutcome, OAuth's JSON, plain text and X-Progress."""
    bodies = [
        json.dumps(
            {
                "resourceType": "OperationOutcome",
                "issue": [{"severity": said, "code": said, "diagnostics": said}],
            }
        ),
        json.dumps({"error": said, "error_description": said}),
        json.dumps({"error": {"code": said, "message": said}}),
        said,
    ]
    for text in [*(describe(each.encode()) for each in bodies), progress(said) or ""]:
        assert text == "" or text.isprintable()
        assert len(text) <= 300


@pytest.mark.parametrize("piece", ["a-", "=a", "a.", "token", "https://", "a=", "P"])
def test_cleaning_what_a_server_says_takes_time_in_proportion(piece: str) -> None:
    """A text made for the patterns would otherwise cost minutes for each issue of an OperationOutcome."""
    said = json.dumps(
        {"resourceType": "OperationOutcome", "issue": [{"code": "x", "diagnostics": piece * 20_000}] * 1000}
    )
    begun = time.process_time()
    assert len(describe(said.encode())) <= 300
    assert time.process_time() - begun < 60
