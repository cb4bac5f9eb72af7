"""Observation resources: vital signs with components, laboratory results, and every form of value."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from pipeline.sandbox.generator.chart import Chart
from pipeline.sandbox.generator.datatypes import (
    LOINC,
    SNOMED,
    TERMINOLOGY,
    Json,
    coding,
    concept,
    date_time,
    instant,
    narrative,
    period,
    quantity,
)
from pipeline.sandbox.generator.draws import Draws
from pipeline.sandbox.generator.envelope import envelope
from pipeline.sandbox.generator.people import NOTES
from pipeline.sandbox.generator.world import Life, Visit

PER_VISIT = 6


class Measure(NamedTuple):
    """A measured quantity: its LOINC code, unit, range of whole units and decimal places."""

    code: str
    display: str
    unit: str
    low: int
    high: int
    places: int


_VITALS = (
    Measure("8302-2", "Body Height", "cm", 48, 200, 1),
    Measure("29463-7", "Body Weight", "kg", 3, 140, 2),
    Measure("8867-4", "Heart rate", "/min", 48, 130, 0),
    Measure("39156-5", "Body mass index (BMI) [Ratio]", "kg/m2", 14, 44, 15),
)
_LABS = (
    Measure("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood", "%", 4, 12, 2),
    Measure("2160-0", "Creatinine [Mass/volume] in Serum or Plasma", "mg/dL", 0, 3, 2),
    Measure("2345-7", "Glucose [Mass/volume] in Serum or Plasma", "mg/dL", 60, 250, 17),
    Measure("33914-3", "Glomerular filtration rate/1.73 sq M.predicted", "mL/min/{1.73_m2}", 15, 120, 0),
)
_VITAL = [concept(TERMINOLOGY + "observation-category", "vital-signs", "Vital signs")]
_LABORATORY = [concept(TERMINOLOGY + "observation-category", "laboratory", "Laboratory")]
_SURVEY = [concept(TERMINOLOGY + "observation-category", "survey", "Survey")]
_SOCIAL = [concept(TERMINOLOGY + "observation-category", "social-history", "Social History")]


def observation(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """An Observation; its form goes by its place within the visit."""
    resource = envelope("Observation", life)
    if chart.world.pad:
        resource["text"] = narrative("x" * chart.world.pad)
    resource["status"] = "final" if life.version == 1 else "amended"
    form = life.slot % PER_VISIT
    if form == 0:
        _blood_pressure(resource, draws)
    elif form in (1, 2):
        _measured(resource, draws, _VITALS[draws.below(4)], _VITAL)
    elif form in (3, 4):
        _measured(resource, draws, _LABS[draws.below(4)], _LABORATORY)
        resource["performer"] = [chart.organization(draws)]
    else:
        _rare_value(resource, draws)
    resource["subject"] = chart.subject(draws)
    resource["encounter"] = chart.encounter(visit, draws)
    if draws.one_in(12):
        resource["effectivePeriod"] = period(visit.day, draws)
    else:
        resource["effectiveDateTime"] = date_time(visit.day, draws)
    resource["issued"] = instant(visit.day * 86_400_000 + draws.below(86_400_000), draws.below(4))
    if draws.one_in(20):
        resource["note"] = [{"text": draws.pick(NOTES)}]
    if life.changed >= 2:
        resource["bodySite"] = concept(SNOMED, "368209003", "Right upper arm")
        resource["method"] = {"text": "corrected" if life.version > 1 else "measured"}
    return resource


def number(draws: Draws, measure: Measure) -> str:
    """A value of that measure as its source wrote it, trailing zeros and all."""
    whole = draws.between(measure.low, measure.high)
    if not measure.places:
        return str(whole)
    if measure.places <= 2:
        return f"{whole}.{draws.below(10) * 10 if draws.one_in(3) else draws.below(100):02d}"
    return f"{whole}.{draws.below(10**9):09d}{draws.below(10 ** (measure.places - 9)):0{measure.places - 9}d}"


def _blood_pressure(resource: Json, draws: Draws) -> None:
    resource["category"] = _VITAL
    resource["code"] = concept(LOINC, "85354-9", "Blood pressure panel with all children optional")
    resource["component"] = [
        {
            "code": concept(LOINC, "8462-4", "Diastolic Blood Pressure"),
            "valueQuantity": quantity(f"{draws.between(50, 110)}", "mm[Hg]"),
        },
        {
            "code": concept(LOINC, "8480-6", "Systolic Blood Pressure"),
            "valueQuantity": quantity(f"{draws.between(90, 190)}.0", "mm[Hg]"),
        },
    ]


def _measured(resource: Json, draws: Draws, measure: Measure, category: list[Json]) -> None:
    resource["category"] = category
    resource["code"] = concept(LOINC, measure.code, measure.display)
    if draws.one_in(40):
        resource["dataAbsentReason"] = concept(
            TERMINOLOGY + "data-absent-reason", "not-performed", "Not Performed"
        )
        return
    value = quantity(number(draws, measure), measure.unit)
    if draws.one_in(15):
        value["comparator"] = draws.pick(("<", ">="))
    resource["valueQuantity"] = value
    if category is _LABORATORY:
        resource["interpretation"] = [
            {"coding": [coding(TERMINOLOGY + "v3-ObservationInterpretation", draws.pick(("N", "H", "L")))]}
        ]
        resource["referenceRange"] = [
            {
                "low": quantity(f"{measure.low}.0", measure.unit),
                "high": quantity(f"{measure.high}.00", measure.unit),
                "text": f"{measure.low} – {measure.high}",
            }
        ]


def _rare_value(resource: Json, draws: Draws) -> None:
    form = draws.below(7)
    resource["category"] = _SOCIAL if form < 3 else _SURVEY
    resource["code"] = concept(LOINC, "72166-2", "Tobacco smoking status")
    if form < 3:
        resource["valueCodeableConcept"] = concept(SNOMED, "266919005", "Never smoked tobacco (finding)")
    elif form == 3:
        resource["valueString"] = draws.pick(NOTES)
    elif form == 4:
        resource["valueInteger"] = draws.between(-3, 27)
    elif form == 5:
        resource["valueRatio"] = {"numerator": quantity("1", "1"), "denominator": quantity("128.000", "1")}
    else:
        resource["valueSampledData"] = {
            "origin": {"value": Decimal("2048.0")},
            "period": Decimal("3.9062500"),
            "factor": Decimal("0.00612"),
            "dimensions": 1,
            "data": " ".join(str(2000 + draws.below(99)) for _ in range(60)) + " E U L",
        }
