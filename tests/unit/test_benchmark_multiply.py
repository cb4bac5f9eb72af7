from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.multiply import copy_of, multiply, sandbox_ndjson

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
PATIENT = "0a1b2c3d-1111-4222-8333-444455556666"
LONG = "0123456789ABCDEF" * 3 + ".0000001..00002-"
LINE = (
    b'{"resourceType":"Observation","id":"1a.3","subject":{"reference":"Patient/' + PATIENT.encode() + b'"},'
    b'"encounter":{"reference":"Encounter/2.0"},"performer":[{"reference":"Practitioner/'
    + LONG.encode()
    + b'"}],'
    b'"valueQuantity":{"value":1.10,"unit":"1a.3"},"code":{"coding":[{"code":"8867-4","system":"http://x.org/3.1"}]}}\n'
)


def test_copy_zero_is_the_line_itself() -> None:
    assert copy_of(LINE, 0) == LINE


def test_a_copy_differs_in_ids_and_references_only() -> None:
    source, copy = json.loads(LINE), json.loads(copy_of(LINE, 3))
    assert copy.pop("id") != source.pop("id")
    for name in ("subject", "encounter"):
        kind, _, before = source.pop(name)["reference"].partition("/")
        after = copy.pop(name)["reference"]
        assert after.startswith(f"{kind}/")
        assert after != f"{kind}/{before}"
    (before,), (after,) = source.pop("performer"), copy.pop("performer")
    assert before["reference"] != after["reference"]
    assert len(before["reference"]) == len(after["reference"])
    assert copy == source
    assert b'"value":1.10' in copy_of(LINE, 3)


def test_an_id_becomes_the_same_wherever_it_stands_and_another_in_each_copy() -> None:
    patient = b'{"resourceType":"Patient","id":"' + PATIENT.encode() + b'"}\n'
    ids = [json.loads(copy_of(patient, copy))["id"] for copy in range(200)]
    references = [json.loads(copy_of(LINE, copy))["subject"]["reference"] for copy in range(200)]
    assert references == [f"Patient/{found}" for found in ids]
    assert len(set(ids)) == 200
    assert all(UUID.fullmatch(found) for found in ids)


def test_multiplying_reaches_the_size_with_whole_copies(tmp_path: Path) -> None:
    source, target = tmp_path / "small", tmp_path / "large"
    source.write_bytes(LINE + b"\n" + LINE.rstrip(b"\n"))
    lines = multiply(source, target, len(LINE) * 5)
    written = target.read_bytes().splitlines(keepends=True)
    assert len(written) == lines == 6
    assert written[:2] == [LINE, LINE]
    assert len({json.loads(line)["id"] for line in written}) == 3


def test_a_file_without_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n\n")
    with pytest.raises(ValueError, match="no line"):
        multiply(tmp_path / "empty", tmp_path / "large", 10)


def test_copies_of_the_sandbox_keep_their_references_together(tmp_path: Path) -> None:
    made = sandbox_ndjson(tmp_path, ["Patient", "Observation"], 30)
    patients = {f"Patient/{json.loads(line)['id']}" for line in made["Patient"].read_bytes().splitlines()}
    copies = {
        f"Patient/{json.loads(copy_of(line, 2))['id']}" for line in made["Patient"].read_bytes().splitlines()
    }
    assert not patients & copies
    assert len(copies) == len(patients)
    relative = 0
    for line in made["Observation"].read_bytes().splitlines():
        before = json.loads(line).get("subject", {}).get("reference")
        after = json.loads(copy_of(line, 2)).get("subject", {}).get("reference")
        assert (before in patients) == (after in copies)
        relative += before in patients
    assert relative > 50


def test_a_type_that_the_sandbox_never_makes_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Questionnaire"):
        sandbox_ndjson(tmp_path, ["Questionnaire"], 2)
