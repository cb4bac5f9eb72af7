"""The checks of the current tables: on tables published by hand, and through a real night in Dagster.

Tampering is done by deltalake alone; what must be counted is told from the resources themselves.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from nightly_site import Site, open_site
from published_by_hand import BASE, HandMade

from pipeline.errors import VerificationFailed
from pipeline.exports.current import update_current
from pipeline.exports.current_checks import Lost, Origins, lost_rows, origins
from pipeline.exports.current_references import Counted, Pointing, counting_references
from pipeline.orchestration.current_checks import LOST, ORIGIN, REFERENCES
from pipeline.orchestration.factory import build_source
from pipeline.orchestration.jobs_here import JobsHere

N1, N2, N3, N4 = (f"2026010{day}T020000Z" for day in range(1, 5))


def patient(identifier: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": identifier, **more}


def encounter(identifier: str, subject: str, **more: Any) -> dict[str, Any]:
    fixed = {"resourceType": "Encounter", "status": "finished", "class": {"code": "AMB"}}
    return {**fixed, "id": identifier, "subject": {"reference": subject}, **more}


PATIENTS = [patient(f"p{number}") for number in range(10)]


def put_in(folder: Path, **changed: str) -> None:
    """A row by hand: the table's first, but for what is changed."""
    table = DeltaTable(str(folder))
    first = table.to_pyarrow_table().slice(0, 1)
    for name, value in changed.items():
        first = first.set_column(first.schema.get_field_index(name), name, pa.array([value], pa.string()))
    write_deltalake(table, first, mode="append")


# --- on tables published by hand -----------------------------------------------------------------------


def test_ids_that_went_away_are_counted_unless_they_were_deleted(tmp_path: Path) -> None:
    """New rows do not hide them, several merges are compared at once, deletions explain them."""
    made = HandMade(tmp_path)
    assert lost_rows(made.session, "Patient") == Lost(None, None, 0, 0, 0)
    made.publish(N1, *PATIENTS)
    update_current(made.session, "Patient")
    made.publish(N2, *(patient(f"q{number}") for number in range(4)))
    update_current(made.session, "Patient")
    made.publish(N3, patient("r0"), deleted=[("Patient", "p0"), ("Patient", "p1")])
    update_current(made.session, "Patient")
    assert lost_rows(made.session, "Patient") == Lost(3, 2, rows=13, rows_before=14, lost=0)
    made.take_back(N2, "_exports", "patient")
    assert update_current(made.session, "Patient").anew == f"{N2} was taken back"
    assert lost_rows(made.session, "Patient") == Lost(4, 3, rows=9, rows_before=13, lost=4)
    made.publish(N4, *(patient(f"s{number}") for number in range(9)))
    update_current(made.session, "Patient")
    assert lost_rows(made.session, "Patient") == Lost(5, 4, rows=18, rows_before=9, lost=0)
    assert lost_rows(made.session, "Patient", (3, 2)) == Lost(5, 3, rows=18, rows_before=13, lost=4)
    assert lost_rows(made.session, "Patient", (5, 2)) == Lost(5, 2, rows=18, rows_before=14, lost=4)


def test_what_is_vacuumed_is_not_compared_and_says_so(tmp_path: Path) -> None:
    made = HandMade(tmp_path)
    made.publish(N1, *PATIENTS)
    update_current(made.session, "Patient")
    made.take_back(N1, "_exports", "patient")
    made.publish(N2, patient("q0"))
    update_current(made.session, "Patient")
    assert lost_rows(made.session, "Patient", (1, 0)) == Lost(2, 1, rows=1, rows_before=10, lost=10)
    table = DeltaTable(str(tmp_path / "lake" / "hosp" / "current" / "patient_current"))
    assert table.vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert lost_rows(made.session, "Patient", (1, 0)) == Lost(4, None, rows=1, rows_before=0, lost=0)


def test_each_row_is_looked_up_in_the_export_that_it_names(tmp_path: Path) -> None:
    made = HandMade(tmp_path)
    folder = tmp_path / "lake" / "hosp" / "current" / "patient_current"
    made.publish(N1, *PATIENTS)
    made.publish(N2, patient("p0", active=True), patient("q0"))
    update_current(made.session, "Patient")
    assert origins(made.session, "Patient") == Origins(11, 2, unlisted=0, strangers=0, behind=0)
    for changed in ({"id": "p999"}, {"_source_file": "other.ndjson"}, {"_export_id": N3}):
        kept = tmp_path / "kept"
        shutil.copytree(folder, kept)
        put_in(folder, **changed)
        found = origins(made.session, "Patient")
        assert (found.rows, found.unlisted, found.strangers) == (
            (12, 1, 0) if "_export_id" in changed else (12, 0, 1)
        )
        shutil.rmtree(folder)
        kept.rename(folder)
    other = {
        "_export_id": {N1: N2, N2: N1}[DeltaTable(str(folder)).to_pyarrow_table()["_export_id"][0].as_py()]
    }
    put_in(folder, **other)  # a listed export, in which it does not stand
    assert origins(made.session, "Patient").strangers == 1


def test_an_export_that_changed_since_the_last_merge_is_no_fault_of_the_table(tmp_path: Path) -> None:
    made = HandMade(tmp_path)
    made.publish(N1, *PATIENTS)
    made.publish(N2, patient("q0"), patient("q1"))
    update_current(made.session, "Patient")
    made.commit(N2, "Patient", [patient("q1")], attempt=2)  # `_exports` comes last
    assert origins(made.session, "Patient") == Origins(12, 2, unlisted=0, strangers=0, behind=2)
    made.publish(N2, patient("q1"), attempt=3)
    assert origins(made.session, "Patient") == Origins(12, 2, unlisted=0, strangers=0, behind=2)
    update_current(made.session, "Patient")
    assert origins(made.session, "Patient") == Origins(11, 2, unlisted=0, strangers=0, behind=0)
    made.publish(N2, attempt=4)  # whole again, of a later attempt
    assert origins(made.session, "Patient") == Origins(11, 2, unlisted=0, strangers=0, behind=1)
    update_current(made.session, "Patient")
    made.take_back(N1, "_exports")  # the line that calls it whole goes first
    assert origins(made.session, "Patient") == Origins(11, 2, unlisted=0, strangers=0, behind=10)
    made.take_back(N1, "patient")
    assert origins(made.session, "Patient") == Origins(11, 2, unlisted=0, strangers=0, behind=10)


def test_references_that_lead_nowhere_are_counted_by_path_and_target(tmp_path: Path) -> None:
    """Relative and absolute ones (protocol fact 32); what was deleted is told apart."""
    made = HandMade(tmp_path)
    elsewhere = ("urn:uuid:1", "https://other.example.org/Patient/1", "#p", "Practitioner/1", "p1")
    made.publish(
        N1,
        *PATIENTS,
        encounter("e1", "Patient/p1"),
        encounter("e2", f"{BASE}/Patient/p2/_history/3"),
        encounter("e3", f"{BASE}/Patient/nobody"),
        encounter("e4", "Patient/p3", partOf={"reference": "Encounter/e1"}),
        encounter("e5", "Patient/p3", partOf={"reference": "Encounter/e0"}),
        *(encounter(f"f{number}", text) for number, text in enumerate(elsewhere)),
        encounter("g1", "Patient/p4", participant=[{"individual": {"reference": "Practitioner/1"}}, {}]),
        encounter("g2", "Patient/p4", diagnosis=[{"condition": {"reference": "Condition/c0"}}] * 3),
        {"resourceType": "Condition", "id": "c1", "subject": {"reference": "Patient/p5"}},
    )
    for each in ("Patient", "Encounter", "Condition"):
        update_current(made.session, each)
    made.publish(N2, deleted=[("Patient", "p3")])
    update_current(made.session, "Patient")
    with counting_references(made.session) as references:
        found = references.of("Encounter")
        assert found.by_path == (
            Pointing("diagnosis.condition", "Condition", references=3, dangling=3, deleted=0),
            Pointing("partOf", "Encounter", references=2, dangling=1, deleted=0),
            Pointing("subject", "Patient", references=7, dangling=3, deleted=2),
        )
        assert found.elsewhere == len(elsewhere) + 1
        assert references.of("Condition") == Counted((Pointing("subject", "Patient", 1, 0, 0),), 0)
        assert references.of("Patient") == Counted((), 0)


# --- through a night -----------------------------------------------------------------------------------

TYPES = ["Patient", "Encounter"]
CHECKS = (LOST, ORIGIN, REFERENCES)
WANTED = {"current": True, "flat": False, "current_checks": {"max_drop": 0.08}}


def verdicts(site: Site) -> Mapping[tuple[str, str], Any]:
    """The last evaluation of each check, by table and name."""
    instance = site.instance()
    found = {}
    for table in ("patient_current", "encounter_current"):
        for name in CHECKS:
            key = dg.AssetCheckKey(dg.AssetKey(["hosp", table]), name)
            record = instance.get_latest_asset_check_evaluation_record(key)
            assert record is not None and record.event is not None, key
            found[table, name] = record.event.dagster_event.asset_check_evaluation_data  # type: ignore[union-attr]
    return found


def failed(found: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], str]:
    return {key: each.severity.value for key, each in found.items() if not each.passed}


def test_a_night_passes_and_what_was_tampered_with_is_found(tmp_path: Path) -> None:
    export = {"level": "system", "group": None, "types": TYPES}
    with open_site(tmp_path, export=export, source=WANTED) as site:
        assert site.run_night()["state"] == "published"
        truth = site.truth(1, None)
        healthy = verdicts(site)
        assert failed(healthy) == {}
        texts = [each["subject"]["reference"] for each in truth["Encounter"]]
        # The sandbox writes some with a version, and some on the base of a server behind a proxy.
        subjects = Counter(each.split("/")[1] for each in texts if each.startswith("Patient/"))
        counts = healthy["encounter_current", REFERENCES].metadata
        by_path = {each["path"]: each for each in (row.data for row in counts["by_path"].records)}
        assert by_path["subject"]["references"] == sum(subjects.values())
        assert counts["dangling"].value == 0
        assert counts["not_judged"].value >= len(texts) - sum(subjects.values())
        assert healthy["patient_current", ORIGIN].metadata["rows"].value == len(truth["Patient"])

        # One Patient is gone without a word: 1 of 12 is more than 8 %. The run is none the worse for it.
        folder = site.lake / "hosp" / "current" / "patient_current"
        gone, encounters = subjects.most_common(1)[0]
        DeltaTable(str(folder)).delete(f"id = '{gone}'")
        run_id, error = current_job(site)
        assert error is None
        warned = verdicts(site)
        assert failed(warned) == {
            ("patient_current", LOST): "WARN",
            ("encounter_current", REFERENCES): "WARN",
        }
        assert warned["patient_current", LOST].metadata["lost"].value == 1
        assert warned["patient_current", LOST].metadata["share"].value == round(1 / len(truth["Patient"]), 6)
        assert warned["encounter_current", REFERENCES].metadata["dangling"].value == encounters
        assert not any(gone in str(each.metadata) + str(each.description) for each in warned.values())

        # The checks alone, at the same tables, say the same; a row from nowhere makes the run fail.
        checks_alone(site)
        again = verdicts(site)
        assert failed(again) == failed(warned)
        assert again["patient_current", LOST].metadata == warned["patient_current", LOST].metadata
        put_in(folder, id="stranger")
        run_id, error = current_job(site)
        assert isinstance(error, VerificationFailed)
        assert "patient_current: 1 of 12" in str(error) and "stranger" not in str(error)
        found = verdicts(site)
        assert failed(found)["patient_current", ORIGIN] == "ERROR"
        assert found["patient_current", ORIGIN].metadata["not_in_their_export"].value == 1
        stats = {each.step_key: each.status.value for each in site.instance().get_run_step_stats(run_id)}
        assert stats == {"hosp__current": "SUCCESS", "hosp__current_checks": "FAILURE"}

        update_current(site.session, "Patient", anew=True)
        _, error = current_job(site)
        assert error is None
        assert verdicts(site)["patient_current", ORIGIN].passed


def checks_alone(site: Site) -> None:
    """What *Execute all* on the page of an asset's checks does: nothing is merged."""
    definitions = build_source(site.config, site.source)
    job = definitions.resolve_implicit_global_asset_job_def()
    keys = {key for key in job.asset_layer.asset_graph.asset_check_keys if key.name in CHECKS}
    with site.instance() as instance:
        alone = job.get_subset(asset_selection=set(), asset_check_selection=keys)
        done = alone.execute_in_process(instance=instance)
    assert done.success
    assert [event.step_key for event in done.all_events if event.is_step_success] == ["hosp__current_checks"]


def current_job(site: Site) -> tuple[str, Exception | None]:
    """As `run --wait` does it."""
    definitions = build_source(site.config, site.source)
    with site.instance() as instance:
        return JobsHere(instance, "hosp", definitions, {}, lambda _: None).run("hosp_current", None)
