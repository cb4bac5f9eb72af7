"""Good and bad lines in any order, cut anywhere, in any number of lanes and parts: the result is the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from conversion import BOM, Conversion, check, convert
from exact_json import parse
from generated_resources import Tape
from hostile_lines import BAD_JSON, DUPLICATES, GOOD, MISFITS
from hypothesis import given, settings
from hypothesis import strategies as st

LINES = [
    *BAD_JSON.values(),
    *DUPLICATES.values(),
    *(line for line, _ in MISFITS.values()),
    *(line for line in GOOD.values() for _ in range(15)),
]
ENDS = (b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b" \t\n", b"\n \r\n")


def file_of(tape: Tape) -> bytes:
    found = [BOM] if tape.chance(30) else []
    for _ in range(tape.below(30)):
        found += [tape.pick(LINES), tape.pick(ENDS)]
    data = b"".join(found)
    return data.rstrip(b"\r\n\t ") if tape.chance(50) else data


def cut(data: bytes, tape: Tape) -> Iterator[bytes]:
    """The same bytes in blocks: empty ones, single bytes, parts of lines, many lines."""
    at = 0
    while at < len(data):
        size = tape.pick((len(data), 0, 1, 2, 3, 10, 100, 1000, 4096)) if not tape.over else len(data)
        yield data[at : at + size]
        at += size


def columns(fields: Iterable[pa.Field], above: str = "") -> Iterator[str]:
    for field in fields:
        yield f"{above}{field.name}"
        kind = field.type
        while pa.types.is_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            yield from columns(kind.fields, f"{above}{field.name}.")


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def same(a: Conversion, b: Conversion) -> None:
    """Nothing of this may depend on cuts, lanes and parts; a column that nothing was seen in may be missing.

    A structure that is empty throughout a block needs some column: its first one, `id`, stands in.
    """
    assert a.refused == b.refused
    assert a.counts == b.counts
    assert a.rows.keys() == b.rows.keys()
    only_one = set(columns(a.schema)) ^ set(columns(b.schema))
    assert {name.rpartition(".")[2] for name in only_one} <= {"id"}
    for origin, row in a.rows.items():
        assert without_nulls(row) == without_nulls(b.rows[origin]), origin
        assert parse(a.back[origin]) == parse(b.back[origin]), origin


@settings(max_examples=8)
@given(
    contents=st.binary(min_size=200, max_size=200),
    cuts=st.binary(min_size=60, max_size=60),
    part_rows=st.sampled_from([1_000_000, 1, 3, 20]),
    lanes=st.sampled_from([1, 2]),
)
def test_bad_lines_cost_only_themselves_in_any_order_and_any_cut(
    contents: bytes, cuts: bytes, part_rows: int, lanes: int
) -> None:
    tape = Tape(contents)
    sources = {"b.ndjson": file_of(tape), "a.ndjson": file_of(tape)}
    whole = convert("Patient", {name: [data] for name, data in sources.items()})
    check("Patient", sources, whole)
    knife = Tape(cuts)
    again = convert(
        "Patient",
        {name: cut(data, knife) for name, data in sources.items()},
        lanes=lanes,
        max_part_rows=part_rows,
        max_part_bytes=256 << 20 if knife.chance(50) else 2000,
    )
    same(again, whole)
    assert sum(again.part_rows) == len(whole.rows)
    assert all(rows <= part_rows for rows in again.part_rows)


def test_a_table_that_knows_more_columns_gives_the_same_resources() -> None:
    """tables.md 1.2 and 1.3: the second night knows what the first brought."""
    good = b"\n".join(GOOD.values())
    first = convert("Patient", {"1.ndjson": [good]})
    plain = b'{"resourceType":"Patient","id":"a","extension":[{"url":"b"}]}'
    second = convert("Patient", {"2.ndjson": [plain]}, known=first.schema)
    check("Patient", {"2.ndjson": plain}, second)
    assert second.schema == first.schema
    assert convert("Patient", {"1.ndjson": [good]}, known=first.schema).schema == first.schema
