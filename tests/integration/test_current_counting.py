"""What counts in a current table, by the facts of the exports and by the configuration; and what is said when
that cannot be known any more. Exports published by hand, with the facts that matter."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from published_by_hand import HandMade

from pipeline.errors import ConfigError, LakeError
from pipeline.exports import current
from pipeline.exports.current import is_current, update_current, write_as_of
from pipeline.exports.current_flat import update_current_flat
from pipeline.exports.erasing import erase
from pipeline.exports.facts import Intent, Receipt, Request, TableCounts
from pipeline.exports.members import MEMBERS, members_schema
from pipeline.exports.session import Session
from pipeline.tables.current.chunks import NEVER
from pipeline.tables.delta import commit_export
from pipeline.tables.schema import floor_schema
from pipeline.terminal.tables import find_table, resources

N1, N2, N3 = (f"2026010{day}T020000Z" for day in range(1, 4))
AT = datetime(2026, 1, 1, tzinfo=UTC)


def patient(identifier: str, version: int = 1, *, whole: bool = True) -> dict[str, Any]:
    tags = {} if whole else {"tag": [{"code": "SUBSETTED"}]}
    return {"resourceType": "Patient", "id": identifier, "meta": {"versionId": str(version), **tags}}


def observation(identifier: str, patient: str) -> dict[str, Any]:
    subject = {"subject": {"reference": f"Patient/{patient}"}}
    return {"resourceType": "Observation", "id": identifier, "status": "final", "code": {}, **subject}


def held(made: HandMade, table: str) -> list[str]:
    rows = DeltaTable(str(folder(made, table))).to_pyarrow_table()
    return sorted(rows["id"].to_pylist())


def folder(made: HandMade, table: str) -> Path:
    return made.folder / "lake" / "hosp" / "current" / table


def members(made: HandMade, export_id: str, **states: str) -> None:
    rows = [{"patient": name, "standing": "active", "state": state} for name, state in states.items()]
    made._small(MEMBERS, export_id, 1, rows, members_schema())


def asked(
    made: HandMade, export_id: str, *types: str, patients: int | None = None, line: str = "f", **rows: int
) -> None:
    """Facts of an export of those types, whose receipt has so many rows of each table."""
    owner, ledger = made.session.owner, made.session.ledger
    parameters = {"types": list(types), "since": None}
    intent = {
        "number": 1,
        "parameters": parameters,
        "fingerprint": line,
        "line": line,
        "since_reason": "",
        "patients": patients,
    }
    ledger.write(export_id, "intent.json", Intent(at=AT, owner=owner, **intent))
    ledger.write(export_id, "request.json", Request(at=AT, intent=1, status_url="", owner=owner))
    counts: dict[str, Any] = {"quarantined": 0, "files": 1, "bytes": 1, "parts": 1, "version": 1}
    tables = {
        name: TableCounts(resource_type=name.capitalize(), rows=number, **counts)
        for name, number in rows.items()
    }
    no: dict[str, Any] = {"incomplete": (), "files": 0, "raw_bytes": 0, "decoded_bytes": 0, "deleted": 0}
    receipt = Receipt(
        at=AT,
        attempt=1,
        owner=owner,
        transaction_time="2026-01-02T00:00:00Z",
        watermark="2026-01-02T00:00:00Z",
        fingerprint=line,
        tables=tables,
        error_entries={},
        **no,
    )
    ledger.write(export_id, "receipts/0001.json", receipt)


# --- the facts of the exports ------------------------------------------------------------------------------


@pytest.mark.parametrize("patients", [1, None], ids=["of patients", "of a type"])
@pytest.mark.parametrize("types", [["Patient"], ["Patient", "Observation"]])
def test_what_a_new_member_has_of_a_type_that_was_not_asked_for_stays(
    tmp_path: Path, patients: int | None, types: list[str]
) -> None:
    made = HandMade(tmp_path, current=True)
    members(made, N1, p1="member")
    asked(made, N1, "Patient", "Observation", patient=1, observation=1)
    made.publish(N1, patient("p1"), observation("o1", "p1"))
    update_current(made.session, "Observation")
    members(made, N2, p1="joined")
    asked(made, N2, *types, patients=patients, patient=1)
    made.publish(N2, patient("p1", 2))
    update_current(made.session, "Observation")
    gone = ["o1"] if "Observation" in types else []
    assert held(made, "observation_deleted") == gone
    assert held(made, "observation_current") == [each for each in ["o1"] if each not in gone]


def test_a_current_table_is_not_taken_for_one_of_exports(tmp_path: Path) -> None:
    made = HandMade(tmp_path, current=True)
    made.publish(N1, patient("a"))
    update_current(made.session, "Patient")
    address = find_table(str(folder(made, "patient_current")), lambda: made.session.config)
    with pytest.raises(ConfigError, match="no partitions by export_id") as refused:
        list(resources(address))
    assert "as-of" in refused.value.advice


@pytest.mark.parametrize("night_by_night", [True, False])
def test_an_export_that_was_asked_for_something_else_infers_no_deletes_of_what_came_before(
    tmp_path: Path, night_by_night: bool
) -> None:
    """A narrower filter, another group: what it does not list lives on at the server."""
    made = HandMade(tmp_path, current=True, export={"level": "system", "infer_deletes": True})

    def night(export_id: str, line: str, *there: str) -> None:
        asked(made, export_id, "Patient", line=line, patient=len(there))
        made.publish(export_id, *(patient(each, int(export_id[7])) for each in there))
        if night_by_night:
            update_current(made.session, "Patient")

    night(N1, "everybody", "a", "b", "c", "d")
    night(N2, "women", "a", "b")
    night(N3, "women", "a")  # b was listed by the same request, and is gone; of c and d it says nothing
    update_current(made.session, "Patient")
    assert held(made, "patient_current") == ["a", "c", "d"]
    assert held(made, "patient_deleted") == ["b"]
    assert write_as_of(made.session, N3, ["Patient"], tmp_path / "out") == {"Patient": 3}


@pytest.mark.parametrize("night_by_night", [True, False])
@pytest.mark.parametrize(
    ("nights", "there"),
    [
        ([("all", 1, "abcd"), ("women", 2, "ab"), ("all", 3, "ac")], "ac"),
        ([("all", 1, "abcd"), ("elements", 0, "abc"), ("elements", 0, "a")], "ad"),
        ([("old server", 5, "abcd"), ("new server", 1, "abc"), ("new server", 1, "a")], "ad"),
        ([("all", 1, "abc"), ("all", 2, "a"), ("women", 3, "b"), ("all", 4, "a")], "ab"),
    ],
    ids=["and back", "shortened", "moved", "judged before"],
)
def test_what_an_export_of_the_same_request_has_listed_is_gone_whatever_version_stands(
    tmp_path: Path, nights: list[tuple[str, int, str]], there: str, night_by_night: bool
) -> None:
    made = HandMade(tmp_path, current=True, export={"level": "system", "infer_deletes": True})
    for number, (line, version, listed) in enumerate(nights, 1):
        export_id = f"2026010{number}T020000Z"
        asked(made, export_id, "Patient", line=line, patient=len(listed))
        made.publish(export_id, *(patient(each, version, whole=version > 0) for each in listed))
        if night_by_night:
            update_current(made.session, "Patient")
    update_current(made.session, "Patient")
    assert held(made, "patient_current") == list(there)


def test_who_left_is_told_as_such_also_where_deletes_are_inferred(tmp_path: Path) -> None:
    export = {"level": "group", "group": "g", "infer_deletes": True}
    made = HandMade(tmp_path, current=True, on_leave="hide", export=export)
    for export_id, there, states in ((N1, "abc", {}), (N2, "a", {"b": "left"})):
        members(made, export_id, **dict.fromkeys("abc" if not states else "ac", "member"), **states)
        asked(made, export_id, "Patient", patient=len(there))
        made.publish(export_id, *(patient(each) for each in there))
        update_current(made.session, "Patient")
    rows = DeltaTable(str(folder(made, "patient_deleted"))).to_pyarrow_table().to_pylist()
    assert {each["id"]: each["_deleted_how"] for each in rows} == {"b": "left", "c": "absent"}


def test_of_a_new_member_nothing_is_gone_that_the_export_was_not_asked_for(tmp_path: Path) -> None:
    made = HandMade(tmp_path, current=True)
    members(made, N1, p1="member")
    asked(made, N1, "Observation", line="all", observation=2)
    made.publish(N1, observation("o1", "p1"), observation("o2", "p1"))
    members(made, N2, p1="joined")
    asked(made, N2, "Observation", line="vital signs", observation=1)
    made.publish(N2, observation("o2", "p1"))
    update_current(made.session, "Observation")
    assert held(made, "observation_current") == ["o1", "o2"]


def test_facts_that_cannot_be_read_are_not_guessed(tmp_path: Path) -> None:
    made = HandMade(tmp_path, current=True)
    made.publish(N1, patient("a"))
    update_current(made.session, "Patient")
    made.publish(N2, patient("b"))
    for name in ("manifest.json", "receipts/0001.json"):
        made.session.lake.put_new(f"hosp/exports/{N2}/{name}", b"{")
    told = f"hosp/{N2} cannot be read: manifest.json, receipts/0001.json"
    with pytest.raises(LakeError, match=told) as told_of:
        update_current(made.session, "Patient")
    assert "from a backup" in told_of.value.advice
    with pytest.raises(LakeError, match=told):
        write_as_of(made.session, N2, ["Patient"], tmp_path / "out")
    assert held(made, "patient_current") == ["a"]


# --- the configuration -------------------------------------------------------------------------------------


def changed(made: HandMade, **changes: Any) -> Session:
    source = made.source.model_copy(update=changes)
    return Session(made.session.config, source, made.session.owner)


def test_a_table_is_made_again_by_other_rules(tmp_path: Path) -> None:
    made = HandMade(tmp_path, current=True)
    members(made, N1, a="member", b="member")
    asked(made, N1, "Patient", patient=3)
    made.publish(N1, patient("a"), patient("b"), patient("c"))
    members(made, N2, a="member", b="left")
    asked(made, N2, "Patient", patient=2)
    made.publish(N2, patient("a", 2), patient("b", 2))
    update_current(made.session, "Patient")
    assert held(made, "patient_current") == ["a", "b", "c"]
    infers = made.source.export.model_copy(update={"infer_deletes": True})
    for session, there in (
        (changed(made, on_leave="hide"), ["a", "c"]),
        (changed(made, on_leave="hide", export=infers), ["a"]),
        (made.session, ["a", "b", "c"]),
    ):
        assert not is_current(session, "Patient")
        assert "on_leave" in update_current(session, "Patient").anew
        assert held(made, "patient_current") == there
        assert is_current(session, "Patient")
        assert update_current(session, "Patient").merged is None


def test_a_table_that_does_not_say_by_which_rules_it_was_made_was_made_by_those_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an earlier version; from its next merge on it says so."""
    made = HandMade(tmp_path, current=True, on_leave="hide")
    made.publish(N1, patient("a"))
    with monkeypatch.context() as earlier:
        earlier.setattr(current, "rules_number", lambda source: NEVER)
        update_current(made.session, "Patient")
    assert update_current(made.session, "Patient").merged is None
    made.publish(N2, patient("b"))
    assert update_current(made.session, "Patient").anew == ""
    assert update_current(changed(made, on_leave="keep"), "Patient").anew


# --- types without rows, and without their log -------------------------------------------------------------


def test_a_type_without_any_row_has_a_current_table_once_something_is_published(tmp_path: Path) -> None:
    made = HandMade(tmp_path, current=True, flat=True)
    uri, schema = made.session.table_uri("observation"), floor_schema("Observation")
    made.session.lake.put_new(f"hosp/tables/observation/export_id={N1}/part", b"")  # is being converted
    assert update_current(made.session, "Observation").merged is None
    commit_export(uri, export_id=N1, attempt=1, replaces_after=0, parts=[], schema=schema)
    assert update_current(made.session, "Observation").merged is None
    assert not folder(made, "observation_current").exists()
    made.publish(N1, patient("a"))
    done = update_current(made.session, "Observation")
    assert (done.rows, done.anew, done.exports) == (0, "", ())
    update_current_flat(made.session, "Observation")
    for table in ("observation_current", "observation_deleted", "observation_flat_current"):
        assert held(made, table) == []
    assert {*schema.names} < {
        field.name for field in DeltaTable(str(folder(made, "observation_current"))).schema().fields
    }
    assert update_current(made.session, "Observation").merged is None
    made.session.lake.put_new(f"hosp/tables/encounter/export_id={N2}/part", b"")
    assert update_current(made.session, "Encounter").merged is None
    made.publish(N2, observation("o1", "a"))
    assert update_current(made.session, "Observation").anew == ""
    assert held(made, "observation_current") == ["o1"]


def test_a_current_table_is_not_emptied_because_the_log_of_its_exports_is_gone(tmp_path: Path) -> None:
    made = HandMade(tmp_path, current=True)
    made.publish(N1, patient("a"), patient("b"))
    update_current(made.session, "Patient")
    log = tmp_path / "lake" / "hosp" / "tables" / "patient" / "_delta_log"
    log.rename(tmp_path / "away")
    for anew in (False, True):
        with pytest.raises(LakeError, match="patient_current has 2") as told:
            update_current(made.session, "Patient", anew=anew)
        assert "_delta_log from a backup" in told.value.advice
    # Neither where nothing but the receipts knows of rows, and where another night has begun a new log.
    asked(made, N1, "Patient", patient=2)
    shutil.copytree(folder(made, ""), tmp_path / "current")
    shutil.rmtree(folder(made, ""))
    with pytest.raises(LakeError, match=f"1 exports brought rows, {N1}"):
        update_current(made.session, "Patient")
    with pytest.raises(LakeError, match=f"1 exports brought rows, {N1}"):
        write_as_of(made.session, N1, ["Patient"], tmp_path / "out")
    (tmp_path / "current").rename(folder(made, ""))
    made.publish(N2, patient("c"))
    with pytest.raises(LakeError, match=f"1 exports brought rows, {N1}"):
        update_current(made.session, "Patient")
    assert held(made, "patient_current") == ["a", "b"]
    # Restored, its later commits are in it; and an export that is taken back is missed by nobody.
    shutil.rmtree(log)
    (tmp_path / "away").rename(log)
    made.take_back(N2, "_exports")
    update_current(made.session, "Patient")
    assert held(made, "patient_current") == ["a", "b"]
    made.take_back(N1, "_exports", "patient")
    update_current(made.session, "Patient")
    assert held(made, "patient_current") == []


def test_rows_that_were_erased_or_are_ingested_again_are_not_missed(tmp_path: Path) -> None:
    made = HandMade(tmp_path, current=True)
    asked(made, N1, "Patient", patient=1)
    made.publish(N1, patient("a"))
    asked(made, N2, "Patient", patient=1)
    made.publish(N2, patient("b"))
    assert erase(made.session, "a", dry_run=False).proved
    assert update_current(made.session, "Patient", anew=True).rows == 1
    made.commit(N2, "Patient", [], attempt=2)  # `_exports` and the receipt follow
    assert update_current(made.session, "Patient", anew=True).rows == 0
