"""The rules of the current tables' checks, without a lake; and what Dagster is told of these tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap

from pipeline.config import Config, Source
from pipeline.exports.current_checks import Lost, Origins, version_before
from pipeline.exports.current_references import form_of, is_reference_text, reference_texts
from pipeline.orchestration.current_checks import LOST, ORIGIN, REFERENCES
from pipeline.orchestration.factory import build_source

BASE = "https://fhir.example.org/r4"


@pytest.mark.parametrize(
    ("version", "previous", "expected"),
    [
        (0, None, None),  # made, and nothing in it yet
        (7, None, 6),
        (7, (4, 3), 4),  # three merges since somebody looked
        (7, (6, 5), 6),
        (7, (7, 4), 4),  # nothing new: what was said last is said again
        (7, (7, None), 6),
        (2, (9, 8), 1),  # another table, made anew from nothing
    ],
)
def test_a_table_is_compared_with_what_was_looked_at_last(
    version: int, previous: tuple[int, int | None] | None, expected: int | None
) -> None:
    assert version_before(version, previous) == expected


def test_the_share_is_of_the_rows_before_and_rows_of_changed_exports_are_no_fault() -> None:
    assert Lost(2, 1, rows=500, rows_before=100, lost=5).share == 0.05
    assert Lost(1, 0, rows=10, rows_before=0, lost=0).share == 0
    assert Origins(rows=9, exports=2, unlisted=0, strangers=0, behind=4).sound
    assert not Origins(rows=9, exports=2, unlisted=1, strangers=0, behind=0).sound
    assert not Origins(rows=9, exports=2, unlisted=0, strangers=1, behind=0).sound


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Patient/1", ("Patient", "1")),
        ("Patient/1/_history/2", ("Patient", "1")),
        (f"{BASE}/Patient/a.b-C", ("Patient", "a.b-C")),
        (f"{BASE}/Patient/1/_history/x", ("Patient", "1")),
        ("https://fhirXexample.org/r4/Patient/1", None),  # a dot is a dot
        (f"{BASE}/x/Patient/1", None),
        ("https://other.example.org/Patient/1", None),
        ("Practitioner/1", None),  # has no current table
        ("PatientX/1", None),
        ("Patient/1/x", None),
        ("Patient?identifier=s|v", None),
        ("urn:uuid:Patient/1", None),
        ("#Patient", None),
        ("1", None),
    ],
)
def test_only_references_to_our_own_types_are_judged(text: str, found: tuple[str, str] | None) -> None:
    """Relative, or absolute on the server's base (protocol fact 32); by Arrow's own regular expressions."""
    import pyarrow.compute as pc

    form = form_of(BASE, ["Encounter", "Patient"])
    parts = pc.extract_regex(pa.array([text, None]), form).to_pylist()
    assert parts == [found and {"type": found[0], "id": found[1]}, None]


def test_every_reference_of_a_column_is_found_at_its_path() -> None:
    reference = pa.struct([("reference", pa.string())])
    participant = pa.list_(pa.struct([("individual", reference), ("with", pa.list_(reference))]))
    rows: Sequence[object] = [
        [{"individual": {"reference": "A/1"}, "with": [{"reference": "B/1"}, {"reference": "B/2"}]}],
        None,
        [],
        [None, {"individual": None, "with": [None]}, {"individual": {"reference": "A/2"}, "with": None}],
    ]
    found = {
        ".".join(steps): texts.drop_null().to_pylist()
        for steps, texts in reference_texts(pa.array(rows, participant), ("participant",))
    }
    assert found == {"participant.individual": ["A/1", "A/2"], "participant.with": ["B/1", "B/2"]}
    assert [*reference_texts(pa.array([{"system": "s"}]), ("code",))] == []


@pytest.mark.parametrize(
    ("resource_type", "column", "expected"),
    [
        ("Encounter", "subject.reference", True),
        ("Encounter", "participant.list.element.individual.reference", True),
        ("Encounter", "subject.display", False),
        ("Encounter", "extension.list.element.valueReference.reference", True),
        ("Immunization", "education.list.element.reference", False),  # a uri
        ("DetectedIssue", "reference", False),  # another
        ("StructureDefinition", "snapshot.element.list.element.id", False),
        ("Encounter", "_unmapped", False),
    ],
)
def test_the_texts_of_references_are_told_by_the_definitions(
    resource_type: str, column: str, expected: bool
) -> None:
    assert is_reference_text(resource_type, column) is expected


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    folder = tmp_path_factory.mktemp("definitions")
    return build_source(*_configured(folder))


def _configured(folder: Path) -> tuple[Config, Source]:
    source = {
        "name": "hosp",
        "fhir_url": BASE,
        "auth": {"kind": "none"},
        "export": {"level": "system", "types": ["Patient", "Encounter", "Goal"]},
        "current": ["Patient", "Encounter"],
        "schedule": "0 2 * * 1-5",
        "deadline_hours": 6,
    }
    config = Config.model_validate({"lake": str(folder / "lake"), "sources": [source]})
    return config, config.source(None)


CURRENT = [dg.AssetKey(["hosp", f"{name}_current"]) for name in ("encounter", "patient")]


def test_current_tables_are_due_when_their_tables_are(built: dg.Definitions) -> None:
    """In what the daemon and the UI are given, too; a week with a weekend in it, and the deadline."""
    graph = built.resolve_asset_graph()
    given = {node.asset_key: node for node in RepositorySnap.from_def(built.get_repository_def()).asset_nodes}
    for key in CURRENT:
        upstream = dg.AssetKey([key.path[0], key.path[1].removesuffix("_current")])
        policy = graph.get(key).freshness_policy
        assert policy is not None
        assert policy == graph.get(upstream).freshness_policy == given[key].freshness_policy
        assert policy.fail_window.to_timedelta().total_seconds() == (3 * 24 + 6) * 3600


def test_the_current_job_has_a_step_of_checks_behind_the_merges(built: dg.Definitions) -> None:
    job = built.resolve_job_def("hosp_current")
    assert {node.name for node in job.nodes} == {
        "hosp__current",
        "hosp__current_flat",
        "hosp__current_checks",
    }
    behind = job.graph.dependency_structure.input_to_upstream_outputs_for_node("hosp__current_checks")
    assert {output.node_name for several in behind.values() for output in several} == {"hosp__current"}
    expected = {dg.AssetCheckKey(key, name) for key in CURRENT for name in (LOST, ORIGIN, REFERENCES)}
    assert set(job.asset_layer.asset_graph.asset_check_keys) == expected


def test_automation_asks_for_the_checks_with_the_tables(tmp_path: Path) -> None:
    """None of the checks has a condition of its own, so they ride along (Dagster then names no check)."""
    definitions_ = build_source(*_configured(tmp_path))
    graph = definitions_.resolve_asset_graph()
    assert all(graph.get(key).automation_condition is None for key in graph.asset_check_keys)
    instance = dg.DagsterInstance.ephemeral()
    before = dg.evaluate_automation_conditions(definitions_, instance)
    instance.add_dynamic_partitions("hosp_exports", ["20260101T020000Z"])
    for name in ("patient", "encounter"):
        instance.report_runless_asset_event(
            dg.AssetMaterialization(dg.AssetKey(["hosp", name]), partition="20260101T020000Z")
        )
    after = dg.evaluate_automation_conditions(definitions_, instance, cursor=before.cursor)
    assert {key: after.get_num_requested(key) for key in CURRENT} == dict.fromkeys(CURRENT, 1)
