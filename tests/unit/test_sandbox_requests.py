from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sandbox.exporting import chunks, part, plan
from pipeline.sandbox.generator.records import find, resources
from pipeline.sandbox.generator.world import World, night_instant
from pipeline.sandbox.kickoff import ExportRequest, parse_request
from pipeline.sandbox.options import Options, parse
from pipeline.sandbox.outcomes import Refusal
from pipeline.sandbox.scopes import grant, parse_scopes
from pipeline.sandbox.subset import subset_of
from pipeline.sandbox.typefilter import accept_query, parse_type_filters

WORLD = World(1, 20, 1)


def ask(*pairs: tuple[str, str], level: str = "group", lenient: bool = False) -> ExportRequest:
    group = "demo" if level == "group" else None
    return parse_request(WORLD, level, group, "http://x/", pairs, lenient=lenient)


@pytest.mark.parametrize(
    "pair",
    [
        ("_since", "2026-01-01"),
        ("_since", "2026-01-01T00:00:00"),
        ("_since", "2026-13-01T00:00:00Z"),
        ("_since", "2026-02-30T00:00:00Z"),
        ("_since", "2026-01-01T00:00:00 01:00"),
        ("_since", ""),
        ("_type", "Patients"),
        ("_type", "Device"),
        ("_type", "Patient,"),
        ("_type", "Group"),
        ("_type", "Practitioner"),
        ("_outputFormat", "csv"),
        ("_elements", "Patient.name.family"),
        ("_elements", "name,,id"),
        ("_typeFilter", "Patient"),
        ("_typeFilter", "Patient?_sort=birthdate"),
        ("_typeFilter", "Patient?_include=Patient:organization"),
        ("_typeFilter", "Patient?colour=red"),
        ("_typeFilter", "Observation?status=final,amended"),
        ("_typeFilter", "Observation?date=ge2020-13"),
        ("includeAssociatedData", "LatestProvenanceResources"),
        ("organizeOutputBy", "Patient"),
        ("allowPartialManifests", "yes"),
        ("patient", "Patient/nobody"),
        ("_format", "ndjson"),
    ],
)
def test_a_malformed_or_unknown_parameter_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(Refusal) as refused:
        ask(pair)
    assert refused.value.status_code == 400


def test_a_parameter_that_may_be_given_once_is_refused_twice() -> None:
    with pytest.raises(Refusal):
        ask(("_since", "2026-01-01T00:00:00Z"), ("_since", "2026-01-02T00:00:00Z"))


def test_lenient_handling_reports_what_it_ignored() -> None:
    """Protocol fact 12."""
    request = ask(("organizeOutputBy", "Patient"), ("_type", "Patient,Device"), lenient=True)
    assert request.types == ("Patient",)
    assert len(request.ignored) == 2


def test_a_malformed_since_is_refused_even_when_lenient() -> None:
    with pytest.raises(Refusal):
        ask(("_since", "yesterday"), lenient=True)


def test_lists_may_be_repeated_or_comma_separated() -> None:
    assert ask(("_type", "Observation"), ("_type", "Patient")).types == ("Patient", "Observation")
    assert ask(("_type", "Observation,Patient")).types == ("Patient", "Observation")


def test_since_keeps_its_milliseconds_in_every_zone() -> None:
    for text in ("2026-01-01T02:00:00.417Z", "2025-12-31T21:00:00.417-05:00", "2026-01-01T02:00:00.417000Z"):
        assert ask(("_since", text)).window.since == night_instant(1)


def test_patient_is_refused_at_system_level() -> None:
    patient = next(resources(WORLD, "Patient", [0]))
    assert ask(("patient", f"Patient/{patient['id']}")).patients == (0,)
    with pytest.raises(Refusal):
        ask(("patient", f"Patient/{patient['id']}"), level="system")


@given(
    st.lists(
        st.tuples(st.sampled_from(["_type", "_typeFilter", "_elements", "_since", "x"]), st.text()),
        max_size=4,
    )
)
def test_no_parameters_make_the_parser_fail(pairs: list[tuple[str, str]]) -> None:
    try:
        request = ask(*pairs)
    except Refusal as refused:
        assert refused.status_code == 400
    else:
        assert len(request.parameters) == len(pairs)


@given(st.text(alphabet="Observation?=&,\\status dge-:T0123456789Z", max_size=60))
def test_no_type_filter_makes_the_parser_fail(text: str) -> None:
    try:
        parse_type_filters(["Observation?" + text])
    except Refusal as refused:
        assert refused.status_code == 400


def observations() -> list[dict[str, Any]]:
    return list(resources(World(1, 20, 3), "Observation", range(20)))


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ("status=amended", lambda r: r["status"] == "amended"),
        ("code=http://loinc.org|85354-9", lambda r: r["code"]["coding"][0]["code"] == "85354-9"),
        ("code=85354-9\\,72166-2", lambda r: r["code"]["coding"][0]["code"] in ("85354-9", "72166-2")),
        ("category=laboratory", lambda r: r["category"][0]["coding"][0]["code"] == "laboratory"),
        (
            "category=laboratory&status=final",
            lambda r: r["category"][0]["coding"][0]["code"] == "laboratory" and r["status"] == "final",
        ),
    ],
)
def test_a_type_filter_keeps_exactly_what_it_describes(query: str, holds: Any) -> None:
    accept = parse_type_filters([f"Observation?{query}"]).accept("Observation")
    assert accept is not None
    every = observations()
    kept = [resource for resource in every if accept(resource)]
    assert kept == [resource for resource in every if holds(resource)]
    assert 0 < len(kept) < len(every)


def test_filters_of_one_type_add_up_and_others_stay_untouched() -> None:
    """Protocol fact 14: several filters on one type mean OR."""
    joined = parse_type_filters(["Patient?gender=female,Patient?gender=male"])
    repeated = parse_type_filters(["Patient?gender=female", "Patient?gender=male"])
    every = list(resources(WORLD, "Patient", range(20)))
    for filters in (joined, repeated):
        accept = filters.accept("Patient")
        assert accept is not None
        assert all(accept(patient) for patient in every)
        assert filters.accept("Observation") is None


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("ge2020-06", "2020", True),
        ("gt2020-06", "2020-05-31", False),
        ("lt2020-06-02", "2020-06-01T23:59:59Z", True),
        ("lt2020-06-02", "2020-06-01T23:59:59-05:00", False),
        ("2020-06", "2020-06-15", True),
        ("2020-06-15", "2020-06", False),
        ("ne2020-06", "2020-06-15", False),
        ("le2020", "2020-12-31T23:00:00Z", True),
    ],
)
def test_dates_compare_as_ranges(text: str, value: str, expected: bool) -> None:
    accept = accept_query("Immunization", [("date", text)])
    assert accept({"occurrenceDateTime": value}) is expected
    assert accept({"occurrenceString": "long ago"}) is False


def test_elements_keep_what_is_mandatory_and_mark_the_rest_as_cut() -> None:
    """Protocol fact 16."""
    cut = subset_of("Observation", ((None, "value"),))
    assert cut is not None
    whole = next(r for r in observations() if "valueQuantity" in r)
    small = cut(whole)
    assert set(small) == {"resourceType", "id", "meta", "status", "code", "valueQuantity"}
    assert small["meta"]["tag"][-1]["code"] == "SUBSETTED"
    assert "tag" not in whole["meta"]
    assert subset_of("Observation", (("Patient", "name"),)) is None


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("system/*.rs", True),
        ("system/*.read", True),
        ("system/*.cruds", True),
        ("system/Patient.rs", True),
        ("system/Observation.rs", False),
        ("system/*.r", None),
        ("user/*.rs", None),
        ("system/*.rs openid", None),
        ("system/*.write", None),
        ("", None),
    ],
)
def test_scopes_cover_what_they_say(text: str, covered: bool | None) -> None:
    scopes = parse_scopes(text)
    assert (None if scopes is None else scopes.covers("Patient")) is covered


def test_a_wildcard_is_expanded_to_what_is_registered() -> None:
    """Protocol fact 8: the granted scope may differ from the requested one."""
    registered = parse_scopes("system/Patient.rs system/Observation.rs")
    wildcard, other = parse_scopes("system/*.rs"), parse_scopes("system/Claim.rs")
    assert registered and wildcard and other
    granted = grant(wildcard, registered)
    assert granted is not None
    assert granted.text == "system/Observation.rs system/Patient.rs"
    assert grant(other, registered) is None


def test_files_are_cut_between_patients_and_hold_every_line() -> None:
    world = World(1, 40, 1)
    request = parse_request(world, "group", "demo", "", [], lenient=False)
    files = plan(world, request, ["Observation"], 100)
    assert len(files) > 3
    assert all(file.count <= 100 for file in files)
    assert sum(file.count for file in files) == sum(1 for _ in resources(world, "Observation", range(40)))


@given(
    lines=st.lists(st.binary(min_size=1, max_size=90_000), max_size=6),
    start=st.integers(0, 400_000),
    length=st.integers(0, 400_000),
)
def test_a_part_is_the_same_bytes_as_a_slice(lines: list[bytes], start: int, length: int) -> None:
    whole = b"".join(lines)
    assert b"".join(chunks(lines, compress=False)) == whole
    assert (
        b"".join(part(chunks(lines, compress=False), start, start + length)) == whole[start : start + length]
    )


def test_the_command_line_takes_every_option() -> None:
    assert parse([]) == Options()
    options = parse(["--patients=3", "--one-at-a-time", "--poll-seconds=0.5", "--gzip=bare", "--pad=7"])
    assert (options.patients, options.one_at_a_time, options.poll_seconds) == (3, True, 0.5)
    assert (options.gzip, options.pad) == ("bare", 7)
    with pytest.raises(SystemExit):
        parse(["--patients=-1"])


def test_an_unknown_id_is_no_resource() -> None:
    assert find(WORLD, "Patient", "unknown") is None
    assert find(WORLD, "Group", "unknown") is None
    assert json.dumps(find(WORLD, "Group", "empty"))
