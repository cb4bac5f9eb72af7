"""Where the resources of each type are: the places of a chart, and the builder that fills them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.sandbox.generator import (
    administration,
    documents,
    encounters,
    finance,
    medications,
    observations,
    patients,
    problems,
)
from pipeline.sandbox.generator.chart import Chart, location_count, organization_count, practitioner_count
from pipeline.sandbox.generator.datatypes import Json
from pipeline.sandbox.generator.draws import Draws
from pipeline.sandbox.generator.world import FOLLOW_UPS, Life, Visit, World

Place = tuple[int, int, Visit]
"""(slot, night of birth, the visit it belongs to)"""


@dataclass(frozen=True, slots=True)
class Roster:
    """One type: `places` yields where its resources are in a chart, `build` makes the one that lives there.

    `mortal` resources may be deleted on their own.
    """

    places: Callable[[Chart], Iterator[Place]]
    build: Callable[[Chart, Visit, Life, Draws], Json]
    mortal: bool = False


def _each_visit(per_visit: int) -> Callable[[Chart], Iterator[Place]]:
    def places(chart: Chart) -> Iterator[Place]:
        for visit in chart.visits:
            for slot in visit.slots(per_visit):
                yield slot, visit.born, visit

    return places


def _observation_places(chart: Chart) -> Iterator[Place]:
    wanted = chart.world.observations_per_patient
    if wanted is None:
        yield from _each_visit(observations.PER_VISIT)(chart)
        return
    earlier = [visit for visit in chart.visits if visit.number < FOLLOW_UPS]
    for slot in range(wanted):
        visit = earlier[slot % len(earlier)]
        yield slot, visit.born, visit
    for visit in chart.visits[len(earlier) :]:
        for slot in visit.slots(observations.PER_VISIT):
            yield slot, visit.born, visit


def _once(every: int = 1) -> Callable[[Chart], Iterator[Place]]:
    def places(chart: Chart) -> Iterator[Place]:
        if chart.number % every == 0:
            visit = chart.visits[0]
            yield 0, visit.born, visit

    return places


def _follow_ups(chart: Chart) -> Iterator[Place]:
    for visit in chart.visits:
        if visit.number >= FOLLOW_UPS:
            yield visit.number, visit.born, visit


_NO_VISIT = Visit(0, 1, 0)


def _shared(count: Callable[[World], int]) -> Callable[[Chart], Iterator[Place]]:
    def places(chart: Chart) -> Iterator[Place]:
        first_night = 3 + chart.world.patients // 50 if count is practitioner_count else count(chart.world)
        for slot in range(count(chart.world)):
            yield slot, max(1, slot - first_night + 2), _NO_VISIT

    return places


ROSTERS = {
    "Patient": Roster(_once(), patients.patient),
    "Practitioner": Roster(_shared(practitioner_count), administration.practitioner),
    "Organization": Roster(_shared(organization_count), administration.organization),
    "Location": Roster(_shared(location_count), administration.location),
    "Encounter": Roster(_each_visit(1), encounters.encounter),
    "Condition": Roster(_each_visit(1), problems.condition, mortal=True),
    "Observation": Roster(_observation_places, observations.observation, mortal=True),
    "MedicationRequest": Roster(_each_visit(2), medications.medication_request),
    "Procedure": Roster(_each_visit(1), problems.procedure),
    "Immunization": Roster(_each_visit(1), problems.immunization, mortal=True),
    "AllergyIntolerance": Roster(_once(3), problems.allergy),
    "DiagnosticReport": Roster(_each_visit(1), documents.diagnostic_report),
    "DocumentReference": Roster(_each_visit(1), documents.document_reference, mortal=True),
    "Coverage": Roster(_once(), finance.coverage),
    "Claim": Roster(_each_visit(1), finance.claim),
    "ExplanationOfBenefit": Roster(_each_visit(1), finance.explanation_of_benefit),
    "CarePlan": Roster(_once(2), encounters.care_plan),
    "Goal": Roster(_follow_ups, encounters.goal),
}
