"""Flat tables beside the deep ones: what is current, what is stale, and one copy whatever happens."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, ExportError, LakeError, VerificationFailed
from pipeline.exports.facts import Publication, TableCounts
from pipeline.exports.flattening import (
    FlatPartition,
    NotMade,
    flat_names,
    make_flat,
    make_flat_tables,
    published,
    read_columns,
    standing,
    wanted_names,
)
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.orchestration.factory import build_source
from pipeline.tables.convert import Converter
from pipeline.tables.definitions import resource_types
from pipeline.tables.delta import StagedPart, commit_export, part_path
from pipeline.tables.flat import flat_tables
from pipeline.tables.schema import floor_schema

TYPES = ("Patient", "Claim")
NIGHT, OTHER_NIGHT = "20260101T020000Z", "20260102T020000Z"


def session_in(folder: Path, flat: Any = True) -> Session:
    source = {
        "name": "hosp",
        "fhir_url": "http://127.0.0.1:9/fhir",
        "auth": {"kind": "none"},
        "export": {"level": "system"},
        "flat": flat,
    }
    config = Config.model_validate(
        {"lake": "lake", "sources": [source], "conversion": {"lanes": 2}, "folder": folder}
    )
    return Session(config, config.source(None), this_process("test"))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return session_in(tmp_path)


def notes(*texts: str) -> list[dict[str, Any]]:
    """Resources of a type with few columns: an id, a subject and a text each."""
    return [
        {
            "resourceType": "Basic",
            "id": f"o{number}",
            "subject": {"reference": f"Patient/p{number}"},
            "code": {"text": each},
        }
        for number, each in enumerate(texts)
    ]


def publish(
    session: Session,
    resources: list[dict[str, Any]],
    *,
    export_id: str = NIGHT,
    attempt: int = 1,
    resource_type: str = "Basic",
) -> None:
    """Commits a deep table's partition, and writes the fact that names it."""
    table = resource_type.lower()
    staged = []
    with session.lake.spool() as spool:
        with Converter(resource_type, None, export_id, spool) as converter:
            converter.add(["".join(json.dumps(each) + "\n" for each in resources).encode()], "output-000000")
            parts = converter.finish()
        for part in parts:
            path = part_path(export_id, attempt)
            session.lake.put_file(part.path, f"{session.table(table)}/{path}")
            staged.append(StagedPart(path, part.bytes, part.rows))
    schema = parts[0].schema if parts else floor_schema(resource_type)
    uri = session.table_uri(table)
    commit = commit_export(
        uri, export_id=export_id, attempt=attempt, replaces_after=attempt - 1, parts=staged, schema=schema
    )
    counts = TableCounts(
        resource_type=resource_type,
        rows=commit.rows,
        quarantined=0,
        files=1,
        bytes=sum(part.bytes for part in staged),
        parts=len(staged),
        version=commit.version,
    )
    before = session.ledger.read(export_id).publications
    tables = {**(before[-1].tables if before else {}), table: counts}
    fact = Publication(at=datetime.now(UTC), attempt=attempt, owner=session.owner, tables=tables)
    name = f"published/{attempt + 100 * len(before):04d}.json"
    assert session.ledger.write(export_id, name, fact)


def rows(session: Session, table: str, columns: str, export_id: str = NIGHT) -> list[tuple[Any, ...]]:
    """What a reader of the Delta table sees."""
    uris = DeltaTable(session.table_uri(table)).file_uris()
    files = [uri for uri in uris if f"export_id={export_id}/" in uri]
    if not files:
        return []
    return duckdb.sql(f"select {columns} from read_parquet({files}) order by all").fetchall()


def versions(session: Session, table: str = "basic_flat") -> int:
    return DeltaTable(session.table_uri(table)).version()


def make(session: Session, *, again: bool = False) -> list[FlatPartition]:
    return make_flat(session, NIGHT, "Basic", ["basic_flat"], again=again)


@pytest.mark.parametrize("resource_type", resource_types())
def test_names_told_without_the_definitions_are_those_of_the_tables(resource_type: str) -> None:
    assert flat_names(resource_type) == tuple(table.name for table in flat_tables(resource_type))


def test_a_flat_partition_has_the_rows_of_its_table_and_nothing_is_left_behind(session: Session) -> None:
    publish(session, notes("71.5", "82.25"))
    publish(session, notes("99"), export_id=OTHER_NIGHT)
    (made,) = make(session)
    assert (made.rows, made.parts, made.attempt, made.made) == (2, 1, 1, True)
    assert rows(session, "basic_flat", "id, patient_id, code_text") == [
        ("o0", "p0", "71.5"),
        ("o1", "p1", "82.25"),
    ]
    assert rows(session, "basic_flat", "id", OTHER_NIGHT) == [], "only the export that was asked for"
    assert session.lake.names(".spool") == []


def test_what_is_current_is_left_alone_unless_it_is_asked_for(session: Session) -> None:
    publish(session, notes("1"))
    make(session)
    files = DeltaTable(session.table_uri("basic_flat")).file_uris()
    (again,) = make(session)
    assert not again.made
    assert DeltaTable(session.table_uri("basic_flat")).file_uris() == files
    for _ in range(2):
        (anew,) = make(session, again=True)
        assert anew.made
    assert rows(session, "basic_flat", "id") == [("o0",)]
    assert DeltaTable(session.table_uri("basic_flat")).file_uris() != files


def test_a_table_that_is_published_again_makes_its_flat_partition_stale(session: Session) -> None:
    publish(session, notes("1", "2"))
    publish(session, notes("7"), export_id=OTHER_NIGHT)
    names = wanted_names(session.source, published(session, NIGHT))
    make(session, again=True)
    make(session, again=True)
    make_flat(session, OTHER_NIGHT, "Basic", ["basic_flat"])
    assert standing(session, NIGHT, names) == {"basic_flat": 2}
    publish(session, notes("3"), attempt=2)
    assert standing(session, NIGHT, names) == {"basic_flat": None}
    (made,) = make(session)
    assert (made.attempt, made.made) == (2, True)
    assert rows(session, "basic_flat", "code_text") == [("3",)]
    assert rows(session, "basic_flat", "code_text", OTHER_NIGHT) == [("7",)]
    assert standing(session, NIGHT, names) == {"basic_flat": 1}


def test_a_table_that_has_become_empty_empties_its_flat_partition(session: Session) -> None:
    publish(session, notes("1"))
    make(session)
    publish(session, [], attempt=2)
    (made,) = make(session)
    assert (made.rows, made.parts) == (0, 0)
    assert rows(session, "basic_flat", "id") == []
    (again,) = make(session)
    assert not again.made


def test_a_flat_file_that_was_lost_is_made_again(session: Session) -> None:
    publish(session, notes("1"))
    make(session)
    (lost,) = DeltaTable(session.table_uri("basic_flat")).file_uris()
    Path(lost.removeprefix("file://")).unlink()
    assert standing(session, NIGHT, {"Basic": ["basic_flat"]}) == {"basic_flat": None}
    make(session)
    assert rows(session, "basic_flat", "code_text") == [("1",)]


def test_an_older_making_never_replaces_a_newer_one(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run reads the parts, and before it commits the export is ingested again and flattened by another."""
    from pipeline.exports import flattening

    publish(session, notes("1"))
    commit, published_in_between = flattening._commit, []

    def late(*arguments: Any) -> FlatPartition:
        if not published_in_between:
            published_in_between.append(True)
            publish(session, notes("5", "6"), attempt=2)
            make(session)
        return commit(*arguments)

    monkeypatch.setattr(flattening, "_commit", late)
    (found,) = make(session)
    assert (found.attempt, found.rows, found.made) == (2, 2, False)
    assert rows(session, "basic_flat", "code_text") == [("5",), ("6",)]


def test_two_that_make_the_same_at_the_same_time_leave_one_copy(session: Session) -> None:
    publish(session, notes(*(str(number) for number in range(50))))
    barrier, errors = threading.Barrier(4), []

    def one() -> None:
        barrier.wait()
        try:
            make(session, again=True)
        except ExportError as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert rows(session, "basic_flat", "count(*), count(distinct id)") == [(50, 50)]


def test_a_type_that_fails_does_not_stop_the_others_and_says_why(session: Session) -> None:
    publish(session, notes("1"))
    publish(session, [{"resourceType": "Patient", "id": "p"}], resource_type="Patient")
    (session.lake.folder / "hosp" / "tables" / "basic_flat").write_text("in the way")
    names = wanted_names(session.source, published(session, NIGHT))
    assert set(names) == {"Basic", "Patient"}
    done = list(make_flat_tables(session, NIGHT, names, again=False))
    (failed,) = [each for each in done if isinstance(each, NotMade)]
    assert failed.resource_type == "Basic"
    assert isinstance(failed.error, LakeError)
    assert rows(session, "patient_flat", "id") == [("p",)]
    assert session.lake.names(".spool") == []


def test_an_unexpected_error_is_told_without_its_text(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.exports import flattening

    publish(session, notes("1"))

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("Jane Doe")

    monkeypatch.setattr(flattening, "make_flat", broken)
    (failed,) = make_flat_tables(session, NIGHT, {"Basic": ("basic_flat",)}, again=False)
    assert isinstance(failed, NotMade)
    assert "ValueError" in str(failed.error)
    assert "Jane" not in str(failed.error)


def test_one_of_two_flat_tables_of_a_type_can_be_made_alone(session: Session) -> None:
    claim = {"resourceType": "Claim", "id": "c", "item": [{"sequence": 1}, {"sequence": 2}]}
    publish(session, [claim], resource_type="Claim")
    make_flat(session, NIGHT, "Claim", ["claim_item_flat"])
    assert rows(session, "claim_item_flat", "claim_id, sequence") == [("c", 1), ("c", 2)]
    both = {"Claim": ["claim_flat", "claim_item_flat"]}
    assert standing(session, NIGHT, both) == {"claim_flat": None, "claim_item_flat": 2}


def test_an_export_without_tables_is_refused_before_anything_is_made(session: Session) -> None:
    with pytest.raises(VerificationFailed, match="no tables yet"):
        published(session, NIGHT)
    publish(session, notes("1"), export_id=OTHER_NIGHT)
    with pytest.raises(VerificationFailed, match="nothing of export"):
        make(session)
    assert session.lake.names("hosp/tables/basic_flat") == []


@pytest.mark.parametrize(
    ("flat", "expected"), [(True, {"Basic", "Patient"}), (False, set()), (["Patient"], {"Patient"})]
)
def test_the_configuration_says_which_types_get_flat_tables(
    tmp_path: Path, flat: Any, expected: set[str]
) -> None:
    session = session_in(tmp_path, flat)
    publish(session, notes("1"))
    publish(session, [{"resourceType": "Patient", "id": "p"}], resource_type="Patient")
    assert set(wanted_names(session.source, published(session, NIGHT))) == expected


def test_columns_lead_back_to_the_columns_of_the_table_that_they_are_made_from() -> None:
    (observation,) = flat_tables("Observation")
    read = read_columns(observation, floor_schema("Observation"))
    assert read["id"] == ("id",)
    assert set(read["patient_id"]) == {"subject"}
    assert set(read["value_numeric"]) >= {"valueQuantity", "component"}
    assert set(read["effective_start"]) >= {"__effectiveDateTime_start", "effectivePeriod"}
    assert read["_source_line"] == ("_source_line",)
    claim, item = flat_tables("Claim")
    columns = read_columns(item, floor_schema("Claim"))
    assert columns["sequence"] == ("item",)
    assert columns["claim_id"] == ("id",)
    for table in (observation, claim, item, *flat_tables("ExplanationOfBenefit")):
        schema = floor_schema(table.resource_type)
        for name, found in read_columns(table, schema).items():
            assert set(found) <= set(schema.names), (table.name, name)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("maybe", "must be true, false, or a list of resource types such as [Patient, Observation]"),
        ("[]", "must be true, false, or a list of resource types such as [Patient, Observation]"),
        ("[1]", "must be true, false, or a list of resource types such as [Patient, Observation]"),
        ("[Patient, Observaton, patient]", "Observaton, patient: not a resource type of FHIR R4"),
    ],
)
def test_a_wrong_flat_setting_is_refused_by_name(tmp_path: Path, written: str, message: str) -> None:
    path = tmp_path / "exports.yaml"
    path.write_text(
        "lake: lake\nsources:\n  - name: hosp\n    fhir_url: https://fhir.example.org\n"
        f"    auth: {{kind: none}}\n    export: {{level: system}}\n    flat: {written}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert f"  sources[hosp].flat: {message}" in str(refused.value)
    assert str(refused.value).count("].flat") == 1, "one problem, told once"


@pytest.mark.parametrize(
    ("flat", "expected"),
    [
        (True, {"patient_flat", "claim_flat", "claim_item_flat"}),
        (["Claim", "Device"], {"claim_flat", "claim_item_flat"}),
        (False, set()),
    ],
)
def test_there_is_an_asset_for_each_flat_table_that_is_wanted_and_a_job_that_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: Any, expected: set[str]
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    config = session_in(tmp_path, flat).config
    source = config.source(None)
    source = source.model_copy(update={"export": source.export.model_copy(update={"types": TYPES})})
    repository = build_source(config, source).get_repository_def()
    graph = repository.asset_graph
    found = {key.path[-1]: key for key in graph.get_all_asset_keys() if key.path[-1].endswith("_flat")}
    assert set(found) == expected
    assert ("hosp_flat" in repository.job_names) == bool(expected)
    assert repository.has_sensor_def("hosp_flat_status") == bool(expected)
    for name, key in found.items():
        node = graph.get(key)
        assert {parent.path[-1] for parent in node.parent_keys} == {name.partition("_")[0]}
        assert node.group_name == "hosp_flat"
        assert node.partitions_def == graph.get(next(iter(node.parent_keys))).partitions_def
        assert node.metadata is not None and node.description
    ingest = repository.get_job("hosp_ingest").asset_layer.selected_asset_keys
    assert {key.path[-1] for key in ingest if key.path[-1].endswith("_flat")} == expected
