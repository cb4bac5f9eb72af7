"""Commits of our own Parquet parts: concurrent, repeated, growing; each trap of design.md once."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from pipeline.errors import ExportError, LakeError, StillRunning, VerificationFailed
from pipeline.tables import schema as schemas
from pipeline.tables.convert import Converter
from pipeline.tables.delta import (
    Commit,
    StagedPart,
    commit_export,
    committed_attempt,
    live_parts,
    part_path,
    partition_rows,
    table_schema,
    total_rows,
    write_small_partition,
)
from pipeline.tables.parts import PartWriter

N1, N2 = "20260101T020000Z", "20260102T020000Z"


def stage(root: Path | str, export_id: str, attempt: int, table: pa.Table) -> StagedPart:
    path = part_path(export_id, attempt)
    target = Path(root) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with PartWriter(target, table.schema) as writer:
        writer.write(table)
        part = writer.close()
    return StagedPart(path, part.bytes, part.rows)


def rows_of(ids: list[str], **columns: Any) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.string()), **columns})


def publish(
    root: Path | str,
    table: pa.Table,
    export_id: str = N1,
    attempt: int = 1,
    replaces_after: int = 0,
    parts: int = 1,
) -> Commit:
    staged = [
        stage(root, export_id, attempt, table.slice(i * table.num_rows // parts, table.num_rows // parts))
        for i in range(parts)
    ]
    return commit_export(
        str(root),
        export_id=export_id,
        attempt=attempt,
        replaces_after=replaces_after,
        parts=staged,
        schema=table.schema,
        metadata={"source": "hosp_a"},
    )


def ids(root: Path, export_id: str | None = None) -> list[str]:
    frame = pl.scan_delta(str(root))
    if export_id is not None:
        frame = frame.filter(pl.col("export_id") == export_id)
    return sorted(frame.select("id").collect()["id"].to_list())


def test_a_first_commit_makes_the_table_and_independent_readers_see_it(tmp_path: Path) -> None:
    root = tmp_path / "patient"
    done = publish(root, rows_of(["a", "b", "c", "d"]), parts=2)
    assert (done.rows, done.parts, done.already) == (4, 2, False)
    table = DeltaTable(str(root))
    assert table.version() == done.version
    assert table.metadata().partition_columns == ["export_id"]
    assert ids(root) == ["a", "b", "c", "d"]
    bare = duckdb.sql(f"select id, export_id from read_parquet('{root}/*/*.parquet', hive_partitioning=true)")
    assert sorted(bare.fetchall()) == [(name, N1) for name in "abcd"]
    history = table.history(1)[0]
    assert history["source"] == "hosp_a"
    assert (history["export_id"], history["attempt"]) == (N1, "1")
    assert history["schema_sha256"] == schemas.schema_hash(rows_of([]).schema)


def test_a_table_that_does_not_exist_is_empty_and_has_no_schema(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert table_schema(missing) is None
    assert live_parts(missing, N1) == []
    assert (partition_rows(missing, N1), total_rows(missing), committed_attempt(missing, N1)) == (0, 0, None)
    assert not Path(missing).exists()


def test_file_uris_work_like_paths(tmp_path: Path) -> None:
    root = tmp_path / "with space"
    part = stage(root, N1, 1, rows_of(["a"]))
    commit_export(
        root.as_uri(), export_id=N1, attempt=1, replaces_after=0, parts=[part], schema=rows_of([]).schema
    )
    assert total_rows(root.as_uri()) == total_rows(str(root)) == 1
    assert live_parts(root.as_uri(), N1) == [part]


def test_a_second_export_leaves_the_first_ones_files_untouched(tmp_path: Path) -> None:
    root = tmp_path / "t"
    publish(root, rows_of(["a", "b"]))
    before = live_parts(str(root), N1)
    bytes_before = (root / before[0].path).read_bytes()
    publish(root, rows_of(["a", "c"]), N2)
    assert live_parts(str(root), N1) == before
    assert (root / before[0].path).read_bytes() == bytes_before
    assert ids(root, N1) == ["a", "b"]
    assert ids(root, N2) == ["a", "c"]
    assert (partition_rows(str(root), N2), total_rows(str(root))) == (2, 4)


def test_the_same_attempt_twice_commits_once(tmp_path: Path) -> None:
    """design.md: sequentially the same app version is not refused by delta-rs."""
    root = tmp_path / "t"
    first = publish(root, rows_of(["a", "b"]))
    again = publish(root, rows_of(["a", "b"]))
    assert (again.already, again.version, again.rows, again.parts) == (True, first.version, 2, 1)
    assert ids(root) == ["a", "b"]


def test_a_later_attempt_of_the_same_cycle_finds_the_table_committed(tmp_path: Path) -> None:
    """A crash in publish is finished by the next attempt."""
    root = tmp_path / "t"
    publish(root, rows_of(["a", "b"]), attempt=2, replaces_after=1)
    again = publish(root, rows_of(["a", "b"]), attempt=3, replaces_after=1)
    assert again.already
    assert committed_attempt(str(root), N1) == 2
    assert ids(root) == ["a", "b"]


def test_ingesting_again_after_a_receipt_replaces_the_partition(tmp_path: Path) -> None:
    root = tmp_path / "t"
    publish(root, rows_of(["a", "b"]))
    publish(root, rows_of(["x"]), N2)
    done = publish(root, rows_of(["a", "b", "c"]), attempt=2, replaces_after=1)
    assert (done.already, done.rows) == (False, 3)
    assert ids(root, N1) == ["a", "b", "c"]
    assert ids(root, N2) == ["x"]
    assert committed_attempt(str(root), N1) == 2


def test_a_superseded_attempt_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "t"
    publish(root, rows_of(["a"]), attempt=3)
    with pytest.raises(StillRunning, match=r"Attempt 3 .* and this is attempt 2"):
        publish(root, rows_of(["b"]), attempt=2)
    assert ids(root) == ["a"]


def test_other_rows_in_the_same_cycle_are_an_error_not_a_silent_choice(tmp_path: Path) -> None:
    root = tmp_path / "t"
    publish(root, rows_of(["a"]), attempt=1)
    with pytest.raises(VerificationFailed, match="committed 1 rows, and this attempt staged 2"):
        publish(root, rows_of(["a", "b"]), attempt=2)
    assert ids(root) == ["a"]


def test_a_live_part_is_never_added_again(tmp_path: Path) -> None:
    """design.md: adding a live path again is a trap."""
    root = tmp_path / "t"
    table = rows_of(["a"])
    part = stage(root, N1, 1, table)
    options: dict[str, Any] = {"export_id": N1, "parts": [part], "schema": table.schema}
    commit_export(str(root), attempt=1, replaces_after=0, **options)
    with pytest.raises(LakeError, match="live already"):
        commit_export(str(root), attempt=2, replaces_after=1, **options)
    with pytest.raises(LakeError, match="listed twice"):
        commit_export(str(root), attempt=2, replaces_after=1, **{**options, "parts": [part, part]})
    with pytest.raises(LakeError, match="outside"):
        commit_export(str(root), attempt=2, replaces_after=1, **{**options, "export_id": N2})
    assert ids(root) == ["a"]


def test_no_parts_make_an_empty_table_or_empty_one_partition(tmp_path: Path) -> None:
    root = tmp_path / "t"
    schema = schemas.floor_schema("Patient")
    done = commit_export(str(root), export_id=N1, attempt=1, replaces_after=0, parts=[], schema=schema)
    assert (done.rows, done.parts, total_rows(str(root))) == (0, 0, 0)
    assert table_schema(str(root)) == schema
    publish(root, rows_of(["a"]), N2)
    publish(root, rows_of(["b"]), N1, attempt=2, replaces_after=1)
    commit_export(str(root), export_id=N1, attempt=3, replaces_after=2, parts=[], schema=schema)
    assert ids(root) == ["a"]


# --- schema growth ---


def test_ingesting_the_first_export_again_after_the_table_grew_keeps_all_columns(tmp_path: Path) -> None:
    """design.md: an overwrite with a narrower schema removes columns."""
    root = tmp_path / "t"
    publish(root, rows_of(["a"]))
    inner = pa.struct([("x", pa.string()), ("y", pa.int32())])
    publish(root, rows_of(["b"], late=pa.array([[{"x": "1", "y": 2}]], pa.list_(inner))), N2)
    publish(root, rows_of(["a"]), attempt=2, replaces_after=1)
    schema = table_schema(str(root))
    assert schema is not None
    assert schema.names == ["id", "late"]
    rows = pl.scan_delta(str(root)).sort("id").select("id", "late").collect().rows()
    assert rows == [("a", None), ("b", [{"x": "1", "y": 2}])]


def test_nested_members_that_come_later_are_null_in_older_files(tmp_path: Path) -> None:
    root = tmp_path / "t"

    def table(name: str, value: dict[str, str]) -> pa.Table:
        kind = pa.list_(pa.struct([(key, pa.string()) for key in value]))
        return rows_of([name], n=pa.array([[value]], kind))

    publish(root, table("a", {"p": "1"}))
    publish(root, table("b", {"q": "2"}), N2)
    rows = pl.scan_delta(str(root)).sort("id").select("n").collect()["n"].to_list()
    assert rows == [[{"p": "1", "q": None}], [{"p": None, "q": "2"}]]
    schema = table_schema(str(root))
    assert schema is not None
    assert schema.field("n").type == pa.list_(pa.struct([("p", pa.string()), ("q", pa.string())]))


def test_a_column_is_never_retyped(tmp_path: Path) -> None:
    root = tmp_path / "t"
    publish(root, rows_of(["a"], v=pa.array(["1"])))
    with pytest.raises(VerificationFailed, match="Column v has the type string"):
        publish(root, rows_of(["b"], v=pa.array([1])), N2)
    assert ids(root) == ["a"]


def at_the_same_time(*calls: Callable[[], Any]) -> list[Any]:
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


@pytest.mark.parametrize("round_", range(3))
def test_six_exports_with_new_columns_at_the_same_time_end_in_the_union(tmp_path: Path, round_: int) -> None:
    """design.md: half of six concurrent widenings fail and must be retried."""
    root = tmp_path / "t"
    publish(root, rows_of(["old"]))

    def one(number: int) -> Callable[[], Commit]:
        table = rows_of([str(number)], **{f"c{number}": pa.array([str(number)])})
        return lambda: publish(root, table, f"2026020{number}T000000Z")

    done = at_the_same_time(*[one(number) for number in range(6)])
    assert not any(commit.already for commit in done)
    schema = table_schema(str(root))
    assert schema is not None
    assert sorted(schema.names) == ["c0", "c1", "c2", "c3", "c4", "c5", "id"]
    frame = pl.scan_delta(str(root)).filter(pl.col("id") != "old").collect()
    for row in frame.iter_rows(named=True):
        assert row[f"c{row['id']}"] == row["id"]
    assert total_rows(str(root)) == 7


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("round_", range(3))
def test_two_publishes_of_one_export_in_threads_leave_each_row_once(
    tmp_path: Path, there_before: bool, round_: int
) -> None:
    """design.md: two concurrent overwrites of an empty partition both succeed without the transaction."""
    root = tmp_path / "t"
    if there_before:
        publish(root, rows_of(["z"]), N2)
    done = at_the_same_time(*[lambda: publish(root, rows_of(["a", "b"]))] * 3)
    assert sorted(commit.already for commit in done) == [False, True, True]
    assert ids(root, N1) == ["a", "b"]
    assert partition_rows(str(root), N1) == 2


def publish_in_process(root: str, export_id: str, column: str, barrier: Any, answers: Any) -> None:
    table = rows_of(["a", "b"], **{column: pa.array(["1", "2"])})
    barrier.wait()
    try:
        answers.put(publish(root, table, export_id).already)
    except ExportError as failed:
        answers.put(str(failed))


def in_processes(root: Path, *jobs: tuple[str, str]) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(len(jobs)), context.Queue()
    workers = [
        context.Process(target=publish_in_process, args=(str(root), *job, barrier, answers)) for job in jobs
    ]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    return found


def test_two_publishes_of_one_export_in_processes_leave_each_row_once(tmp_path: Path) -> None:
    root = tmp_path / "t"
    assert sorted(in_processes(root, (N1, "c1"), (N1, "c2"))) == [False, True]
    assert ids(root) == ["a", "b"]


def test_two_exports_in_processes_both_arrive_with_all_columns(tmp_path: Path) -> None:
    root = tmp_path / "t"
    assert in_processes(root, (N1, "c1"), (N2, "c2")) == [False, False]
    assert pl.scan_delta(str(root)).select("c1", "c2").collect().drop_nulls("c1").height == 2
    assert ids(root) == ["a", "a", "b", "b"]


def test_the_transaction_outlives_checkpoints(tmp_path: Path) -> None:
    root = tmp_path / "t"
    publish(root, rows_of(["a"]))
    for night in range(5):
        publish(root, rows_of([str(night)]), f"2026030{night}T000000Z")
    DeltaTable(str(root)).create_checkpoint()
    publish(root, rows_of(["y"]), N2)
    assert publish(root, rows_of(["a"])).already
    assert total_rows(str(root)) == 7


def test_a_table_that_another_writer_compacted_still_counts(tmp_path: Path) -> None:
    root = tmp_path / "t"
    publish(root, rows_of(["a", "b"]), parts=2)
    DeltaTable(str(root)).optimize.compact()
    assert partition_rows(str(root), N1) == 2
    assert publish(root, rows_of(["a", "b"])).already
    assert publish(root, rows_of(["a"]), attempt=2, replaces_after=1).rows == 1
    assert ids(root) == ["a"]


def test_a_damaged_log_is_named_without_its_text(tmp_path: Path) -> None:
    root = tmp_path / "t"
    publish(root, rows_of(["a"]))
    for entry in (root / "_delta_log").glob("*.json"):
        entry.write_text('{"SECRET')
    with pytest.raises(LakeError, match="The table t cannot be opened") as failed:
        total_rows(str(root))
    assert "SECRET" not in str(failed.value)


def test_a_lake_that_cannot_be_written_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeError, match="The table t cannot be"):
        commit_export(
            str(tmp_path / "file" / "t"),
            export_id=N1,
            attempt=1,
            replaces_after=0,
            parts=[],
            schema=rows_of([]).schema,
        )


# --- with the other parts ---


def test_resources_of_two_nights_with_growing_columns(tmp_path: Path) -> None:
    """Converter, commit and readers together: night 2 brings columns that night 1 lacked."""
    root = tmp_path / "patient"

    def night(export_id: str, attempt: int, after: int, *lines: bytes) -> None:
        folder = root / f"export_id={export_id}"
        folder.mkdir(parents=True, exist_ok=True)
        (local := tmp_path / f"{export_id}-{attempt}").mkdir()
        with Converter("Patient", table_schema(str(root)), export_id, local) as converter:
            converter.add((line + b"\n" for line in lines), "0001.ndjson")
            parts = converter.finish()
        staged = []
        for part in parts:
            path = part_path(export_id, attempt)
            part.path.rename(root / path)
            staged.append(StagedPart(path, part.bytes, part.rows))
        commit_export(
            str(root),
            export_id=export_id,
            attempt=attempt,
            replaces_after=after,
            parts=staged,
            schema=converter.schema,
        )

    night(N1, 1, 0, b'{"resourceType":"Patient","id":"a","x":1.10}')
    night(N2, 1, 0, b'{"resourceType":"Patient","id":"b","contact":[{"extension":[{"url":"u"}]}]}')
    night(N1, 2, 1, b'{"resourceType":"Patient","id":"a","x":1.10}')
    frame = pl.scan_delta(str(root)).sort("id").collect()
    assert frame["_unmapped"].to_list() == ['{"/x":1.10}', None]
    assert frame["contact"].to_list()[1][0]["extension"] == [{"url": "u"}]
    assert frame["_export_id"].to_list() == frame["export_id"].to_list() == [N1, N2]
    bare = duckdb.sql(
        f"select id, contact[1].extension from read_parquet('{root}/*/*.parquet', union_by_name=true)"
        f" where id = 'b'"
    )
    assert bare.fetchall() == [("b", [{"url": "u"}])]
    for part in live_parts(str(root), N1):
        names = duckdb.sql(f"describe select * from '{root}/{part.path}'").fetchall()
        assert "contact" in [name[0] for name in names]


def put_into(root: Path) -> Callable[[Path, str], None]:
    def put(local: Path, path: str) -> None:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(local.read_bytes())

    return put


def test_small_tables_go_the_same_way(tmp_path: Path) -> None:
    root, spool = tmp_path / "_lineage", tmp_path / "spool"
    spool.mkdir()

    def write(export_id: str, attempt: int, after: int, *files: str) -> Commit:
        table = pa.table({"file": pa.array(list(files), pa.string())})
        return write_small_partition(
            str(root),
            export_id=export_id,
            attempt=attempt,
            replaces_after=after,
            tables=[table],
            schema=table.schema,
            put=put_into(root),
            spool=spool,
        )

    assert write(N1, 1, 0, "f1", "f2").rows == 2
    assert write(N1, 1, 0, "f1", "f2").already
    assert len(list(root.glob("export_id=*/*.parquet"))) == 1
    assert write(N2, 1, 0).rows == 0
    assert write(N1, 2, 1, "f3").rows == 1
    assert list(spool.iterdir()) == []
    assert pl.scan_delta(str(root)).collect()["file"].to_list() == ["f3"]


def test_what_delta_rs_does_without_our_care(tmp_path: Path) -> None:
    """The trap itself, so that we learn when delta-rs changes: a narrower overwrite removes columns."""
    root = tmp_path / "t"
    write_deltalake(
        str(root), pa.table({"id": ["a"], "c": ["x"], "export_id": [N1]}), partition_by=["export_id"]
    )
    part = stage(root, N1, 1, rows_of(["a"]))
    action = json.dumps({"numRecords": 1})
    from deltalake.transaction import AddAction

    DeltaTable(str(root)).create_write_transaction(
        [AddAction(part.path, part.bytes, {"export_id": N1}, 0, True, action)],
        mode="overwrite",
        schema=pa.schema([("id", pa.string()), ("export_id", pa.string())]),
        partition_by=["export_id"],
        partition_filters=[("export_id", "=", N1)],
    )
    assert "c" not in pa.schema(DeltaTable(str(root)).schema().to_arrow()).names
