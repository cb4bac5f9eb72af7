"""Reading the data: all of a type in order, one by its id, how many there are, what was deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline.sandbox.generator.chart import Chart
from pipeline.sandbox.generator.datatypes import Json
from pipeline.sandbox.generator.draws import Draws
from pipeline.sandbox.generator.groups import GROUPS, group_resource, members
from pipeline.sandbox.generator.identity import place_of, resource_id
from pipeline.sandbox.generator.kinds import KINDS, SHARED
from pipeline.sandbox.generator.roster import ROSTERS
from pipeline.sandbox.generator.world import Life, Visit, World, life_of, night_instant

Accept = Callable[[Json], bool]


@dataclass(frozen=True, slots=True)
class Window:
    """Instants between which a resource must have changed: later than `since`, earlier than `until`."""

    since: int | None = None
    until: int | None = None

    def holds(self, moment: int) -> bool:
        """Whether that instant lies inside."""
        return (self.since is None or moment > self.since) and (self.until is None or moment < self.until)


ALWAYS = Window()


@dataclass(frozen=True, slots=True)
class Entry:
    """A living resource, not made yet."""

    resource_type: str
    chart: Chart
    visit: Visit
    life: Life

    def build(self) -> Json:
        """The resource as objects; numbers are Decimal."""
        return ROSTERS[self.resource_type].build(self.chart, self.visit, self.life, Draws(self.life.bits))


def types_of(level: str) -> tuple[str, ...]:
    """Resource types that an export at `level` (group, patient, system) can hold."""
    return (*ROSTERS, "Group") if level == "system" else tuple(ROSTERS)


def _charts(world: World, resource_type: str, patients: Iterable[int]) -> Iterator[Chart]:
    if resource_type in SHARED:
        yield Chart(world, -1)
    else:
        for number in patients:
            yield Chart(world, number)


def _lives(world: World, resource_type: str, patients: Iterable[int]) -> Iterator[tuple[Chart, Visit, Life]]:
    roster = ROSTERS[resource_type]
    kind = KINDS[resource_type]
    for chart in _charts(world, resource_type, patients):
        for slot, born, visit in roster.places(chart):
            life = life_of(world, kind, chart.number, slot, born, mortal=roster.mortal)
            if life is not None:
                yield chart, visit, life


def entries(
    world: World, resource_type: str, patients: Iterable[int], window: Window = ALWAYS
) -> Iterator[Entry]:
    """The living resources of a type that changed in the window, by patient and slot.

    For the shared types `patients` does not matter. Not for Group: see `resources`.
    """
    for chart, visit, life in _lives(world, resource_type, patients):
        if life.deleted is None and window.holds(life.updated):
            yield Entry(resource_type, chart, visit, life)


def resources(
    world: World,
    resource_type: str,
    patients: Iterable[int],
    window: Window = ALWAYS,
    accept: Accept | None = None,
) -> Iterator[Json]:
    """The same, made, and only those that `accept` takes."""
    if resource_type == "Group":
        made: Iterator[Json] = (
            group_resource(world, name) for name in GROUPS if window.holds(night_instant(world.night) - 1)
        )
    else:
        made = (entry.build() for entry in entries(world, resource_type, patients, window))
    return made if accept is None else filter(accept, made)


def count_by_patient(
    world: World,
    resource_type: str,
    patients: Iterable[int],
    window: Window = ALWAYS,
    accept: Accept | None = None,
) -> Iterator[tuple[int, int]]:
    """(patient, how many resources) for each patient; one pair with 0 for the shared types and Group."""
    if resource_type in SHARED or resource_type == "Group":
        yield 0, sum(1 for _ in resources(world, resource_type, (), window, accept))
        return
    for number in patients:
        if accept is None:
            yield number, sum(1 for _ in entries(world, resource_type, (number,), window))
        else:
            yield number, sum(1 for _ in resources(world, resource_type, (number,), window, accept))


def find(world: World, resource_type: str, identifier: str) -> Json | None:
    """The living resource with that id, made, or None."""
    if resource_type == "Group":
        return group_resource(world, identifier) if identifier in GROUPS else None
    entry = locate(world, resource_type, identifier)
    return entry.build() if entry is not None and entry.life.deleted is None else None


def was_deleted(world: World, resource_type: str, identifier: str) -> bool:
    """Whether a resource with that id lived before this night's end."""
    entry = locate(world, resource_type, identifier)
    return entry is not None and entry.life.deleted is not None


def locate(world: World, resource_type: str, identifier: str) -> Entry | None:
    """Where the resource with that id is, alive or deleted, or None."""
    place = place_of(identifier)
    if place is None or resource_type not in ROSTERS:
        return None
    number, wanted = place
    if (number < 0) != (resource_type in SHARED) or number >= world.patient_count():
        return None
    for chart, visit, life in _lives(world, resource_type, (number,)):
        if life.slot == wanted:
            same = resource_id(life.bits, life.patient, life.slot) == identifier
            return Entry(resource_type, chart, visit, life) if same else None
    return None


def patient_number(world: World, identifier: str) -> int | None:
    """The number of the living patient with that id, or None."""
    entry = locate(world, "Patient", identifier)
    return entry.chart.number if entry is not None and entry.life.deleted is None else None


def deletions(
    world: World, types: Iterable[str], patients: Callable[[], Iterable[int]], window: Window
) -> Iterator[tuple[str, str]]:
    """(type, id) of what was deleted inside the window, also where it was created there: a client may have
    exported it in between (Bulk Data, `deleted`: "deleted subsequent to the _since date")."""
    for resource_type in types:
        if resource_type not in ROSTERS or resource_type in SHARED:
            continue
        for _chart, _visit, life in _lives(world, resource_type, patients()):
            if life.deleted is not None and window.holds(life.deleted):
                yield resource_type, resource_id(life.bits, life.patient, life.slot)


def group_patients(world: World, group: str | None) -> Iterator[int]:
    """Numbers of all patients, or of those in a group."""
    return iter(range(world.patient_count())) if group is None else members(world, group)
