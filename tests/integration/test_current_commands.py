"""`current`, `rebuild` and `as-of` where there is nothing to do, or something stands in the way: in words."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from published_by_hand import BASE, HandMade

from pipeline import cli
from pipeline.errors import ConfigError
from pipeline.exports.current import write_as_of

ONE = "20260101T020000Z"


class Terminal:
    """Commands on a lake whose exports are published by hand."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self._capsys = folder, capsys
        self.made = HandMade(folder, flat=False)
        self.configure({})
        monkeypatch.setenv("EXPORTS_CONFIG", str(folder / "exports.yaml"))

    def configure(self, *changes: dict[str, Any]) -> None:
        """A source for each; the first is that of the lake."""
        entry = {"fhir_url": BASE, "auth": {"kind": "none"}, "export": {"level": "system"}, "flat": False}
        names = ("hosp", "other")
        sources = [{"name": name, **entry, **each} for name, each in zip(names, changes, strict=False)]
        whole = {"lake": str(self.folder / "lake"), "sources": sources}
        (self.folder / "exports.yaml").write_text(yaml.safe_dump(whole))

    def publish(self) -> None:
        patient = {"resourceType": "Patient", "id": "p1", "meta": {"versionId": "1"}}
        self.made.publish(ONE, patient, {"resourceType": "Observation", "id": "o1", "status": "final"})

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        code = cli._exit_code([str(each) for each in arguments])
        told = self._capsys.readouterr()
        assert "unexpected" not in told.err
        return code, told.out, told.err

    def as_of(self, out: Path, *more: str) -> tuple[int, str, str]:
        return self("as-of", f"hosp/{ONE}", "--out", out, *more)


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(tmp_path, monkeypatch, capsys)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def rows(folder: Path) -> int:
    return sum(pq.ParquetFile(part).metadata.num_rows for part in folder.glob("*.parquet"))


def test_as_of_needs_no_current_tables(terminal: Terminal, tmp_path: Path) -> None:
    terminal.publish()
    for number, current in enumerate((False, ["Observation"])):
        terminal.configure({"current": current})
        out = tmp_path / f"out{number}"
        assert terminal.as_of(out)[:2] == (0, "Observation\t1\nPatient\t1\n")
        assert [rows(out / name) for name in ("patient", "observation")] == [1, 1]
        one = tmp_path / f"one{number}"
        assert terminal.as_of(one, "--type", "Patient", "--type", "Patient")[:2] == (0, "Patient\t1\n")
        assert rows(one / "patient") == 1
    code, _, told = terminal.as_of(tmp_path / "x", "--type", "patient")
    assert code == 2
    assert "hosp has no table of patient" in told
    assert "Did you mean Patient?" in told


def test_current_tables_that_are_off_are_no_success(terminal: Terminal) -> None:
    terminal.publish()
    terminal.configure({"current": False})
    for command in (
        ["current"],
        ["current", "hosp"],
        ["current", "hosp", "--type", "Patient"],
        ["rebuild", "hosp", "all"],
    ):
        code, out, told = terminal(*command)
        assert (code, out) == (2, "")
        assert "current tables are off for hosp (`current: false`)" in told
    terminal.configure({"current": ["Observation"]})
    code, _, told = terminal("rebuild", "hosp", "Patient")
    assert code == 2
    assert "current tables of Patient are off for hosp" in told
    terminal.configure({}, {"current": False})
    code, out, told = terminal("current")
    assert code == 0
    assert "hosp.patient_current" in out
    assert "current tables are off for other" in told


def test_nothing_published_is_told(terminal: Terminal) -> None:
    for command in (["current"], ["current", "hosp", "--type", "Patient"], ["rebuild", "hosp", "all"]):
        code, out, told = terminal(*command)
        assert (code, out) == (0, "")
        assert "hosp: nothing is published yet" in told
    assert terminal("current", "hosp", "--type", "Patiant")[0] == 2
    terminal.publish()
    terminal.configure({"current": ["Encounter"]})
    code, out, told = terminal("current")
    assert (code, out) == (0, "")
    assert "nothing is published yet of what `current` names" in told


def test_as_of_looks_at_all_folders_before_it_writes(terminal: Terminal, tmp_path: Path) -> None:
    terminal.publish()
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("x")
    (full / "patient").mkdir(parents=True)
    (full / "patient" / "mine").write_text("x")
    flat = tmp_path / "flat"
    (flat / "patient_flat").mkdir(parents=True)
    (flat / "patient_flat" / "mine").write_text("x")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "patient").write_text("x")
    for out, options, cause in (
        (file, [], "file is a file"),
        (file / "below", [], "file is a file"),
        (taken, [], "taken/patient is a file"),
        (full, [], "full/patient is not empty"),
        (flat, ["--flat"], "flat/patient_flat is not empty"),
        (tmp_path / ("x" * 300), [], "cannot be written (File name too long)"),
    ):
        before = written(out) if os.path.isdir(out) else None  # noqa: PTH112 - no error for a long name
        code, printed, told = terminal.as_of(out, *options)
        assert (code, printed) == (2, "")
        assert cause in told
        assert "--out" in told
        assert before is None or written(out) == before
    with pytest.raises(ConfigError, match="is not empty"):
        write_as_of(terminal.made.session, ONE, ["Observation", "Patient"], full)
    assert written(full) == ["mine"]


def test_a_disk_that_takes_no_more_is_told(terminal: Terminal, tmp_path: Path) -> None:
    terminal.publish()
    (tmp_path / "out" / "patient").mkdir(parents=True)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        code, _, told = terminal.as_of(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2
    assert "cannot be written (File too large)" in told
    assert written(tmp_path / "out") == []


@pytest.mark.parametrize("column", ["id", "birthDate"])
def test_damaged_pages_are_told_with_the_part(terminal: Terminal, tmp_path: Path, column: str) -> None:
    """Those that decide, and those that are copied alone."""
    named = (
        {"resourceType": "Patient", "id": f"secret-{n}", "birthDate": f"19{n}-01-01"} for n in range(10, 99)
    )
    terminal.made.publish(ONE, *named)
    (part,) = (tmp_path / "lake" / "hosp" / "tables" / "patient").glob("export_id=*/*.parquet")
    group = pq.ParquetFile(part).metadata.row_group(0)
    numbers = range(group.num_columns)
    (chunk,) = [group.column(n) for n in numbers if group.column(n).path_in_schema == column]
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    damaged = bytearray(part.read_bytes())
    damaged[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    part.unlink()
    part.write_bytes(damaged)
    for command in (["current", "hosp"], ["as-of", f"hosp/{ONE}", "--out", tmp_path / "out"]):
        code, _, told = terminal(*command)
        assert code == 7
        assert f"A Parquet part cannot be read (OSError): export_id={ONE}/{part.name}" in told
        assert "Ingest that export again" in told
        assert "secret" not in told
    assert written(tmp_path / "out") == []
