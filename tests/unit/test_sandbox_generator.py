from __future__ import annotations

import base64
import json
import re
from collections import Counter
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sandbox import truth
from pipeline.sandbox.generator.datatypes import instant
from pipeline.sandbox.generator.groups import GROUPS, is_member
from pipeline.sandbox.generator.identity import place_of, resource_id
from pipeline.sandbox.generator.records import (
    Window,
    count_by_patient,
    deletions,
    find,
    patient_number,
    resources,
    types_of,
    was_deleted,
)
from pipeline.sandbox.generator.wire import encode
from pipeline.sandbox.generator.world import World, life_of, night_instant

PATIENTS = 45


def parsed(night: int, **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for resource_type, text in truth(1, PATIENTS, night, **options):
        resource = json.loads(text, parse_float=Decimal)
        assert resource["resourceType"] == resource_type
        assert (resource_type, resource["id"]) not in found
        found[resource_type, resource["id"]] = resource
    return found


@pytest.fixture(scope="module")
def nights() -> dict[int, dict[tuple[str, str], dict[str, Any]]]:
    return {night: parsed(night) for night in (1, 2, 3)}


def test_same_seed_gives_same_bytes_and_another_seed_others() -> None:
    assert list(truth(7, 5, 2)) == list(truth(7, 5, 2))
    assert list(truth(7, 5, 2)) != list(truth(8, 5, 2))


def test_a_line_is_one_line_of_valid_json(nights: object) -> None:
    for _, text in truth(1, 20, 2):
        assert b"\n" not in text
        assert b"\r" not in text
        json.loads(text)


def test_thirteen_types_and_more_are_there_and_one_comes_on_the_second_night(
    nights: dict[int, dict[tuple[str, str], dict[str, Any]]],
) -> None:
    first = {kind for kind, _ in nights[1]}
    assert len(first) >= 16
    assert {kind for kind, _ in nights[2]} - first == {"Goal"}


def test_nights_bring_new_changed_and_deleted_resources(
    nights: dict[int, dict[tuple[str, str], dict[str, Any]]],
) -> None:
    for before, after in pairwise((1, 2, 3)):
        old, new = nights[before], nights[after]
        assert new.keys() - old.keys()
        assert old.keys() - new.keys()
        changed = [key for key in old.keys() & new.keys() if old[key] != new[key]]
        assert changed
        for key in changed:
            version = int(new[key]["meta"]["versionId"])
            assert version == int(old[key]["meta"]["versionId"]) + 1


def test_elements_appear_that_the_first_night_did_not_use(
    nights: dict[int, dict[tuple[str, str], dict[str, Any]]],
) -> None:
    def elements(night: int, kind: str) -> set[str]:
        return set().union(*(set(value) for (name, _), value in nights[night].items() if name == kind))

    assert {"bodySite", "method"} <= elements(2, "Observation") - elements(1, "Observation")
    assert {"multipleBirthInteger", "communication"} <= elements(2, "Patient") - elements(1, "Patient")


def test_since_plus_deletions_turn_one_night_into_the_next(
    nights: dict[int, dict[tuple[str, str], dict[str, Any]]],
) -> None:
    """Protocol fact 26: transactionTime is a sound next `_since`."""
    window = Window(since=night_instant(1))
    world = World(1, PATIENTS, 2)
    everyone = range(world.patient_count())
    types = types_of("group")
    merged = dict(nights[1])
    for kind in types:
        for resource in resources(world, kind, everyone, window):
            merged[kind, resource["id"]] = json.loads(encode(resource), parse_float=Decimal)
    gone = list(deletions(world, types, lambda: everyone, window))
    assert gone
    for key in gone:
        del merged[key]
    assert merged == nights[2]


def test_last_updated_lies_within_its_night(nights: dict[int, dict[tuple[str, str], dict[str, Any]]]) -> None:
    world = World(1, PATIENTS, 3)
    for kind in ("Observation", "Patient", "Encounter"):
        later = list(resources(world, kind, range(world.patient_count()), Window(since=night_instant(2))))
        assert later
        for resource in later:
            moment = datetime.fromisoformat(resource["meta"]["lastUpdated"])
            assert datetime.fromisoformat("2026-01-02T02:00:00.417Z") < moment
            assert moment < datetime.fromisoformat("2026-01-03T02:00:00.417Z")


def test_deleted_patients_take_everything_of_theirs_with_them() -> None:
    before, after = parsed(2), parsed(3)
    gone = {key for kind, key in before.keys() - after.keys() if kind == "Patient"}
    assert gone
    text = json.dumps([str(value.get("subject") or value.get("patient")) for value in after.values()])
    assert not [key for key in gone if f"Patient/{key}" in text]


def test_numbers_keep_their_digits() -> None:
    text = b"\n".join(line for _, line in truth(1, 30, 1))
    assert re.search(rb'"value":\d+\.\d*0[,}]', text)
    assert re.search(rb'"valueDecimal":0\.00\d{14,}', text)
    assert b'"altitude":1E+2' in text
    assert b'"amount":{"value":129.160' in text


def test_data_has_what_real_data_has() -> None:
    text = b"\n".join(line for _, line in truth(1, 60, 1)).decode()
    for part in (
        "us-core-race",
        "ombCategory",
        '"_birthDate":{"extension"',
        '"_given":[null,{',
        '"contained":[{',
        '"reference":"#med0"',
        '"reference":"urn:uuid:',
        "/_history/1",
        '"reference":"https://ehr.sandbox.example/fhir/Patient/',
        "Practitioner?identifier=",
        '"modifierExtension"',
        "山田",
        "🙂",
        "\u2028",
    ):
        assert part in text, part
    assert re.search(r'"birthDate":"\d{4}"', text)
    assert re.search(r'"birthDate":"\d{4}-\d\d"', text)
    assert re.search(r'"effectiveDateTime":"[^"]+\.\d{6}[+-]\d\d:\d\d"', text)
    assert re.search(r'"generalPractitioner":\[\{"identifier":', text)
    assert len({len(json.loads(line)["id"]) for line in text.split("\n")}) > 4


def test_some_lines_are_hundreds_of_kilobytes_of_true_base64() -> None:
    long = [line for _, line in truth(1, 60, 1) if len(line) > 200_000]
    assert long
    attachment = json.loads(long[0])["content"][0]["attachment"]
    assert len(base64.b64decode(attachment["data"], validate=True)) == attachment["size"]


def test_ids_are_valid_unique_and_lead_back_to_their_resource() -> None:
    world = World(1, 12, 2)
    for resource_type, text in truth(1, 12, 2):
        identifier = json.loads(text)["id"]
        assert re.fullmatch(r"[A-Za-z0-9.\-]{1,64}", identifier)
        found = find(world, resource_type, identifier)
        assert found is not None
        assert encode(found) == text


def test_deleted_resources_are_known_as_such_and_not_found() -> None:
    world = World(1, PATIENTS, 2)
    window = Window(since=night_instant(1))
    for resource_type, identifier in deletions(world, types_of("group"), lambda: range(PATIENTS), window):
        assert find(world, resource_type, identifier) is None
        assert was_deleted(world, resource_type, identifier)
    assert not was_deleted(world, "Patient", "no-such-id")
    assert patient_number(world, "no-such-id") is None


@given(bits=st.integers(0, 2**64 - 1), patient=st.integers(-1, 10_000_000), slot=st.integers(0, 0xFFFFF))
def test_every_form_of_id_names_its_place(bits: int, patient: int, slot: int) -> None:
    assert place_of(resource_id(bits, patient, slot)) == (patient, slot)


@given(text=st.text(max_size=70))
def test_no_text_makes_the_id_parser_fail(text: str) -> None:
    place = place_of(text)
    assert place is None or (place[0] >= -1 and place[1] >= 0)


@given(kind=st.integers(1, 19), patient=st.integers(0, 500), slot=st.integers(0, 100), born=st.integers(1, 4))
def test_a_life_only_moves_forward(kind: int, patient: int, slot: int, born: int) -> None:
    lives = [life_of(World(3, 500, night), kind, patient, slot, born, mortal=True) for night in range(1, 14)]
    assert all(life is None for life in lives[: born - 1])
    known = [life for life in lives[born - 1 :] if life is not None]
    assert len(known) == 14 - born
    assert known[0].version == 1
    assert known[0].deleted is None
    for night, (old, new) in enumerate(pairwise(known), start=born + 1):
        assert 0 <= new.version - old.version <= 1
        assert (new.updated > night_instant(night - 1)) == (new.version > old.version)
        assert new.updated < night_instant(night)
        assert old.deleted is None or new.deleted == old.deleted


def test_counts_match_what_is_made() -> None:
    world = World(1, 30, 3)
    made = Counter(kind for kind, _ in truth(1, 30, 3, level="system"))
    for kind in types_of("system"):
        assert (
            sum(count for _, count in count_by_patient(world, kind, range(world.patient_count())))
            == made[kind]
        )


def test_volume_options_multiply_observations_only() -> None:
    plain = Counter(kind for kind, _ in truth(1, 5, 1))
    lines = list(truth(1, 5, 1, observations_per_patient=80, pad=500))
    more = Counter(kind for kind, _ in lines)
    assert 5 * 80 * 0.95 < more["Observation"] <= 5 * 80
    assert {kind: count for kind, count in more.items() if kind != "Observation"} == {
        kind: count for kind, count in plain.items() if kind != "Observation"
    }
    assert all(b"x" * 500 in text for kind, text in lines if kind == "Observation")


def test_a_cohort_is_a_part_of_everyone_and_grows_on_the_second_night() -> None:
    def patients(night: int, group: str | None) -> set[bytes]:
        return {text for kind, text in truth(1, PATIENTS, night, group) if kind == "Patient"}

    assert patients(1, None) == patients(1, "demo")
    assert patients(1, "cohort-a") < patients(1, "demo")
    joined = [
        number
        for number in range(PATIENTS)
        if is_member(World(1, PATIENTS, 2), "cohort-a", number)
        and not is_member(World(1, PATIENTS, 1), "cohort-a", number)
    ]
    assert joined
    assert patients(1, "empty") == set()
    with pytest.raises(KeyError):
        next(truth(1, 5, 1, "no-such-group"))


def test_groups_list_their_living_members() -> None:
    world = World(1, PATIENTS, 3)
    for name in GROUPS:
        group = find(world, "Group", name)
        assert group is not None
        patients = sum(1 for kind, _ in truth(1, PATIENTS, 3, name) if kind == "Patient")
        assert group["quantity"] == patients == len(group.get("member", []))


def test_instants_of_every_zone_are_the_same_moment() -> None:
    moments = {datetime.fromisoformat(instant(night_instant(1), zone)) for zone in range(4)}
    assert moments == {datetime.fromisoformat("2026-01-01T02:00:00.417Z")}
