"""In = out + quarantined, over generated resources (issue 3, point 5; facts/tables.md 2).

Every type has its turn in test_round_trip_complete; here Hypothesis looks for the smallest that goes wrong.
"""

from __future__ import annotations

from conversion import check, convert
from generated_resources import resource_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables import definitions


@settings(max_examples=25)
@given(data=st.data(), resource_type=st.sampled_from(definitions.resource_types()))
def test_generated_resources_arrive_whole(data: st.DataObject, resource_type: str) -> None:
    """Each equal by number lexeme, each row as the contract has it, derived columns too; none refused."""
    lines = data.draw(resource_lines(resource_type))
    source = b"\n".join(lines) + b"\n"
    found = convert(resource_type, {"0001.ndjson": [source]})
    check(resource_type, {"0001.ndjson": source}, found)
    assert (found.refused, len(found.back)) == ({}, len(lines))
