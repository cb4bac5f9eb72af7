"""Kick-off parameters and the profiles that judge them: facts 10, 12-14, azure-and-aidbox A, B, D."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bulkdata.parameters import KickoffParameters, encode_query
from pipeline.bulkdata.profiles import PROFILES
from pipeline.errors import ConfigError

STEADY = settings(deadline=None, derandomize=True)  # the machine may be busy


def ask(**members: Any) -> KickoffParameters:
    return KickoffParameters(**{"level": "group", "group": "g1", **members})


def test_lists_are_joined_by_commas_and_never_repeated() -> None:
    """Protocol fact 13: Oracle rejects a repeated `_type`, Microsoft binds the first only."""
    pairs = ask(types=("Patient", "Observation"), elements=("id", "Patient.name")).as_query()
    assert ("_type", "Patient,Observation") in pairs
    assert ("_elements", "id,Patient.name") in pairs
    assert len({name for name, _ in pairs}) == len(pairs)


def test_plus_signs_are_escaped_in_format_and_instants() -> None:
    """azure-and-aidbox D: `+` must be escaped, or it arrives as a space."""
    query = encode_query(ask(since="2026-01-31T00:00:00+01:00").as_query())
    assert "_outputFormat=application/fhir%2Bndjson" in query
    assert "_since=2026-01-31T00:00:00%2B01:00" in query
    assert "+" not in query


@STEADY
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=5))
def test_every_value_survives_the_query_string(pairs: list[tuple[str, str]]) -> None:
    assert parse_qsl(encode_query(pairs), strict_parsing=bool(pairs)) == pairs


def test_a_comma_inside_a_filter_is_not_taken_for_the_join_of_filters() -> None:
    """Protocol fact 14; a strict server refuses the bare comma in a single filter too."""
    both = ("Observation?status=final,amended", "Condition?category=x")
    (joined,) = (value for name, value in ask(type_filters=both).as_query() if name == "_typeFilter")
    assert joined.split(",") == ["Observation?status=final%2Camended", "Condition?category=x"]
    assert dict(parse_qsl(joined.split(",")[0].partition("?")[2])) == {"status": "final,amended"}
    (single,) = (value for name, value in ask(type_filters=both[:1]).as_query() if name == "_typeFilter")
    assert single == "Observation?status=final%2Camended"
    posted = ask(type_filters=both, patients=("1",)).as_parameters()["parameter"]
    assert [each["valueString"] for each in posted if each["name"] == "_typeFilter"] == joined.split(",")


def test_the_upper_end_of_the_window_takes_the_name_that_the_server_knows() -> None:
    """Protocol fact 13: `_until`, or `_till` at Microsoft."""
    asked = ask(until="2026-01-31T00:00:00Z")
    assert dict(asked.as_query())["_until"] == dict(asked.as_query("_till"))["_till"]
    assert PROFILES["azure-fhir"].until_parameter == "_till"


def test_patients_make_it_a_post_with_references() -> None:
    """Protocol facts 13 and 15."""
    asked = ask(patients=("1", "Patient/2"), types=("Patient", "Device"), since="2026-01-31T00:00:00Z")
    assert asked.must_post
    with pytest.raises(ConfigError):
        asked.as_query()
    body = asked.as_parameters()
    assert body["resourceType"] == "Parameters"
    assert {"name": "patient", "valueReference": {"reference": "Patient/1"}} in body["parameter"]
    assert {"name": "patient", "valueReference": {"reference": "Patient/2"}} in body["parameter"]
    assert {"name": "_type", "valueString": "Patient,Device"} in body["parameter"]
    assert {"name": "_since", "valueInstant": "2026-01-31T00:00:00Z"} in body["parameter"]


def test_each_level_has_its_path() -> None:
    assert ask().path == "Group/g1/$export"
    assert KickoffParameters("patient").path == "Patient/$export"
    assert KickoffParameters("system").path == "$export"


def test_leniency_is_a_preference() -> None:
    """Protocol facts 10 and 12."""
    assert ask().prefer() == "respond-async"
    assert ask(lenient=True).prefer() == "respond-async, handling=lenient"


@pytest.mark.parametrize(
    ("members", "hint"),
    [
        ({"group": None}, "Group"),
        ({"group": "../Patient"}, "FHIR id"),
        ({"group": ".."}, "FHIR id"),
        ({"group": "a/b"}, "FHIR id"),
        ({"group": "a?b=c"}, "FHIR id"),
        ({"types": ("patient",)}, "types"),
        ({"types": ("Patient,Observation",)}, "types"),
        ({"type_filters": ("Observation",)}, "Type?query"),
        ({"type_filters": ("Observation?_include=Observation:subject",)}, "_include"),
        ({"type_filters": ("Observation?code=x&_sort=date",)}, "_sort"),
        ({"type_filters": ("Observation?_revinclude:iterate=x",)}, "_revinclude"),
        ({"types": ("Patient",), "type_filters": ("Observation?code=x",)}, "Observation"),
        ({"elements": ("name.family",)}, "elements"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-31"}, "since"),
        ({"since": "2026-13-31T00:00:00Z"}, "since"),
        ({"since": "2026-01-31T00:00:00Z", "until": "2026-01-30T00:00:00Z"}, "before"),
        ({"patients": ("a b",)}, "patient"),
        ({"level": "system", "patients": ("1",)}, "patients"),
        ({"level": "galaxy"}, "level"),
    ],
)
def test_what_cannot_be_sent_is_refused_when_it_is_put_together(members: dict[str, Any], hint: str) -> None:
    """Protocol fact 14 among them: no result parameters in filters."""
    with pytest.raises(ConfigError) as raised:
        ask(**members)
    assert hint.lower() in str(raised.value).lower()


def test_group_ids_longer_than_fhir_allows_are_taken() -> None:
    """Protocol fact 34: Epic's ids have up to 88 characters."""
    assert "e" * 88 in ask(group="e" * 88).path


names = st.sampled_from(["Patient", "Observation", "Condition", "Encounter", "Device"])


@STEADY
@given(st.lists(names, max_size=5), st.randoms())
def test_the_fingerprint_does_not_know_order(types: list[str], random: Any) -> None:
    shuffled = list(types)
    random.shuffle(shuffled)
    assert ask(types=tuple(types)).fingerprint() == ask(types=tuple(shuffled)).fingerprint()


def test_the_fingerprint_knows_what_is_covered_and_nothing_else() -> None:
    base = ask(types=("Patient",))
    different = [
        ask(types=("Patient", "Device")),
        ask(types=("Patient",), group="g2"),
        KickoffParameters("patient", types=("Patient",)),
        ask(types=("Patient",), type_filters=("Patient?active=true",)),
        ask(types=("Patient",), elements=("id",)),
        ask(types=("Patient",), patients=("1",)),
    ]
    prints = [each.fingerprint() for each in different]
    assert len({base.fingerprint(), *prints}) == len(prints) + 1
    window = ask(types=("Patient",), since="2026-01-31T00:00:00Z", lenient=True, output_format=None)
    assert window.fingerprint() == base.fingerprint()


@pytest.mark.parametrize(
    ("profile", "members", "hint"),
    [
        ("apim-smart", {"level": "patient", "group": None}, "level"),
        ("apim-smart", {"group": "a.b"}, "group ids"),
        ("azure-fhir", {"patients": ("1",)}, "patients"),
        ("azure-fhir", {"elements": ("id",)}, "_elements"),
        ("azure-fhir", {"type_filters": ("Patient?active=true",)}, "types"),
        ("azure-fhir", {"types": ("Patient",), "type_filters": ("Patient?gender=male,female",)}, "comma"),
        ("aidbox", {"type_filters": ("Patient?active=true",)}, "_typeFilter"),
        ("aidbox", {"until": "2026-01-31T00:00:00Z"}, "_until"),
    ],
)
def test_a_profile_refuses_what_its_server_would_refuse_or_narrow(
    profile: str, members: dict[str, Any], hint: str
) -> None:
    """azure-and-aidbox A (Group level only, id form), B (its parameters) and D (strict kick-off)."""
    with pytest.raises(ConfigError) as raised:
        PROFILES[profile].check(ask(**members))
    assert hint in str(raised.value)


def test_a_plain_request_passes_every_profile() -> None:
    for profile in PROFILES.values():
        profile.check(ask(types=("Patient",), since="2026-01-31T00:00:00Z"))


def test_every_profile_names_types_for_the_static_assets() -> None:
    assert list(PROFILES) == ["smart", "apim-smart", "aidbox", "smartbox", "azure-fhir", "azure-fhir-export"]
    for name, profile in PROFILES.items():
        assert profile.name == name
        assert len(set(profile.types)) == len(profile.types) >= 19
        assert "Patient" in profile.types
