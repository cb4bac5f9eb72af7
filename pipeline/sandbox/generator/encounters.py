"""Encounter, CarePlan and Goal resources: the frame around a visit."""

from __future__ import annotations

from decimal import Decimal

from pipeline.sandbox.generator.administration import specialty
from pipeline.sandbox.generator.chart import Chart
from pipeline.sandbox.generator.datatypes import (
    SNOMED,
    TERMINOLOGY,
    UCUM,
    Json,
    coding,
    concept,
    iso_date,
    narrative,
    partial_date,
    period,
    quantity,
)
from pipeline.sandbox.generator.draws import Draws
from pipeline.sandbox.generator.envelope import envelope
from pipeline.sandbox.generator.people import NOTES
from pipeline.sandbox.generator.world import Life, Visit

_CLASSES = (("AMB", "ambulatory"), ("EMER", "emergency"), ("IMP", "inpatient encounter"))
_TYPES = (
    ("185349003", "Encounter for check up (procedure)"),
    ("50849002", "Emergency room admission (procedure)"),
    ("390906007", "Follow-up encounter (procedure)"),
)


def encounter(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """An Encounter."""
    resource = envelope("Encounter", life, "us-core-encounter")
    resource["identifier"] = [
        {"system": "https://ehr.sandbox.example/visit", "value": f"{chart.number}/{visit.number}"}
    ]
    resource["status"] = "finished" if draws.below(8) else "in-progress"
    resource["class"] = coding(TERMINOLOGY + "v3-ActCode", *draws.pick(_CLASSES))
    resource["type"] = [concept(SNOMED, *draws.pick(_TYPES))]
    resource["serviceType"] = specialty(draws)
    resource["subject"] = chart.subject(draws)
    resource["participant"] = [
        {
            "type": [{"coding": [coding(TERMINOLOGY + "v3-ParticipationType", "PPRF", "primary performer")]}],
            "period": period(visit.day, draws),
            "individual": chart.practitioner(draws),
        }
    ]
    resource["period"] = period(visit.day, draws)
    if draws.one_in(3):
        resource["length"] = {
            "value": Decimal(f"{draws.between(5, 200)}.0"),
            "unit": "min",
            "system": UCUM,
            "code": "min",
        }
    if draws.one_in(4):
        resource["reasonCode"] = [{"text": draws.pick(NOTES)}]
    resource["location"] = [{"location": chart.location(draws), "status": "completed"}]
    resource["serviceProvider"] = chart.organization(draws)
    if life.changed >= 2:
        resource["hospitalization"] = {
            "dischargeDisposition": concept(TERMINOLOGY + "discharge-disposition", "home", "Home"),
            "preAdmissionIdentifier": {"value": f"PA-{life.version}"},
        }
    return resource


def care_plan(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """A CarePlan with narrative, a modifier extension and, from the second night on, a note."""
    resource = envelope("CarePlan", life, "us-core-careplan")
    resource["text"] = narrative("Care plan: diet &amp; exercise &lt;daily&gt;")
    if draws.one_in(6):
        resource["modifierExtension"] = [
            {"url": "https://ehr.sandbox.example/do-not-perform", "valueBoolean": False}
        ]
    resource["status"] = "active" if life.version == 1 else "on-hold"
    resource["intent"] = "plan"
    resource["category"] = [concept(SNOMED, "698360004", "Diabetes self management plan")]
    resource["subject"] = chart.subject(draws)
    resource["encounter"] = chart.encounter(visit, draws)
    resource["period"] = {"start": partial_date(visit.day, draws)}
    resource["activity"] = [
        {
            "detail": {
                "kind": "ServiceRequest",
                "code": concept(SNOMED, "160670007", "Diabetic diet"),
                "status": "in-progress",
                "doNotPerform": False,
                "dailyAmount": quantity("1800.00", "kcal"),
            }
        },
        {
            "reference": {
                "reference": "https://plans.sandbox.example/fhir/ServiceRequest/sr-1",
                "display": "Walking",
            }
        },
    ]
    if life.changed >= 2:
        resource["note"] = [{"text": draws.pick(NOTES), "time": iso_date(visit.day) + "T10:00:00Z"}]
    return resource


def goal(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """A Goal: a type that no resource has on the first night."""
    resource = envelope("Goal", life)
    resource["lifecycleStatus"] = "active"
    resource["description"] = {"text": draws.pick(NOTES)}
    resource["subject"] = chart.subject(draws)
    resource["startDate"] = partial_date(visit.day, draws)
    resource["target"] = [
        {
            "measure": concept("http://loinc.org", "4548-4", "Hemoglobin A1c"),
            "detailRange": {"low": quantity("5.00", "%"), "high": quantity("7.0", "%")},
            "dueDate": iso_date(visit.day + 180),
        }
    ]
    return resource
