"""Whose a row is, and what of those who have left the group is hidden (`on_leave: hide`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_by_hand import ingest
from nightly_site import open_site
from nights_by_hand import current_files, drive, run_night, versions_in
from published_by_hand import HandMade

from pipeline.exports.current import update_current, write_as_of
from pipeline.exports.erasing.compartment import Patient, Standing
from pipeline.exports.members import MEMBERS, members_schema, read_members
from pipeline.exports.repair import withdraw
from pipeline.tables.convert import Converter
from pipeline.tables.current.whose import read_whose

N1, N2, N3 = "20260101T020000Z", "20260102T020000Z", "20260103T020000Z"
Resource = dict[str, Any]


def to(text: str, **more: str) -> dict[str, str]:
    return {"reference": text, **more}


def patient(identifier: str, version: str = "1") -> Resource:
    meta = {"versionId": version, "lastUpdated": f"2026-01-0{version}T01:00:00Z"}
    return {"resourceType": "Patient", "id": identifier, "meta": meta}


THINGS: list[tuple[Resource, bool]] = [
    ({"resourceType": "Appointment", "id": "a1", "participant": [{"actor": to("Patient/b")}]}, True),
    ({"resourceType": "Appointment", "id": "a2", "participant": [{"actor": to("Practitioner/b")}]}, False),
    (
        {
            "resourceType": "Appointment",
            "id": "a3",
            "participant": [{"actor": to("Patient/b")}, {"actor": to("Patient/a")}],
        },
        False,
    ),
    ({"resourceType": "Account", "id": "c1", "subject": [to("Patient/b")]}, True),
    ({"resourceType": "Account", "id": "c2", "subject": [to("Patient/b"), to("Patient/a")]}, False),
    ({"resourceType": "Task", "id": "t1", "for": to("Patient/b"), "requester": to("Patient/a")}, True),
    ({"resourceType": "Task", "id": "t2", "for": to("Patient/a"), "requester": to("Patient/b")}, False),
    ({"resourceType": "SupplyRequest", "id": "s1", "deliverTo": to("Patient/b")}, True),
    ({"resourceType": "Encounter", "id": "e1", "subject": to("Patient/b/_history/3")}, True),
    ({"resourceType": "Encounter", "id": "e2", "subject": to("https://x.example.org/fhir/Patient/b")}, True),
    ({"resourceType": "Encounter", "id": "e3", "subject": to("urn:uuid:b")}, True),
    ({"resourceType": "Encounter", "id": "e4", "subject": to("b", type="Patient")}, True),
    ({"resourceType": "Encounter", "id": "e5", "subject": to("Patient/b/")}, True),
    ({"resourceType": "Encounter", "id": "e6", "subject": to("b", type="Group")}, False),
    ({"resourceType": "Encounter", "id": "e7", "subject": to("Patient/bb")}, False),
    ({"resourceType": "Encounter", "id": "e8"}, False),
    ({"resourceType": "Observation", "id": "o1", "performer": [to("Patient/b")]}, True),
    (
        {
            "resourceType": "Observation",
            "id": "o2",
            "subject": to("Patient/a"),
            "performer": [to("Patient/b")],
        },
        False,
    ),
    ({"resourceType": "Group", "id": "g1", "member": [{"entity": to("Patient/b")}]}, False),
    (patient("b"), True),
    (patient("a"), False),
]
"""Whether it goes when b has left the group, and a has not."""
TYPES = sorted({each["resourceType"] for each, _ in THINGS})


def members(made: HandMade, export_id: str, *states: tuple[str, str], attempt: int = 1) -> None:
    rows = [{"patient": each, "standing": "active", "state": state} for each, state in states]
    made._small(MEMBERS, export_id, attempt, rows, members_schema())


def ids(made: HandMade, *types: str) -> set[str]:
    found: set[str] = set()
    for each in types:
        table = made.folder / "lake" / "hosp" / "current" / f"{each.lower()}_current"
        files = DeltaTable(str(table)).file_uris()
        if files:
            found |= {row[0] for row in duckdb.sql(f"select id from read_parquet({files})").fetchall()}
    return found


def test_everything_of_who_left_is_hidden_and_nothing_of_others(tmp_path: Path) -> None:
    """Every form of a reference (protocol fact 32), by the paths of the Patient compartment."""
    made = HandMade(tmp_path, current=True, on_leave="hide")
    members(made, N1, ("a", "member"), ("b", "member"))
    made.publish(N1, *(each for each, _ in THINGS))
    for each in TYPES:
        update_current(made.session, each)
    assert ids(made, *TYPES) == {each["id"] for each, _ in THINGS}
    members(made, N2, ("a", "member"), ("b", "left"))
    made.publish(N2, patient("a", "2"))
    for each in TYPES:
        update_current(made.session, each)
    assert ids(made, *TYPES) == {each["id"] for each, goes in THINGS if not goes}
    graves = DeltaTable(f"{made.folder}/lake/hosp/current/patient_deleted").to_pyarrow_table().to_pylist()
    assert [(each["id"], each["_deleted_how"]) for each in graves] == [("b", "left")]


def test_who_left_stays_hidden_when_the_night_that_told_it_is_taken_back(tmp_path: Path) -> None:
    made = HandMade(tmp_path, current=True, on_leave="hide")
    members(made, N1, ("a", "member"), ("b", "member"))
    made.publish(N1, patient("a"), patient("b"))
    members(made, N2, ("a", "member"), ("b", "left"))
    made.publish(N2, patient("a", "2"))
    members(made, N3, ("a", "member"))
    made.publish(N3, patient("a", "3"))
    update_current(made.session, "Patient")
    assert ids(made, "Patient") == {"a"}
    made.take_back(N2, "_exports", MEMBERS, "patient")
    assert update_current(made.session, "Patient").anew
    assert ids(made, "Patient") == {"a"}


REFERENCES = st.sampled_from(
    [
        *(to(text) for text in ("Patient/a", "Patient/b", "Patient/c", "Group/a", "urn:uuid:a", "", "a")),
        *(
            to(text)
            for text in ("http://h/Patient/b/_history/1", "Patient/b#x", "Patient/b?x=1", "XPatient/b")
        ),
        *(
            to("b", type=kind)
            for kind in ("Patient", "http://hl7.org/fhir/StructureDefinition/Patient", "Group")
        ),
        {"display": "b"},
    ]
)
RESOURCES: dict[str, st.SearchStrategy[Resource]] = {
    "Observation": st.fixed_dictionaries(
        {}, optional={"subject": REFERENCES, "performer": st.lists(REFERENCES)}
    ),
    "Account": st.fixed_dictionaries({}, optional={"subject": st.lists(REFERENCES)}),
    "Appointment": st.fixed_dictionaries(
        {}, optional={"participant": st.lists(st.fixed_dictionaries({}, optional={"actor": REFERENCES}))}
    ),
    "Claim": st.fixed_dictionaries(
        {},
        optional={"patient": REFERENCES, "payee": st.fixed_dictionaries({}, optional={"party": REFERENCES})},
    ),
    "Provenance": st.fixed_dictionaries({}, optional={"target": st.lists(REFERENCES)}),
}


@pytest.mark.parametrize("resource_type", RESOURCES)
@given(data=st.data())
@settings(max_examples=12)
def test_whose_rows_are_is_told_as_erasing_tells_it_of_resources(
    resource_type: str, data: st.DataObject
) -> None:
    """Columns at once here, JSON there: two ways to the same answer."""
    drawn = data.draw(st.lists(RESOURCES[resource_type], min_size=1, max_size=8))
    resources = [{"resourceType": resource_type, "id": str(n)} | each for n, each in enumerate(drawn)]
    with TemporaryDirectory() as name, Converter(resource_type, None, N1, Path(name)) as converter:
        for number, each in enumerate(resources, 1):
            converter.add_line(json.dumps(each).encode(), "output", number)
        for part in converter.finish():
            with pq.ParquetFile(part.path) as opened:
                order = opened.read(columns=["id"]).column("id").to_pylist()
                for each in "ab":
                    found = read_whose(opened, resource_type, pa.array([each])).of(np.array([True]))
                    standing = [Patient(each).standing(resources[int(n)]) for n in order]
                    assert found.tolist() == [each is Standing.OWN for each in standing]


def states(found: Iterable[tuple[Any, str]] | None) -> dict[str, str]:
    return {member.patient: state for member, state in found or ()}


@pytest.mark.parametrize("since", ["never", "auto"])
def test_who_left_is_hidden_also_where_every_export_is_full(tmp_path: Path, since: str) -> None:
    """With `since: never`, and where `auto` is full since `_since` is not sound; who was there on a night is
    not looked up again when it is ingested again, so that the view as of it stays."""
    with open_site(
        tmp_path,
        patients=12,
        export={"group": "wanderers", "types": ["Patient"], "since": since},
        source={"current": True, "on_leave": "hide", "knobs": {"since_levels": ["system"]}},
        export_seconds=0.01,
        poll_seconds=0,
    ) as site:

        def there(night: int) -> set[str]:
            site.sandbox.control(night=night)
            return {each["id"] for each in site.truth(night, "wanderers")["Patient"]}

        night = next(each for each in range(2, 12) if there(each - 1) - there(each))
        before, after = there(night - 1), there(night)
        first = run_night(site, night - 1)
        second = run_night(site, night)
        assert [each.asked and each.asked.parameters["since"] for each in (first, second)] == [None, None]
        update_current(site.session, "Patient")
        assert versions_in(current_files(site, "patient_current")).keys() == after
        known = states(read_members(site.session, first.export_id))
        assert set(known) == before
        ingest(drive(site, night - 1).session(), first.export_id)
        assert states(read_members(site.session, first.export_id)) == known, "as it was when it was exported"
        assert write_as_of(site.session, first.export_id, ["Patient"], tmp_path / "then") == {
            "Patient": len(before)
        }
        withdraw(site.session, second.export_id)
        update_current(site.session, "Patient")
        assert set(states(read_members(site.session, first.export_id))) == before


@pytest.mark.parametrize("on_leave", ["keep", "hide"])
def test_who_left_is_not_deleted_where_deletes_are_inferred(tmp_path: Path, on_leave: str) -> None:
    """A full export lacks both: whose data is kept is told by who is in the group."""
    with open_site(
        tmp_path,
        patients=12,
        export={"group": "wanderers", "types": ["Patient"], "infer_deletes": True},
        source={"current": True, "on_leave": on_leave},
        export_seconds=0.01,
        poll_seconds=0,
    ) as site:
        nights = [{each["id"] for each in site.truth(n, "wanderers")["Patient"]} for n in range(1, 13)]
        everybody = [{each["id"] for each in site.truth(n, None)["Patient"]} for n in range(1, 13)]
        night = next(n for n in range(1, 12) if (nights[n - 1] - nights[n]) & everybody[n])
        for each in (night, night + 1):
            run_night(site, each)
        update_current(site.session, "Patient")
        left = (nights[night - 1] - nights[night]) & everybody[night]
        found = versions_in(current_files(site, "patient_current")).keys()
        assert found >= nights[night]
        assert found & left == (left if on_leave == "keep" else set())


def test_what_an_export_leaves_out_by_its_end_is_not_absent(tmp_path: Path) -> None:
    """`_until` lies before now at Microsoft's servers: what changed since is in the next export."""
    with open_site(
        tmp_path,
        export={
            **{"level": "system", "group": None, "types": ["Observation"]},
            **{"infer_deletes": True, "since": "never"},
        },
        source={"current": True, "knobs": {"until_lag": 86_400}},
        export_seconds=0.01,
        poll_seconds=0,
    ) as site:
        run_night(site, 3)
        update_current(site.session, "Observation")
        before = versions_in(current_files(site, "observation_current")).keys()
        run_night(site, 12)
        update_current(site.session, "Observation")
        after = versions_in(current_files(site, "observation_current")).keys()
        alive = {each["id"] for each in site.truth(12, None)["Observation"]}
        gone = {each["id"] for each in site.truth(11, None)["Observation"]}
        assert before & alive <= after
        assert before - gone, "something was deleted"
        assert not (before - gone) & after
