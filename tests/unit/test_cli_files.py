"""What the commands do with files, tables and the screen, without a process of their own."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.config import Config
from pipeline.errors import ConfigError, LakeError
from pipeline.terminal.ndjson_files import convert_files
from pipeline.terminal.screen import age, give_table, number
from pipeline.terminal.tables import find_table, new_file, resources


def exit_code(*arguments: str) -> int:
    return cli._exit_code(arguments)


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=59.9), "59 s"),
        (timedelta(minutes=12, seconds=5), "12 min"),
        (timedelta(hours=1), "1 h"),
        (timedelta(hours=25, minutes=59), "1 d 1 h"),
        (timedelta(hours=3, minutes=4), "3 h 4 min"),
        (timedelta(days=400), "400 d"),
    ],
)
def test_an_age_is_told_to_two_places(span: timedelta, words: str) -> None:
    assert age(span) == words


def test_numbers_are_readable_and_the_unknown_is_a_dash() -> None:
    assert (number(1234567), number(0), number(None)) == ("1,234,567", "0", "-")


def test_a_table_in_a_pipe_is_neither_cut_nor_coloured_nor_read_as_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = "[bold]" + "x" * 500
    give_table(("name", "rows"), [(long, "1"), ("b", "20")], ("rows",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [long, "1"]
    assert lines[2].split() == ["b", "20"]


def test_an_unexpected_error_is_one_line_without_its_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of a foreign error may hold content."""

    def broken(*_: object) -> None:
        raise ValueError("Wilhelmina")

    monkeypatch.setattr("pipeline.terminal.ndjson_files.convert_files", broken)
    assert exit_code("convert", __file__, "--out", "x") == 1
    said = capsys.readouterr().err
    assert "unexpected ValueError in cli.py" in said
    assert "Wilhelmina" not in said
    assert "Traceback" not in said
    assert exit_code("--debug", "convert", __file__, "--out", "x") == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.terminal.ndjson_files.convert_files", interrupted)
    assert exit_code("convert", __file__, "--out", "x") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


def test_every_error_of_the_pipeline_becomes_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise LakeError("the disk is full", "Make room")

    monkeypatch.setattr("pipeline.terminal.ndjson_files.convert_files", full)
    assert exit_code("convert", __file__, "--out", "x") == 7
    assert capsys.readouterr().err.splitlines()[-2:] == ["error: the disk is full", "  -> Make room"]


# --- convert -----------------------------------------------------------------------------------------


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


PATIENT = '{"resourceType":"Patient","id":"p1"}'
ORGANIZATION = '{"resourceType":"Organization","id":"o1"}'


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", PATIENT)
    (tmp_path / "link.ndjson").symlink_to(file)
    with pytest.raises(ConfigError, match="twice"):
        convert_files([file, tmp_path / "link.ndjson"], tmp_path / "out")


NO_RESOURCES = [
    '{"resourceType":"Pation","id":"1"}',
    '{"id":"1"}',
    "[]",
    '"text"',
    '{"resourceType":"Patient"} {}',
    '{"resourceType":null}',
]


@pytest.mark.parametrize("line", NO_RESOURCES)
@pytest.mark.parametrize(
    "others", [(), ('{"resourceType":"Group","id":"g"}',)], ids=["one type", "two types"]
)
def test_a_line_that_is_no_resource_costs_that_line_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, others: tuple[str, ...]
) -> None:
    file = write(tmp_path / "a.ndjson", PATIENT, "", line, *others)
    out = tmp_path / "out"
    assert exit_code("convert", str(file), "--out", str(out)) == 0
    assert "1 bad lines became no row" in capsys.readouterr().err
    (found,) = (out / "quarantine").rglob("*.ndjson")
    (record,) = map(json.loads, found.read_text().splitlines())
    assert (record["file"], record["line"]) == (str(file), 3)
    assert record["sha256"] == hashlib.sha256(line.encode()).hexdigest()
    assert len(list(out.glob("patient/*/*.parquet"))) == 1
    assert len(list(out.glob("group/*/*.parquet"))) == len(others)


@pytest.mark.parametrize("line", [*NO_RESOURCES, '{"resourceType":"Patient","id":7}'])
def test_a_file_without_a_good_line_is_refused_and_nothing_is_converted(tmp_path: Path, line: str) -> None:
    good = write(tmp_path / "a.ndjson", PATIENT)
    bad = write(tmp_path / "b.ndjson", line)
    assert exit_code("convert", str(good), str(bad), "--out", str(tmp_path / "out")) == 4
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_nothing_to_convert_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no resources"):
        convert_files([write(tmp_path / "a.ndjson", "", "  ")], tmp_path / "out")
    with pytest.raises(ConfigError, match="not a file"):
        convert_files([tmp_path / "nowhere.ndjson"], tmp_path / "out")


def test_converting_twice_in_a_second_makes_two_partitions(tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", PATIENT, ORGANIZATION)
    runs = [convert_files([file], tmp_path / "out") for _ in range(2)]
    assert runs[0].export_id < runs[1].export_id
    assert runs[0].tables == runs[1].tables == {"organization": 1, "patient": 1}
    assert sorted(path.name for path in (tmp_path / "out").glob("[!_]*")) == ["organization", "patient"]


def test_the_progress_adds_up_to_what_was_announced(tmp_path: Path) -> None:
    from pipeline.terminal.ndjson_files import bytes_to_read

    files = [write(tmp_path / f"{n}.ndjson", *[PATIENT] * 50_000) for n in range(2)]
    done: list[int] = []
    convert_files(files, tmp_path / "out", done.append)
    assert sum(done) == bytes_to_read(files)
    assert len(done) > 4


# --- to-ndjson ---------------------------------------------------------------------------------------


def no_config() -> Config:
    raise AssertionError("a folder needs no configuration")


def test_a_folder_needs_no_configuration(tmp_path: Path) -> None:
    convert_files([write(tmp_path / "a.ndjson", PATIENT)], tmp_path / "out")
    table = find_table(str(tmp_path / "out" / "patient"), no_config)
    assert [json.loads(line) for line in resources(table)] == [json.loads(PATIENT)]
    with pytest.raises(ConfigError, match="has no export") as refused:
        list(resources(table, "20200101T000000Z"))
    assert "It has: 20" in refused.value.advice
    with pytest.raises(ConfigError, match="not the id"):
        list(resources(table, "latest"))


def test_source_and_type_are_looked_up_in_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_files([write(tmp_path / "a.ndjson", PATIENT)], tmp_path / "lake" / "hosp_a" / "tables")
    config = tmp_path / "exports.yaml"
    config.write_text(
        "lake: lake\nsources:\n  - name: hosp_a\n    fhir_url: https://fhir.example.org\n"
        "    auth: {kind: none}\n    export: {level: system}\n"
    )
    for table in ("hosp_a/patient", "hosp_a/Patient"):
        out = tmp_path / table.replace("/", "-")
        assert exit_code("--config", str(config), "to-ndjson", table, "--out", str(out)) == 0
        assert json.loads(out.read_text()) == json.loads(PATIENT)
    capsys.readouterr()
    for table, words in (
        ("hosp_a/observation", "has no table observation"),
        ("hosp_a/patients", "not a resource type"),
        ("hosp_b/patient", "no source 'hosp_b'"),
        ("hosp_a/_members", "_members holds no resources"),
        ("nowhere", "no Delta table"),
        (str(tmp_path), "no Delta table"),
    ):
        assert exit_code("--config", str(config), "to-ndjson", table) == 2
        assert words in capsys.readouterr().err


def test_a_new_file_appears_whole_or_not_at_all_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.ndjson"
    with pytest.raises(ValueError, match="stop"), new_file(path) as file:
        file.write(b"half")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
    with new_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    with pytest.raises(ConfigError, match="exists"), new_file(path):
        pass
    path.unlink()
    with pytest.raises(ConfigError, match="exists"), new_file(path) as file:
        path.write_bytes(b"somebody else's")
    assert path.read_bytes() == b"somebody else's"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="cannot be written"), new_file(tmp_path / "no" / "x"):
        pass


def test_a_bad_line_of_another_type_does_not_cost_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", PATIENT, '{"resourceType":"Observation","status":5}')
    converted = convert_files([file], tmp_path / "out")
    assert converted.tables == {"observation": 0, "patient": 1}
    assert converted.quarantined == 1


def test_a_folder_is_taken_by_its_name_and_not_as_a_url(tmp_path: Path) -> None:
    file = write(tmp_path / "a.ndjson", PATIENT)
    convert_files([file], tmp_path / "h#x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ndjson", "h#x"]
    table = find_table(str(tmp_path / "h#x" / "patient"), pytest.fail)
    assert len(list(resources(table, None))) == 1
    with pytest.raises(ConfigError, match="is a file"):
        convert_files([file], file)


def test_conversions_at_the_same_time_take_partitions_of_their_own(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{number}.ndjson", PATIENT) for number in range(6)]
    with ThreadPoolExecutor(len(files)) as pool:
        done = list(pool.map(lambda file: convert_files([file], tmp_path / "out"), files))
    assert len({each.export_id for each in done}) == len(files)
    table = find_table(str(tmp_path / "out" / "patient"), pytest.fail)
    assert len(list(resources(table, None))) == len(files)
