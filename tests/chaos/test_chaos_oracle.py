"""A harness that cannot fail is a defect: each kind of damage to a good lake must be found, by its name."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from chaos import command_line
from chaos.command_line import listed
from chaos.oracle import Oracle, Verdict
from chaos.plan import Life, Night, Plan
from chaos.reader import Sightings
from chaos.secrets_search import Needles, everything, needles_of, phi_of, search
from chaos.server_truth import ServerTruth
from chaos.site import open_site

PLAN = Plan(
    seed=-1,
    driver="command line",
    types=("Patient", "Encounter"),
    sandbox={
        "patients": 8,
        "seed": 5,
        "export_seconds": 0.2,
        "poll_seconds": 0,
        "file_lines": 10,
        "gzip": "never",
    },
    source={},
    executor="in_process",
    nights=(Night((), (Life(),)),),
)


@dataclass
class Good:
    """What a plain night has left."""

    folder: Path
    truth: ServerTruth
    listed: list[dict[str, Any]]
    log: list[dict[str, Any]]
    sightings: dict[str, Any]
    keys: Path

    @property
    def source(self) -> Path:
        return self.folder / "lake" / "hosp"

    @property
    def export(self) -> str:
        return next((self.source / "exports").iterdir()).name

    def part(self, table: str) -> Path:
        return sorted((self.source / "tables" / table).glob("export_id=*/*.parquet"))[0]

    def judge(self, *, data_may_end: bool = False) -> Verdict:
        oracle = Oracle(self.source, self.truth, self.log)
        return oracle.judge(self.listed, self.sightings, data_may_end=data_may_end)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Good]:
    with open_site(tmp_path_factory.mktemp("good") / "site", PLAN) as site:
        course = command_line.Course()
        command_line.drive(site, course)
        assert course.problems == []
        sightings = Sightings()
        sightings.scan(site.source_folder / "tables")
        truth = ServerTruth(site.sandbox.base_url, site.keys / "oracle.pem")
        seen = json.loads(json.dumps(sightings.as_json()))
        yield Good(site.folder, truth, listed(site), site.log(), seen, site.keys)
        truth.close()


@pytest.fixture
def good(night: Good, tmp_path: Path) -> Good:
    """A copy to damage. The Delta logs name their files by relative paths."""
    shutil.copytree(night.folder, tmp_path / "site", symlinks=True)
    copied = copy.copy(night)
    copied.folder = tmp_path / "site"
    copied.listed, copied.log = copy.deepcopy(night.listed), copy.deepcopy(night.log)
    copied.sightings = copy.deepcopy(night.sightings)
    return copied


def test_a_good_lake_has_no_problem(good: Good) -> None:
    verdict = good.judge()
    assert verdict.problems == {}
    assert verdict.published == 1
    assert verdict.ended == {"published": 1}
    assert verdict.resources > 20


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_a_row_less_is_lost(good: Good) -> None:
    rewrite(good.part("patient"), lambda table: table.slice(1))
    assert len(good.judge().problems["lost"]) == 1


def test_a_value_that_differs_is_altered(good: Good) -> None:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index("gender")
        return table.set_column(at, table.field(at), pc.replace_substring(table["gender"], "male", "mail"))

    rewrite(good.part("patient"), change)
    problems = good.judge().problems
    assert problems.keys() == {"altered"}
    assert "gender" in problems["altered"][0]


def test_a_part_twice_is_duplicated(good: Good) -> None:
    rewrite(good.part("encounter"), lambda table: pa.concat_tables([table, table]))
    problems = good.judge().problems
    assert problems["duplicated"]
    assert "lost" not in problems


def test_a_file_less_is_lost(good: Good) -> None:
    good.part("patient").unlink()
    assert any("is not there" in text for text in good.judge().problems["lost"])


def test_a_receipt_without_its_line_in_exports_is_partial(good: Good) -> None:
    shutil.rmtree(good.source / "tables" / "_exports")
    assert good.judge().problems["partial"]


def test_an_export_that_nobody_knows_in_exports_is_partial(good: Good) -> None:
    shutil.rmtree(good.source / "exports" / good.export)
    assert good.judge().problems["partial"]


def test_a_raw_byte_that_differs_is_lost(good: Good) -> None:
    raw = next(path for path in sorted((good.source / "raw").rglob("*")) if path.is_file())
    data = bytearray(raw.read_bytes())
    data[100] ^= 1
    raw.write_bytes(data)
    assert good.judge().problems["lost"]


@pytest.mark.parametrize("which", ["seen", "whole"])
def test_a_part_of_an_export_that_a_reader_saw_is_partial(good: Good, which: str) -> None:
    good.sightings[which].append([good.export, "patient", 1])
    assert good.judge().problems.keys() == {"partial"}


def test_an_export_that_is_left_open_or_without_a_reason_is_stuck(good: Good) -> None:
    good.listed[0]["state"] = "running"
    assert good.judge().problems["stuck"]
    good.listed[0] |= {"state": "published", "reason": ""}
    assert good.judge().problems["stuck"]


def test_an_export_that_is_given_up_without_a_cause_is_stuck(good: Good) -> None:
    shutil.rmtree(good.source / "exports" / good.export / "receipts")
    shutil.rmtree(good.source / "tables")
    (good.source / "exports" / good.export / "held.json").write_text('{"at": "2020-01-01T00:00:00Z"}')
    good.listed[0] |= {"state": "held", "reason": "because"}
    assert good.judge().problems["stuck"]
    assert "stuck" not in good.judge(data_may_end=True).problems


def test_a_job_that_no_export_knows_is_told(good: Good) -> None:
    (good.source / "exports" / good.export / "request.json").unlink()
    intent = good.source / "exports" / good.export / "intent-0001.error.json"
    intent.write_text('{"certain": true}')
    assert any("no export knows" in text for text in good.judge().problems["server"])


def test_a_delete_before_the_receipt_is_told(good: Good) -> None:
    (deleted,) = [entry for entry in good.log if entry["method"] == "DELETE"]
    deleted["time"] = good.log[0]["time"]
    assert any("before its receipt" in text for text in good.judge().problems["server"])


def test_each_secret_is_found_in_a_log_and_in_a_database(good: Good) -> None:
    patients = list(good.truth.of_job(good.truth.control()["jobs"][0])["Patient"])
    needles = needles_of(good.log, good.keys, patients)
    assert len(needles) > 20
    assert search(everything(good.folder), needles) == []
    token = "A" * 20 + "b-_" + "9" * 20
    made = Needles({hashlib.sha256(token.encode()).hexdigest()[:16]}, set(), [], set())
    signature = next(entry["query"].partition("sig=")[2] for entry in good.log if "sig=" in entry["query"])
    key = (good.keys / "hosp.pem").read_text().split("\n")[1]
    name = sorted(phi_of(patients))[0]
    log = good.folder / "logs" / "life-01.log"
    for text, found in {
        f"x{token}y": "a token",
        signature: "a file's signature",
        key: "key material",
        name: "a patient's data",
        "eyJhbGciOiJFUzM4NCJ9.eyJ": "an assertion",
        "?r=1&sig=00": "a signature",
        "Bearer 0123456789abcdef": "a bearer",
    }.items():
        log.write_text(f"before {text} after")
        these = made if found == "a token" else needles
        assert search(everything(good.folder), these) == [f"{found} in logs/life-01.log"]


def test_the_reader_tells_what_it_cannot_read(good: Good) -> None:
    good.part("patient").unlink()
    sightings = Sightings()
    sightings.scan(good.source / "tables")
    assert any(text.startswith("patient: ") for text in sightings.as_json()["broken"])
