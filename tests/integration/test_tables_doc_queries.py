"""docs/tables.md: every block runs as it stands on the lake of a real run, and what it says is so.

Only the path of the lake is put in. Expected values come from the sandbox's NDJSON or from the raw files,
read without any code of the pipeline. Spark blocks are not run here: that needs a Java machine.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from math import isnan
from pathlib import Path
from statistics import fmean, median
from typing import Any

import duckdb
import pytest
from ingest_by_hand import ingest, session_of
from nightly_site import Site, open_site

from pipeline.bulkdata.answers import Complete
from pipeline.exports.flattening import flat_names, make_flat
from pipeline.exports.request import request_export
from pipeline.sandbox import truth
from pipeline.tables.convert import Converter
from pipeline.tables.flat import flat_tables

DOC = Path(__file__).parents[2] / "docs" / "tables.md"
NIGHTS = ("20260101T020000Z", "20260102T020000Z", "20260103T020000Z")
FULL = NIGHTS[1]
"""The newest full export: the first has bad lines, so its watermark stays and the second is full again."""
FLAT_TYPES = ("Patient", "Observation", "MedicationRequest", "Claim", "ExplanationOfBenefit")
US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-"

INSERTED = (
    b'{"resourceType":"Patient","id":"odd","gender":null,"nickname":"Bee","contact":[{"vip":true}]}',
    b'{"resourceType":"Patient","id":"bad","active":"yes"}',
    b"null",
)
"""Put into the first file of the first night: a good line with unknown members, and two bad ones."""

# --- the document --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    heading: str
    kind: str
    text: str


def blocks() -> list[Block]:
    """The fenced blocks, with the heading that they stand below."""
    found, heading, kind = [], "", None
    lines: list[str] = []
    for line in DOC.read_text().splitlines():
        if kind is None and line.startswith("#"):
            heading = line.lstrip("# ")
        elif kind is None and line.startswith("```"):
            kind, lines = line[3:].strip(), []
        elif kind is not None and line == "```":
            found.append(Block(heading, kind, "\n".join(lines)))
            kind = None
        elif kind is not None:
            lines.append(line)
    assert kind is None
    return found


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = Counter(block.kind for block in blocks())
    tested = {"python", "python duckdb", "sql duckdb", "python polars", "python pandas"}
    lists = {"text patient_flat", "text observation_flat"}
    assert set(kinds) - {"", "python spark", "sql spark"} == tested | lists
    assert kinds["sql duckdb"] >= 15 and kinds["python polars"] >= 8 and kinds["python pandas"] >= 8


# --- the lake ------------------------------------------------------------------------------------------


@dataclass
class Run:
    """All blocks run once: SQL results by heading, and the variables that each language ends with."""

    sql: dict[str, list[list[tuple[Any, ...]]]] = field(default_factory=lambda: defaultdict(list))
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)
    full: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    """The resources of the newest full export by type: what the server says that it has."""


def export(site: Site, export_id: str) -> None:
    session = session_of(site, f"run of {export_id}")
    facts = request_export(session, export_id)
    assert facts.request is not None
    for _ in range(100):
        if isinstance(session.client.status(facts.request.status_url), Complete):
            break
        time.sleep(0.1)
    ingest(session, export_id)


def make_all_flat(site: Site, export_id: str) -> None:
    """The flat tables of an export, as the step behind the publish makes them; of the others just enough
    to tell one export from the next."""
    session = session_of(site, f"flat run of {export_id}")
    wanted = {FULL: FLAT_TYPES, NIGHTS[0]: ("Patient", "Observation")}
    for resource_type in wanted.get(export_id, ()):
        make_flat(session, export_id, resource_type, flat_names(resource_type))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three nights of a system export: full with bad lines, full, and changes only."""
    quick: dict[str, Any] = {"export_seconds": 0.1, "poll_seconds": 0.0, "patients": 12}
    everything = {"level": "system", "group": None, "types": list(FLAT_TYPES)}
    with open_site(tmp_path_factory.mktemp("site"), export=everything, **quick) as site:
        lines = base64.b64encode(b"\n".join(INSERTED) + b"\n").decode()
        site.sandbox.control(
            faults=[
                {"path": r"/0\.ndjson", "times": None, "insert": [{"base64": lines, "after": 0}]},
                {"path": "^/bulk/status/", "method": "GET", "times": None, "wrong_count": len(INSERTED)},
            ]
        )
        for night, export_id in enumerate(NIGHTS, start=1):
            if night > 1:
                site.sandbox.control(night=night, faults=[])
            export(site, export_id)
            make_all_flat(site, export_id)
        yield site


@pytest.fixture(scope="module")
def run(site: Site) -> Run:
    found = Run()
    for resource_type, line in truth(site.seed, site.patients, 2, None, level="system"):
        found.full[resource_type].append(json.loads(line))
    for block in blocks():
        language, _, engine = block.kind.partition(" ")
        if engine == "spark" or language not in ("python", "sql"):
            continue
        text = block.text.replace("lake/sandbox", str(site.lake / "hosp"))
        text = text.replace('lake = "lake"', f'lake = "{site.lake}"')
        names = found.variables.setdefault(engine, {})
        where = f"docs/tables.md, {block.heading}"
        if language == "python":
            exec(compile(text, where, "exec"), names)
        else:
            found.sql[block.heading].append(names["db"].execute(text).fetchall())
    return found


# --- an independent reading of the NDJSON --------------------------------------------------------------


def us_core(patient: dict[str, Any], name: str) -> dict[str, Any]:
    return next((each for each in patient.get("extension", []) if each["url"] == US_CORE + name), {})


def omb(patient: dict[str, Any], name: str) -> list[str]:
    inner = us_core(patient, name).get("extension", [])
    return [each["valueCoding"]["display"] for each in inner if each["url"] == "ombCategory"]


def first(values: list[str]) -> str | None:
    return values[0] if values else None


def measured(resources: list[dict[str, Any]], code: str) -> list[tuple[str, str, float]]:
    """(Observation, patient, value) of each Observation or component with a LOINC code."""
    found = []
    for each in resources:
        for place in (each, *each.get("component", [])):
            codes = {c.get("code") for c in place["code"]["coding"] if c.get("system") == "http://loinc.org"}
            value = place.get("valueQuantity", {}).get("value")
            if code in codes and value is not None:
                found.append((each["id"], bare(each["subject"]["reference"]), value))
    return found


def bare(reference: str) -> str:
    return re.sub(r"/_history/.*$", "", reference).rsplit("/", 1)[-1].removeprefix("urn:uuid:")


def exact_sum(values: list[str]) -> Decimal:
    return sum((Decimal(value) for value in values), Decimal(0))


# --- what the queries say ------------------------------------------------------------------------------


def test_rows_are_counted_by_export(run: Run, site: Site) -> None:
    of_night = {}
    for night, export_id in enumerate(NIGHTS[:2], start=1):
        of_night[export_id] = sum(
            kind == "Patient" for kind, _ in truth(site.seed, site.patients, night, None, level="system")
        )
    of_night[NIGHTS[0]] += 1
    counts, exports, *_ = run.sql["Which rows"]
    assert dict(counts[:2]) == of_night and counts[2][0] == NIGHTS[2] and 0 < counts[2][1] < of_night[FULL]
    full = dict(zip(NIGHTS, (True, True, False), strict=True))
    assert {row[0]: row[3] is None for row in exports} == full
    assert [row[5] for row in exports] == [2, 0, 0]
    assert dict(run.variables["polars"]["patients"].iter_rows()) == dict(counts)
    assert run.variables["pandas"]["patients"].to_dict() == dict(counts)
    assert {run.variables[engine]["newest"] for engine in ("duckdb", "polars", "pandas")} == {FULL}


def test_the_newest_row_of_each_resource_is_taken_and_deletes_are_only_listed(run: Run, site: Site) -> None:
    _, _, newest, deleted = run.sql["Which rows"]
    full = {each["id"] for each in run.full["Patient"]}
    later = {
        json.loads(line)["id"]
        for kind, line in truth(site.seed, site.patients, 3, None, level="system")
        if kind == "Patient"
    }
    ids = [row[0] for row in newest]
    assert len(ids) == len(set(ids)) and set(ids) == full | later
    assert {row[3] for row in newest} == {FULL, NIGHTS[2]}
    assert [row[:2] for row in deleted] == [(NIGHTS[2], "deleted-000000")]
    assert (site.lake / deleted[0][3]).exists()


def test_us_core_of_the_flat_and_of_the_deep_table(run: Run) -> None:
    flat, deep = run.sql["Race, ethnicity and birth sex"]
    by_hand = {
        each["id"]: (
            omb(each, "race"),
            first(omb(each, "ethnicity")),
            us_core(each, "birthsex").get("valueCode"),
        )
        for each in run.full["Patient"]
    }
    assert {row[0]: (row[1] or [], row[2], row[3]) for row in deep} == by_hand
    counted = Counter((first(race), ethnicity, sex) for race, ethnicity, sex in by_hand.values())
    assert {tuple(row[:3]): row[3] for row in flat} == counted
    assert {tuple(row[:3]): row[3] for row in run.variables["polars"]["race"].iter_rows()} == counted
    frame = run.variables["pandas"]["race"].reset_index()
    assert {tuple(_plain(each) for each in row[:3]): row[3] for row in frame.to_numpy().tolist()} == counted
    expected = {key: (first(race), ethnicity, sex) for key, (race, ethnicity, sex) in by_hand.items()}
    assert {row[0]: row[1:] for row in run.variables["polars"]["us_core"].iter_rows()} == expected
    table = run.variables["pandas"]["us_core"][["id", "race", "ethnicity", "birth_sex"]]
    assert {row[0]: tuple(map(_plain, row[1:])) for row in table.to_numpy().tolist()} == expected


def _plain(value: Any) -> Any:
    """pandas has NaN where others have None."""
    return None if isinstance(value, float) and isnan(value) else value


def test_blood_pressure(run: Run) -> None:
    (rows,) = run.sql["Blood pressure"]
    systolic = {key: (who, value) for key, who, value in measured(run.full["Observation"], "8480-6")}
    diastolic = {key: value for key, _, value in measured(run.full["Observation"], "8462-4")}
    expected = {key: (who, value, diastolic[key]) for key, (who, value) in systolic.items()}
    assert len(expected) > 20
    assert {row[0]: (row[1], row[3], row[4]) for row in rows} == expected
    polars = run.variables["polars"]["pressure"].drop("measured")
    assert {row[0]: row[1:] for row in polars.iter_rows()} == expected
    pandas = run.variables["pandas"]["pressure"].reset_index()
    found = pandas[["id", "patient_id", "systolic", "diastolic"]].to_numpy().tolist()
    assert {row[0]: tuple(row[1:]) for row in found} == expected


def test_the_median_of_a_laboratory_value(run: Run) -> None:
    values = [value for _, _, value in measured(run.full["Observation"], "4548-4")]
    assert len(values) > 5
    expected = (len(values), pytest.approx(median(values)))
    (rows,) = run.sql["A laboratory value"]
    assert rows == [("%", *expected)]
    assert run.variables["polars"]["a1c"].rows() == rows
    assert [*run.variables["pandas"]["a1c"].itertuples(name=None)] == [("%", *expected)]


def test_observations_join_patients_by_bare_id(run: Run) -> None:
    gender = {each["id"]: each.get("gender") for each in run.full["Patient"]}
    by_gender = defaultdict(list)
    for _, who, value in measured(run.full["Observation"], "39156-5"):
        by_gender[gender[who]].append(value)
    expected = {key: (len(values), pytest.approx(fmean(values))) for key, values in by_gender.items()}
    assert len(expected) >= 2
    (rows,) = run.sql["Observations by patient"]
    assert {row[0]: row[1:] for row in rows} == expected
    assert {row[0]: row[1:] for row in run.variables["polars"]["bmi"].iter_rows()} == expected
    pandas = run.variables["pandas"]["bmi"]
    assert {row[0]: row[1:] for row in pandas.itertuples(name=None)} == expected


def test_medications(run: Run) -> None:
    (rows,) = run.sql["Medications"]
    assert sum(row[2] for row in rows) == len(run.full["MedicationRequest"])
    texts = Counter(
        each["medicationReference"]["reference"]
        for each in run.full["MedicationRequest"]
        if "medicationReference" in each
    )
    assert texts and {row[0]: row[2] for row in rows if row[0] in texts} == texts


def test_ages(run: Run) -> None:
    day = date(2026, 7, 1)

    def years(born: str) -> int:
        year, month, dom = map(int, born.split("-"))
        return day.year - year - ((month, dom) > (day.month, day.day))

    whole = {
        each["id"]: years(each["birthDate"])
        for each in run.full["Patient"]
        if len(each.get("birthDate", "")) == 10
    }
    assert len(whole) > 5
    (rows,) = run.sql["Age"]
    oldest = {row[0]: row[3] for row in rows}
    assert len(oldest) == len(run.full["Patient"])
    assert {key: oldest[key] for key in whole} == whole
    assert all(row[2] in (row[3], row[3] - 1) for row in rows if row[0] in whole)
    polars = {row[0]: row[2] for row in run.variables["polars"]["ages"].iter_rows()}
    assert {key: polars[key] for key in whole} == whole
    pandas = run.variables["pandas"]["ages"].set_index("id")["age"].to_dict()
    assert {key: pandas[key] for key in whole} == whole


def test_claims(run: Run, site: Site) -> None:
    lines = exact(site, "ExplanationOfBenefit")
    paid: dict[str, list[str]] = defaultdict(list)
    submitted: dict[str, list[str]] = defaultdict(list)
    for each in lines:
        code = each["type"]["coding"][0]["code"]
        paid[code].append(each["payment"]["amount"]["value"])
        submitted[code] += [
            total["amount"]["value"]
            for total in each.get("total", [])
            if total["category"]["coding"][0]["code"] == "submitted"
        ]
    by_type, by_claim = run.sql["Claims"]
    assert {row[0]: row[1] for row in by_type} == {code: len(values) for code, values in paid.items()}
    assert {row[0]: row[4] for row in by_type} == {code: exact_sum(values) for code, values in paid.items()}
    doubles = {code: pytest.approx(float(exact_sum(values))) for code, values in paid.items()}
    assert {row[0]: row[3] for row in by_type} == doubles
    assert {row[0]: row[2] for row in by_type} == {
        code: pytest.approx(float(exact_sum(submitted[code]))) for code in paid
    }
    assert {row[0]: row[3] for row in run.variables["polars"]["paid"].iter_rows()} == doubles
    assert run.variables["pandas"]["paid"]["payment_amount_numeric"].to_dict() == doubles
    assert {row[0]: row[1:] for row in by_claim} == {
        each["id"]: (
            each["total"]["value"],
            len(each["item"]),
            pytest.approx(sum(item["net"]["value"] for item in each["item"])),
        )
        for each in run.full["Claim"]
    }


def exact(site: Site, resource_type: str) -> list[dict[str, Any]]:
    """The same resources with numbers as their digits."""
    return [
        json.loads(line, parse_float=str, parse_int=str)
        for kind, line in truth(site.seed, site.patients, 2, None, level="system")
        if kind == resource_type
    ]


def test_unknown_members_are_found(run: Run) -> None:
    found = run.variables["duckdb"]["unmapped"]
    assert found == {"patient": [("/contact/*/vip", 1), ("/gender", 1), ("/nickname", 1)]}


def test_a_row_is_traced_to_its_line(run: Run) -> None:
    patient = min(run.full["Patient"], key=lambda each: str(each["id"]))
    (rows, *_) = run.sql["Where a row came from"]
    assert rows[0][0] == patient["id"]
    assert json.loads(run.variables["pandas"]["source_line"]) == patient


def test_bad_lines_are_named_by_file_and_line(run: Run) -> None:
    lines, counts = run.sql["Bad lines"]
    assert [row[:3] for row in lines] == [("output-000000", 2, "active"), ("output-000000", 3, "")]
    assert counts == [(NIGHTS[0], "patient", counts[0][2], 2)]


# --- what the tables of the document say ---------------------------------------------------------------


def rows_of(header: str) -> list[list[str]]:
    """The cells of the table with that header line."""
    lines = DOC.read_text().splitlines()
    start = lines.index(header) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line[1:-1].split("|")])
    return found


def forms() -> list[tuple[str, str, str]]:
    """(line of NDJSON, expression, what it holds) of each row of the table of forms."""
    found, line = [], ""
    for _, source, expression, value in rows_of("| FHIR | in the NDJSON | column | holds |"):
        if source:
            resource_type, _, members = source.partition(" ")
            line = f'{{"resourceType":"{resource_type}",{members.strip("`")}}}'
        found.append((line, expression.strip("`"), value.strip("`")))
    return found


@pytest.mark.parametrize(("line", "expression", "value"), forms(), ids=[each[1] for each in forms()])
def test_each_form_is_as_the_document_says(tmp_path: Path, line: str, expression: str, value: str) -> None:
    with Converter(json.loads(line)["resourceType"], None, FULL, tmp_path) as converter:
        converter.add([line.encode() + b"\n"], "output-000000")
        (part,) = converter.finish()
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    expression = expression if "." in expression or "[" in expression else f'"{expression}"'
    (found,) = connection.execute(f"SELECT CAST({expression} AS VARCHAR) FROM '{part.path}'").fetchall()
    assert found[0] == (None if value == "NULL" else value)


SHORTHANDS = {
    "(concept)": "_code _system _display _text _codings",
    "(reference)": "_reference _type _id _display _identifier_system _identifier_value",
    "(references)": "_reference _type _id _display _identifier_system _identifier_value _ids _types",
    "(date)": " _start _end",
}


@pytest.mark.parametrize("resource_type", ["Patient", "Observation"])
def test_the_list_of_columns_is_complete(resource_type: str) -> None:
    (flat,) = flat_tables(resource_type)
    (block,) = [each for each in blocks() if each.kind == f"text {flat.name}"]
    listed: list[str] = []
    for line in block.text.splitlines():
        names = re.split(r" {3,}", line)[0].split("  ")
        base = names[0]
        for name in names:
            plain, bracket, shorthand = name.partition("(")
            if name.startswith("_") and name not in flat.column_descriptions:
                listed.append(base + name)
            elif bracket:
                listed += [plain + ending for ending in SHORTHANDS[bracket + shorthand].split(" ")]
            else:
                listed.append(name)
    assert sorted(listed) == sorted(flat.column_descriptions)


def test_the_tables_of_lineage_and_exports_name_every_column(site: Site) -> None:
    for name in ("_exports", "_lineage"):
        cells = [row[0] for row in rows_of(f"| column of `{name}` | holds |")]
        listed = [each for cell in cells for each in re.findall(r"`([^`]+)`", cell)]
        if name == "_exports":
            listed += ["since_reason"]
        (file, *_) = site.files_of(name, FULL)
        found = duckdb.execute(f"DESCRIBE SELECT * FROM read_parquet('{file}')").fetchall()
        assert sorted(listed) == sorted(row[0] for row in found)
