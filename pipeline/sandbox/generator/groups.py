"""The Groups of the sandbox and who is in them."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sandbox.generator.chart import Chart
from pipeline.sandbox.generator.datatypes import Json, instant
from pipeline.sandbox.generator.kinds import KINDS
from pipeline.sandbox.generator.world import World, life_of, night_instant

GROUPS = {
    "demo": "All patients",
    "cohort-a": "A third of the patients; every seventh joins on the second night, with old data",
    "empty": "Nobody",
    "wanderers": "Two thirds of the patients; every other night some join and some leave",
}

_LISTED = 10_000


def is_member(world: World, group: str, patient: int) -> bool:
    """Whether the patient with that number belongs to the group on this night."""
    if group == "demo":
        return True
    if group == "cohort-a":
        return patient % 3 == 0 or (world.night >= 2 and patient % 7 == 1)
    if group == "wanderers":
        return ((world.night + 2 * patient) // 12 + patient) % 3 != 0
    return False


def members(world: World, group: str, first: int = 0, last: int | None = None) -> Iterator[int]:
    """Numbers of the group's patients in first .. last - 1, those deleted since included."""
    for patient in range(first, world.patient_count() if last is None else last):
        if is_member(world, group, patient):
            yield patient


def group_resource(world: World, group: str) -> Json:
    """The Group with its living members; beyond 10,000 only `quantity` tells how many there are."""
    listed: list[Json] = []
    quantity = 0
    for number in members(world, group):
        life = life_of(world, KINDS["Patient"], number, 0, world.admission(number), mortal=False)
        if life is None or life.deleted is not None:
            continue
        quantity += 1
        if quantity <= _LISTED:
            listed.append({"entity": {"reference": "Patient/" + Chart(world, number).patient_id}})
    resource: Json = {
        "resourceType": "Group",
        "id": group,
        "meta": {"versionId": str(world.night), "lastUpdated": instant(night_instant(world.night) - 1)},
        "identifier": [{"system": "https://ehr.sandbox.example/group", "value": group}],
        "active": True,
        "type": "person",
        "actual": True,
        "name": GROUPS[group],
        "quantity": quantity,
    }
    if listed:
        resource["member"] = listed
    return resource
