"""A patient erased from a lake of two nights, killed in between or not; read by DuckDB and as bytes.

Whose a resource is, is told by the sandbox's own lines; nothing of the pipeline is asked.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from azure_storage import Azurite
from deltalake import DeltaTable
from driven_by_hand import Drive
from ingest_by_hand import ingest, session_of
from lake_on_azurite import lake_url
from nightly_site import Site, open_site

from pipeline.errors import ConfigError, StillRunning
from pipeline.exports.attempt import claim_attempt
from pipeline.exports.current import current_types, update_current
from pipeline.exports.doctor import examine_lake
from pipeline.exports.erasing import erase
from pipeline.exports.flattening import flat_names, make_flat
from pipeline.exports.owner import this_process
from pipeline.exports.request import request_export
from pipeline.exports.session import Session
from pipeline.sandbox import truth
from pipeline.tables.current.chunks import Chunk, ChunkTable, new_chunk
from pipeline.tables.delta import schema_of, write_small_partition
from pipeline.tables.thinning import thin

TYPES = ["Patient", "Observation", "Group"]
NIGHTS = ["20260101T020000Z", "20260102T020000Z"]
KILLS = (16, 11, 7, 2)
NEXT = "20260103T020000Z"
Rows = dict[str, Counter[str]]
"""Table -> its rows as JSON, each as often as it is there."""


@dataclass
class Erasing:
    """A lake, whose patient goes, and what is that patient's by the sandbox's own lines."""

    site: Site
    patient: str
    ids: frozenset[tuple[str, str]]

    def session(self) -> Session:
        return session_of(self.site, "erase")

    def copy(self, folder: Path) -> Erasing:
        """The same lake elsewhere."""
        shutil.copytree(self.site.lake, folder / "lake")
        home = folder / "home"
        shutil.copytree(self.site.home, home)
        config = yaml.safe_load(self.site.config_path.read_text())
        config["lake"] = str(folder / "lake")
        (home / "exports.yaml").write_text(yaml.safe_dump(config))
        return Erasing(
            Site(folder, self.site.sandbox, self.site.patients, self.site.seed), self.patient, self.ids
        )

    def belongs(self, row: str) -> bool:
        """Whether a row of a table of resources, of a flat one or of deletions is the patient's."""
        found = json.loads(row)
        kind = found.get("resourceType") or found.get("resource_type") or found["table"]
        identifier = found.get("id") or found.get("resource_id")
        return (kind, identifier) in self.ids or found.get("patient") == self.patient


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Erasing]:
    """Two nights with deep, flat and current tables; a raw file of each kind, packed and gzip."""
    with open_site(
        tmp_path_factory.mktemp("site"),
        patients=7,
        export={"level": "system", "group": None, "types": TYPES},
        source={"current": True, "flat": ["Observation"]},
        export_seconds=0.01,
        poll_seconds=0,
        file_lines=60,
    ) as site:
        ids: set[tuple[str, str]] = set()
        lines = [
            (night, kind, line)
            for night in (1, 2)
            for kind, line in truth(site.seed, site.patients, night, None, level="system")
        ]
        patient = _patient_of_many(lines)
        for _, kind, line in lines:
            resource = json.loads(line)
            if kind != "Group" and (resource["id"] == patient or f"Patient/{patient}" in str(resource)):
                ids.add((kind, resource["id"]))
        for number, export_id in enumerate(NIGHTS, start=1):
            site.sandbox.control(night=number)
            drive = Drive(site, export_id)
            assert drive.to_the_end().receipt is not None, drive.words()
            make_flat(site.session, export_id, "Observation", flat_names("Observation"))
            for kind in current_types(site.session):
                update_current(site.session, kind)
        erasing = Erasing(site, patient, frozenset(ids))
        others = next(
            json.loads(line)["id"]
            for _, kind, line in lines
            if kind == "Patient" and (kind, json.loads(line)["id"]) not in ids
        )
        add_tables(erasing, others)
        yield erasing


def add_tables(erasing: Erasing, other: str) -> None:
    """Tables that name resources: members of the group, attachments with their contents; a flat form of a
    current table. Two of three attachments are the patient's, of two contents one."""
    lake = erasing.site.session.lake
    mine = next(identifier for kind, identifier in sorted(erasing.ids) if kind == "Observation")
    links = [
        {"resource_type": "Observation", "resource_id": name, "sha256": content * 64}
        for name, content in ((mine, "a"), (mine, "b"), (other, "b"))
    ]
    for content in "ab":
        assert lake.put_new(f"hosp/attachments/{content * 64}", content.encode())
    members = [
        {"patient": each, "standing": "active", "state": "member"} for each in (erasing.patient, other)
    ]
    for name, rows in (("_attachments", links), ("_members", members)):
        data = pa.Table.from_pylist(rows)

        def put(local: Path, path: str, name: str = name) -> None:
            lake.put_file(local, f"hosp/tables/{name}/{path}")

        with lake.spool() as spool:
            write_small_partition(
                lake.table_uri(f"hosp/tables/{name}"),
                export_id=NIGHTS[0],
                attempt=1,
                replaces_after=0,
                tables=[data],
                schema=data.schema,
                put=put,
                spool=spool,
            )
    flat = DeltaTable(str(erasing.site.lake / "hosp" / "tables" / "observation_flat"))
    place = "hosp/current/observation_flat_current"
    table = ChunkTable.covering(lake.table_uri(place), schema_of(flat))
    chunks = []
    for uri in flat.file_uris():
        name, path = new_chunk(NIGHTS[0])
        lake.put_file(Path(uri), f"{place}/{path}")
        chunks.append(Chunk(name, path, pq.read_metadata(uri).num_rows, Path(uri).stat().st_size))
    table.replace([], chunks, {}, "made")


def _patient_of_many(lines: list[tuple[int, str, bytes]]) -> str:
    """Who is there on every night, with the most resources."""
    there = Counter(json.loads(line)["id"] for _, kind, line in lines if kind == "Patient")
    named = Counter(
        match
        for _, _, line in lines
        for match in re.findall(r"Patient/([A-Za-z0-9.-]+)", bytes(line).decode())
    )
    return next(each for each, _ in named.most_common() if there[each] == 2)


def rows_of(site: Site) -> Rows:
    """Every table, by DuckDB over the files that delta-rs lists; columns that name files are left out."""
    found: Rows = {}
    for root in ("tables", "current"):
        for table in sorted((site.lake / "hosp" / root).iterdir()):
            files = sorted(DeltaTable(str(table)).file_uris())
            name = table.name.split("_")[0].capitalize() or table.name
            found[f"{root}/{table.name}"] = Counter()
            if files:
                query = f"from read_parquet({files}, union_by_name=true, hive_partitioning=false)"
                rows = duckdb.sql(f"select to_json(t)::varchar {query} t").fetchall()
                found[f"{root}/{table.name}"] = Counter(
                    json.dumps(json.loads(row[0]) | {"table": name}, sort_keys=True) for row in rows
                )
    return found


def where(site: Site, text: str) -> Counter[str]:
    """Files of the lake that hold a text, whatever refers to them: by the first folders of their path."""
    found: Counter[str] = Counter()
    for path in sorted(site.lake.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b" and path.suffix != ".bin":
            data += gzip.decompress(data)
        if path.suffix == ".parquet":
            query = f"select to_json(t)::varchar from read_parquet('{path}', hive_partitioning=false) t"
            data += "".join(row[0] for row in duckdb.sql(query).fetchall()).encode()
        if text.encode() in data:
            parts = path.relative_to(site.lake).parts
            found["/".join(parts[: 2 if parts[1] in ("raw", "exports", "quarantine") else 3])] += 1
    return found


def expected(before: Rows, erasing: Erasing) -> Rows:
    """What is left of each table: all rows that are not the patient's, as they were."""
    return {
        table: Counter({row: count for row, count in rows.items() if not erasing.belongs(row)})
        for table, rows in before.items()
    }


def only_groups(erasing: Erasing) -> bool:
    """Whether all that still names the patient is the Group, which names others too."""
    name = erasing.patient
    lines = [line for line in raw_lines(erasing.site) if name.encode() in line]
    return all(json.loads(line)["resourceType"] == "Group" for line in lines) and where(
        erasing.site, name
    ).keys() <= {"hosp/raw", "hosp/tables/group", "hosp/current/group_current"}


def raw_lines(site: Site) -> Counter[bytes]:
    """Every line of the raw files, decoded."""
    found: Counter[bytes] = Counter()
    for path in (site.lake / "hosp" / "raw").rglob("*.ndjson*"):
        data = path.read_bytes()
        found.update((gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).splitlines())
    return found


def plant(erasing: Erasing, before: Rows) -> tuple[list[Path], Path]:
    """What failed attempts leave behind, with the patient in it; and a quarantine file with two records."""
    root = erasing.site.lake / "hosp"
    mine = next(
        json.loads(row) for row in before["tables/observation"] if erasing.belongs(row) and NIGHTS[0] in row
    )
    rejected = root / "raw" / NIGHTS[0] / "rejected" / "output-000001-0001-abcdef01.bin"
    rejected.parent.mkdir()
    rejected.write_bytes(gzip.compress(f'{{"text": "Patient/{erasing.patient} has"}}\n'.encode() * 99)[:-9])
    live = next(Path(uri) for uri in DeltaTable(str(root / "tables" / "observation")).file_uris())
    orphan = live.with_name("part-0009-" + "0" * 32 + ".parquet")
    shutil.copy(live, orphan)
    spool = erasing.site.lake / ".spool" / "fhir-export-spool-killed"
    spool.mkdir(parents=True)
    (spool / "raw-1").write_text(erasing.patient)
    for path in (orphan, spool):
        os.utime(path, (time.time() - 7200,) * 2)
    record = root / "quarantine" / NIGHTS[0] / "0001" / "observation-00000.ndjson"
    record.parent.mkdir(parents=True, exist_ok=True)
    bad = [
        {"file": mine["_source_file"], "line": mine["_source_line"], "path": "", "reason": "", "sha256": ""},
        {"file": "output-999999", "line": 1, "path": "", "reason": "", "sha256": ""},
    ]
    record.write_text("".join(json.dumps(each) + "\n" for each in bad))
    assert mine["_export_id"] == NIGHTS[0]
    return [rejected, orphan, spool / "raw-1"], record


def deletions_in(bundles: Iterable[bytes]) -> set[tuple[str, str]]:
    """Type and id of each entry."""
    urls = [entry["request"]["url"] for each in bundles for entry in json.loads(each)["entry"]]
    return {(url.split("/")[-2], url.split("/")[-1]) for url in urls}


def test_a_patient_is_gone_from_every_file_and_all_else_is_as_it_was(base: Erasing, tmp_path: Path) -> None:
    """By any reader, in any file, live or not; a dry run says the same and changes nothing."""
    erasing = base.copy(tmp_path)
    site, session = erasing.site, erasing.session()
    before, lines_before = rows_of(site), raw_lines(site)
    planted, record = plant(erasing, before)
    assert where(site, erasing.patient).keys() > {"hosp/tables/observation", "hosp/current/patient_current"}
    files = {path: path.stat().st_mtime_ns for path in site.lake.rglob("*") if path.is_file()}
    dry = erase(session, erasing.patient)
    assert files == {path: path.stat().st_mtime_ns for path in site.lake.rglob("*") if path.is_file()}
    group = DeltaTable(str(site.lake / "hosp" / "current" / "group_current"))
    done = erase(session, erasing.patient, dry_run=False)
    assert DeltaTable(group.table_uri).version() > group.version(), "a merge on its way begins again"
    assert DeltaTable(group.table_uri).transaction_version("erased") is None
    after = rows_of(site)
    wanted = expected(before, erasing)
    assert after == wanted
    gone = {table: before[table].total() - rows.total() for table, rows in wanted.items()}
    assert {table: count for table, count in gone.items() if count} == dict(+done.rows) == dict(+dry.rows)
    assert gone["tables/observation"] > 9 and gone["tables/observation_flat"] >= gone["tables/observation"]
    assert done.proved and not done.left and not done.unread
    assert done.raw_lines == dry.raw_lines
    assert not any(path.exists() for path in planted)
    assert sorted(path.name[0] for path in (site.lake / "hosp" / "attachments").iterdir()) == ["b"]
    assert done.attachments == dry.attachments == 1
    assert (gone["tables/_attachments"], gone["tables/_members"]) == (2, 1)
    assert done.quarantine == 1 and record.read_text().count("\n") == 1
    assert json.loads(record.read_text())["file"] == "output-999999", "that of somebody else stays"
    assert lines_before.total() == raw_lines(site).total(), "blank lines stand for those that went"
    lost = lines_before - raw_lines(site)
    assert lost.total() == done.raw_lines
    bundles = [each for each in lost if json.loads(each)["resourceType"] == "Bundle"]
    assert all(
        (each["resourceType"], each["id"]) in erasing.ids
        for each in map(json.loads, lost.keys() - set(bundles))
    )
    new = set(raw_lines(site) - lines_before) - {b""}
    assert len(new) == len(bundles) > 0, "deletions of others stay, in the same Bundle"
    named = [deletions_in(each) for each in (bundles, new)]
    assert named[0] - named[1] <= erasing.ids and named[1] < named[0]
    assert only_groups(erasing), where(site, erasing.patient)
    assert set(done.mentions) == {"raw", "tables/group", "current/group_current"}
    assert [each for each in examine_lake(session) if each.severity != "note"] == []
    assert all(update_current(session, each).merged is None for each in current_types(session))
    assert erase(session, erasing.patient).rows.total() == 0


def test_what_a_thinned_chunk_remembers_of_rows_that_went_before_is_gone_too(
    base: Erasing, tmp_path: Path
) -> None:
    """Taking rows out of a chunk leaves their values in its dictionaries; nobody reads them, and they are
    bytes in a file all the same. Chunks so small are never thinned, so this one is, by hand."""
    erasing = base.copy(tmp_path)
    site = erasing.site
    place = "hosp/current/observation_current"
    table = ChunkTable.at(site.session.lake.table_uri(place))
    chunk = table.chunks[0]
    plain, thinned = tmp_path / "plain", tmp_path / "thinned"
    rows = pq.read_table(site.lake / place / chunk.path, partitioning=None)
    pq.write_table(rows, plain, compression="none")
    theirs = [erasing.patient in str(row["subject"]) for row in rows.select(["subject"]).to_pylist()]
    assert 0 < sum(theirs) < len(theirs)
    count = thin(plain, thinned, ~np.array(theirs))
    assert erasing.patient not in str(pq.read_table(thinned).to_pylist())
    assert erasing.patient.encode() in thinned.read_bytes()
    name, path = new_chunk(NIGHTS[0])
    site.session.lake.put_file(thinned, f"{place}/{path}")
    table.replace([chunk], [Chunk(name, path, count, thinned.stat().st_size)], {}, "thinned")
    before = rows_of(site)
    done = erase(erasing.session(), erasing.patient, dry_run=False)
    assert done.proved
    assert rows_of(site) == expected(before, erasing)
    assert only_groups(erasing), where(site, erasing.patient)
    parts = [each for each in (site.lake / place).rglob("*.parquet") if "_delta_log" not in each.parts]
    assert parts
    for part in parts:
        assert b"fhir_export.thinned" not in (pq.read_metadata(part).metadata or {})


def test_an_export_can_be_ingested_again_and_the_next_night_works(base: Erasing, tmp_path: Path) -> None:
    """From the raw bytes that are left: the patient does not come back, the receipt is as whole as it was."""
    erasing = base.copy(tmp_path)
    site, session = erasing.site, erasing.session()
    whole = site.facts(NIGHTS[0]).receipt
    erase(session, erasing.patient, dry_run=False)
    before = rows_of(site)
    again = ingest(session_of(site, "again"), NIGHTS[0])
    assert again.attempt == 2 and whole is not None
    assert (again.watermark, again.incomplete) == (whole.watermark, whole.incomplete)
    assert again.rows < whole.rows
    assert {
        table: rows for table, rows in rows_of(site).items() if "_flat" not in table and "/_" not in table
    } == {table: rows for table, rows in before.items() if "_flat" not in table and "/_" not in table}
    assert only_groups(erasing)
    assert [each for each in examine_lake(session) if each.severity != "note"] == []
    site.sandbox.control(night=3)
    drive = Drive(site, NEXT)
    assert drive.to_the_end().receipt is not None, drive.words()
    for kind in current_types(site.session):
        update_current(site.session, kind)
    assert [each for each in examine_lake(session) if each.severity != "note"] == []


def test_an_erasure_that_is_killed_again_and_again_ends_like_one_that_was_not(
    base: Erasing, tmp_path: Path
) -> None:
    """SIGKILL before the 16th write, the 11th of what is left, and so on; meanwhile readers see each table
    as it was, or as it will be."""
    erasing = base.copy(tmp_path)
    site = erasing.site
    before = rows_of(site)
    wanted = expected(before, erasing)
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("erase_until_killed.py")),
            str(site.config_path),
            erasing.patient,
            *map(str, KILLS),
        ],
        env=site.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(KILLS), done.stderr
    between = rows_of(site)
    assert all(rows in (before[table], wanted[table]) for table, rows in between.items())
    assert between != wanted or not only_groups(erasing)
    finished = erase(erasing.session(), erasing.patient, dry_run=False)
    assert finished.proved, finished
    assert rows_of(site) == wanted
    assert only_groups(erasing)
    assert [each for each in examine_lake(erasing.session()) if each.severity != "note"] == []


def test_nothing_is_erased_while_a_run_is_at_work_or_bytes_wait(base: Erasing, tmp_path: Path) -> None:
    erasing = base.copy(tmp_path)
    site = erasing.site
    claim_attempt(erasing.session(), NIGHTS[1])
    alive = Session(site.config, site.source, this_process("other"), is_dead=lambda _: False)
    with pytest.raises(StillRunning):
        erase(alive, erasing.patient, dry_run=False)
    assert erase(alive, erasing.patient).rows, "a dry run may look"
    request_export(erasing.session(), NEXT)
    claim_attempt(erasing.session(), NEXT)
    with pytest.raises(ConfigError, match="still to be published"):
        erase(erasing.session(), erasing.patient, dry_run=False)


def test_the_command_erases_a_lake_on_azure_and_never_tells_the_id(
    base: Erasing, azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erasing = base.copy(tmp_path)
    before = rows_of(erasing.site)
    monkeypatch.setenv("HELD", azurite.connection_string)
    config = yaml.safe_load(erasing.site.config_path.read_text())
    config["lake"] = lake_url(azurite.new_container())
    config["lake_auth"] = {"kind": "connection-string", "connection_string": "env:HELD"}
    erasing.site.config_path.write_text(yaml.safe_dump(config))
    lake = erasing.session().lake
    for path in erasing.site.lake.rglob("*"):
        if path.is_file():
            lake.put_file(path, path.relative_to(erasing.site.lake).as_posix())
    done = erasing.site.cli("erase", "hosp", erasing.patient, "--yes", "--json")
    told = json.loads(done.stdout)
    assert told["proved"] and told["found_again"] == 0 and told["files_read"] > 50
    gone = {name: (before[name] - rows).total() for name, rows in expected(before, erasing).items()}
    assert told["rows"] == {name: count for name, count in gone.items() if count}
    assert told["mentions_left"].keys() == {"raw", "tables/group", "current/group_current"}
    assert erasing.patient not in done.stdout + done.stderr
    facts = [name for name in lake.sizes("hosp/exports") if "/landed/erased-0001/" in name]
    assert facts
    assert not any(erasing.patient in (lake.read(f"hosp/exports/{name}") or b"").decode() for name in facts)
