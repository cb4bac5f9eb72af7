"""Bad lines, lines of other types and files of no type, through whole nights (facts/tables.md rule 9)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from independent_reader import rows
from ingest_by_hand import EXPORT, ingest, session_of, wait_until_ready
from nightly_site import Site, open_site

from pipeline.errors import VerificationFailed
from pipeline.exports.state import Closed

STATUS = "^/bulk/status/"
FIRST = r"/0\.ndjson"
"""The first file of the manifest: all Patients."""

BIG = json.dumps(
    {"resourceType": "Patient", "id": "big", "text": {"div": "<div>" + "x" * 5_000_000}}
).encode()
GOOD = {
    "with-bom": b'\xef\xbb\xbf{"resourceType":"Patient","id":"with-bom"}',
    "crlf": b'{"resourceType":"Patient","id":"crlf"}\r',
    "big": BIG,
}
BAD = {
    "truncated": b'{"resourceType":"Patient","id":"trunc',
    "null": b"null",
    "array": b'[{"resourceType":"Patient","id":"array"}]',
    "two objects": b'{"resourceType":"Patient","id":"two"}{"resourceType":"Patient","id":"two"}',
    "utf-8": b'{"resourceType":"Patient","id":"utf8","language":"\xff"}',
    "surrogate": b'{"resourceType":"Patient","id":"surrogate","language":"\\ud800"}',
    "nan": b'{"resourceType":"Patient","id":"nan","multipleBirthInteger":NaN}',
    "duplicate key": b'{"resourceType":"Patient","id":"one","id":"other"}',
}
STRAY = b'{"resourceType":"Device","id":"stray"}'
BAD_STRAY = b'{"resourceType":"Device","id":"bad-stray","patient":7}'


def insertion(lines: bytes, after: int | None = None) -> dict[str, Any]:
    return {"base64": base64.b64encode(lines).decode(), "after": after}


def faults(*insertions: dict[str, Any], lines: int, **manifest: Any) -> list[dict[str, Any]]:
    """Puts lines into the first file, and counts them in the manifest."""
    return [
        {"path": FIRST, "times": None, "insert": list(insertions)},
        {"path": STATUS, "method": "GET", "times": None, "wrong_count": lines, **manifest},
    ]


def quarantined(site: Site, export_id: str) -> list[dict[str, Any]]:
    """What the receipt's quarantine files say, each with the table in its name."""
    receipt = site.facts(export_id).receipt
    assert receipt is not None
    found = []
    for path in receipt.quarantine:
        table = Path(path).name.rpartition("-")[0]
        text = (site.lake / path).read_text()
        found += [{"table": table, **json.loads(line)} for line in text.splitlines()]
    return found


def lineage(site: Site, export_id: str, name: str = "output-000000") -> dict[str, Any]:
    (row,) = [row for row in rows(site.files_of("_lineage", export_id)) if row["source_file"] == name]
    return row


def downloads(site: Site) -> int:
    return sum(".ndjson" in entry["path"] for entry in site.sandbox.access_log())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, dict[str, Any], list[bytes]]]:
    """A night whose Patient file holds everything at once; the outcome, and the file's own lines."""
    folder = tmp_path_factory.mktemp("site")
    with open_site(folder, export={"types": ["Patient", "Encounter"]}) as site:
        inserted = [GOOD["with-bom"], *BAD.values(), STRAY, BAD_STRAY, GOOD["crlf"], GOOD["big"]]
        site.sandbox.control(faults=faults(insertion(b"\n".join(inserted) + b"\n", 0), lines=len(inserted)))
        outcome = site.run_night()
        yield site, outcome, inserted


Hostile = tuple[Site, dict[str, Any], list[bytes]]


def test_all_good_lines_arrive(hostile: Hostile) -> None:
    site, outcome, _ = hostile
    assert outcome["state"] == "published"
    export_id, truth = outcome["export_id"], site.ids_in_truth(1)
    assert site.ids_in("patient", export_id) == sorted([*truth["Patient"], *GOOD])
    assert site.ids_in("encounter", export_id) == truth["Encounter"]
    assert site.ids_in("device", export_id) == ["stray"]
    (big,) = [row for row in rows(site.files_of("patient", export_id)) if row["id"] == "big"]
    assert big["text"]["div"] == "<div>" + "x" * 5_000_000


def test_each_bad_line_is_in_the_quarantine_with_its_reason(hostile: Hostile) -> None:
    site, outcome, inserted = hostile
    found = quarantined(site, outcome["export_id"])
    assert {set(each) == {"table", "file", "line", "path", "reason", "sha256"} for each in found} == {True}
    expected = {
        (table, "output-000000", inserted.index(line) + 1, hashlib.sha256(line).hexdigest())
        for table, line in [*(("patient", each) for each in BAD.values()), ("device", BAD_STRAY)]
    }
    assert {(each["table"], each["file"], each["line"], each["sha256"]) for each in found} == expected
    by_line = {inserted[each["line"] - 1]: each for each in found}
    assert len({by_line[line]["reason"] for line in BAD.values()}) >= 6
    assert by_line[BAD_STRAY]["path"] == "patient"
    assert "UTF-8" in by_line[BAD["utf-8"]]["reason"]
    text = json.dumps(found)
    assert not any(word in text for word in ("trunc", "bad-stray", "other", "two\\"))


def test_a_bad_line_is_found_again_by_the_lineage(hostile: Hostile) -> None:
    """As docs/operations.md shows it."""
    site, outcome, inserted = hostile
    for record in quarantined(site, outcome["export_id"]):
        origin = lineage(site, outcome["export_id"], record["file"])
        raw = (site.lake / origin["raw_path"]).read_bytes()[origin["raw_offset"] :][: origin["raw_length"]]
        assert origin["raw_encoding"] == "identity"
        line = raw.split(b"\n")[record["line"] - 1]
        assert line == inserted[record["line"] - 1]
        assert hashlib.sha256(line).hexdigest() == record["sha256"]


def test_every_count_agrees_and_the_watermark_stays(hostile: Hostile) -> None:
    site, outcome, inserted = hostile
    export_id, truth = outcome["export_id"], site.ids_in_truth(1)
    bad, patients = len(BAD) + 1, len(truth["Patient"])
    tables = {"patient": patients + len(GOOD), "encounter": len(truth["Encounter"]), "device": 1}
    assert (outcome["quarantined"], outcome["tables"]) == (bad, tables)
    receipt = site.facts(export_id).receipt
    assert receipt is not None
    assert (receipt.quarantined, receipt.rows) == (bad, sum(tables.values()))
    assert (receipt.watermark, receipt.incomplete) == (None, (f"{bad} lines are in quarantine",))
    row = lineage(site, export_id)
    assert (row["lines"], row["quarantined"]) == (patients + len(inserted), bad)
    assert row["rows"] == row["lines"] - bad == patients + len(GOOD) + 1
    assert {each["table_name"]: (each["rows"], each["quarantined"]) for each in row["tables"]} == {
        "patient": (patients + len(GOOD), len(BAD)),
        "device": (1, 1),
    }
    assert "the file declares type patient: 1 lines to device" in row["warnings"]
    assert f"{bad} lines are in quarantine" in row["warnings"]
    (export,) = rows(site.files_of("_exports", export_id))
    assert (export["rows"], export["quarantined"]) == (receipt.rows, bad)
    shown = json.loads(site.cli("show", export_id, "--json").stdout)
    listed = json.loads(site.cli("exports", "--json").stdout)[0]
    assert shown["quarantined"] == listed["quarantined"] == bad
    assert shown["quarantine"] == list(receipt.quarantine)
    assert "quarantined:     9 lines" in site.cli("show", export_id).stdout
    lines = sum(
        each["lines"] for each in rows(site.files_of("_lineage", export_id)) if each["kind"] == "output"
    )
    assert lines == receipt.rows + receipt.quarantined


def test_the_ui_says_what_was_odd_and_blocks_nothing(hostile: Hostile) -> None:
    site, outcome, _ = hostile
    instance, export_id = site.instance(), outcome["export_id"]
    for table, verdicts in {
        "patient": {"files": True, "counts": True, "declared_type": False, "quarantine": False},
        "encounter": {"files": True, "counts": True, "declared_type": True, "quarantine": True},
    }.items():
        for check, passed in verdicts.items():
            key = dg.AssetCheckKey(dg.AssetKey(["hosp", table]), check)
            (record, *_) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
            evaluation = record.event.asset_check_evaluation if record.event else None  # type: ignore[union-attr]
            assert evaluation is not None and evaluation.passed is passed, (table, check)
            assert passed or evaluation.severity == dg.AssetCheckSeverity.WARN
    event = instance.get_latest_materialization_event(dg.AssetKey(["hosp", "patient"]))
    assert event is not None and event.asset_materialization is not None
    assert event.asset_materialization.metadata["quarantined"].value == len(BAD)
    assert export_id in instance.get_materialized_partitions(dg.AssetKey(["hosp", "device"]))
    assert json.loads((site.home / "known_types" / "hosp.json").read_text()) == ["Device"]


def test_a_file_that_declares_no_type_is_split_by_what_its_lines_are(tmp_path: Path) -> None:
    """Protocol fact 27: with organizeOutputBy, type is absent and blocks begin with a Parameters line."""
    lines = [
        b'{"resourceType":"Parameters","parameter":[{"name":"header","valueString":"Patient/p1"}]}',
        b'{"resourceType":"Patient","id":"p1"}',
        b'{"resourceType":"Encounter","id":"e1"}',
        b'{"resourceType":"Patient","id":"p2","active":"yes"}',
        b'{"id":"nothing"}',
        b'{"resourceType":"Nonsense","id":"n"}',
    ]
    with open_site(tmp_path, patients=3, export={"types": ["Patient", "Encounter"]}) as site:
        site.sandbox.control(faults=faults(insertion(b"\n".join(lines) + b"\n", 1), lines=6, retype=""))
        outcome = site.run_night()
        export_id, truth = outcome["export_id"], site.ids_in_truth(1)
        assert site.ids_in("patient", export_id) == sorted([*truth["Patient"], "p1"])
        assert site.ids_in("encounter", export_id) == sorted([*truth["Encounter"], "e1"])
        assert len(rows(site.files_of("parameters", export_id))) == 1
        (p1,) = [row for row in rows(site.files_of("patient", export_id)) if row["id"] == "p1"]
        assert (p1["_source_file"], p1["_source_line"]) == ("output-000000", 3)
        found = sorted(quarantined(site, export_id), key=lambda each: int(each["line"]))
        assert [(each["table"], each["line"], each["path"]) for each in found] == [
            ("patient", 5, "active"),
            ("untyped", 6, "resourceType"),
            ("untyped", 7, "resourceType"),
        ]
        assert {each["reason"] for each in found[1:]} == {"resourceType is missing or unknown"}
        assert outcome["quarantined"] == 3
        row = lineage(site, export_id)
        assert (row["lines"], row["rows"], row["quarantined"]) == (9, 6, 3)
        assert row.get("table_name") is None
        assert any("4 lines to patient" in each and "declares no type" in each for each in row["warnings"])
        for table in ("patient", "encounter"):
            for check in ("files", "counts", "declared_type"):
                key = dg.AssetCheckKey(dg.AssetKey(["hosp", table]), check)
                (record, *_) = site.instance().event_log_storage.get_asset_check_execution_history(
                    key, limit=1
                )
                assert record.status.value == "SUCCEEDED", (table, check)


def test_too_many_bad_lines_hold_the_export_at_once_and_a_higher_limit_publishes_what_is_here(
    tmp_path: Path,
) -> None:
    with open_site(tmp_path, patients=5, export={"types": ["Patient", "Encounter"]}) as site:
        site.sandbox.control(faults=faults(insertion(b"null\n" * 11), lines=11))
        done = site.cli("run", "hosp", "--wait", "--json", check=False)
        assert done.returncode == 4, done.stderr
        (export_id,) = site.export_ids()
        facts = site.facts(export_id)
        assert len(facts.claims) == 1, "another attempt would read the same bytes"
        held = facts.closings["held"]
        assert held.reason == "patient: 11 of 16 lines are bad, and max_quarantined allows 10 of so many"
        assert "max_quarantined" in held.advice
        path = held.advice.split()[0]
        records = [json.loads(line) for line in (site.lake / path).read_text().splitlines()]
        assert [each["line"] for each in records] == [*range(6, 17)]
        assert facts.released is None
        assert not list((site.lake / "hosp" / "tables").glob("*/_delta_log")), "nothing is visible"

        before, staged = downloads(site), site.session.ledger.staged(export_id)
        with pytest.raises(VerificationFailed, match="max_quarantined allows 10"):
            ingest(session_of(site, "the same limit"), export_id)
        settings = yaml.safe_load(site.config_path.read_text())
        settings["sources"][0]["max_quarantined"] = 11
        site.config_path.write_text(yaml.safe_dump(settings))
        receipt = ingest(session_of(site, "a higher limit"), export_id)
        assert (receipt.attempt, receipt.quarantined) == (3, 11)
        assert (downloads(site), site.session.ledger.staged(export_id)) == (before, staged)
        assert site.ids_in("patient", export_id) == site.ids_in_truth(1)["Patient"]
        facts = site.facts(export_id)
        assert facts.released is not None
        assert site.session.next_step(facts) == Closed("published")


@pytest.fixture
def patients(tmp_path: Path) -> Iterator[Site]:
    """Three Patients, to be ingested by hand."""
    quick = {"export_seconds": 0.1, "poll_seconds": 0.0, "patients": 3}
    source = {"max_quarantined": {"lines": 1000, "share": 1.0}}
    with open_site(tmp_path, export={"types": ["Patient"]}, source=source, **quick) as site:
        yield site


def test_a_file_without_one_good_line_holds_the_export_whatever_the_limit(patients: Site) -> None:
    ruined = {"path": FIRST, "status": 200, "times": None, "body": '{"resourceType":"Patient","id":7}\n' * 3}
    patients.sandbox.control(faults=[ruined])
    wait_until_ready(patients)
    with pytest.raises(VerificationFailed, match=r"none of the 3 lines of output-000000 is a resource"):
        ingest(session_of(patients, "one"))
    assert patients.session.next_step(patients.facts(EXPORT)) == Closed("held")


def test_a_file_that_holds_another_type_only_is_a_good_one(patients: Site) -> None:
    devices = {
        "path": FIRST,
        "status": 200,
        "times": None,
        "body": '{"resourceType":"Device","id":"d"}\n' * 3,
    }
    patients.sandbox.control(faults=[devices])
    wait_until_ready(patients)
    receipt = ingest(session_of(patients, "one"))
    assert {table: counts.rows for table, counts in receipt.tables.items()} == {"patient": 0, "device": 3}
    assert receipt.watermark is not None, "nothing is missing"
    assert patients.ids_in("device", EXPORT) == ["d"] * 3


def test_half_a_last_line_is_a_line_for_the_count_and_for_the_quarantine(patients: Site) -> None:
    patients.sandbox.control(faults=faults(insertion(BAD["truncated"]), lines=1))
    wait_until_ready(patients)
    assert ingest(session_of(patients, "one")).quarantined == 1
    (record,) = quarantined(patients, EXPORT)
    assert (record["line"], record["sha256"]) == (4, hashlib.sha256(BAD["truncated"]).hexdigest())


def test_ingesting_again_counts_the_new_quarantine_only(patients: Site) -> None:
    patients.sandbox.control(faults=faults(insertion(b"null\n7\n"), lines=2))
    wait_until_ready(patients)
    one = ingest(session_of(patients, "one"))
    first = quarantined(patients, EXPORT)
    other = ingest(session_of(patients, "other"))
    assert (one.quarantined, other.quarantined) == (2, 2)
    assert not set(one.quarantine) & set(other.quarantine)
    assert quarantined(patients, EXPORT) == first
    assert patients.ids_in("patient", EXPORT) == patients.ids_in_truth(1)["Patient"]
