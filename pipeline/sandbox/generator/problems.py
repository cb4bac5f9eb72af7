"""Condition, Procedure, Immunization and AllergyIntolerance resources."""

from __future__ import annotations

from pipeline.sandbox.generator.chart import Chart
from pipeline.sandbox.generator.datatypes import (
    CPT,
    CVX,
    ICD10,
    SNOMED,
    TERMINOLOGY,
    UCUM,
    Json,
    coding,
    concept,
    date_time,
    iso_date,
    partial_date,
    period,
    quantity,
)
from pipeline.sandbox.generator.draws import Draws
from pipeline.sandbox.generator.envelope import envelope
from pipeline.sandbox.generator.people import NOTES
from pipeline.sandbox.generator.world import Life, Visit

_CONDITIONS = (
    ("44054006", "E11.9", "Diabetes mellitus type 2"),
    ("38341003", "I10", "Hypertensive disorder"),
    ("195662009", "J02.9", "Acute viral pharyngitis"),
    ("73595000", "F43.9", "Stress"),
)
_PROCEDURES = (
    ("430193006", "99495", "Medication reconciliation"),
    ("73761001", "45378", "Colonoscopy"),
    ("399208008", "71046", "Plain chest X-ray"),
)
_VACCINES = (
    ("140", "Influenza, seasonal, injectable, preservative free"),
    ("113", "Td (adult)"),
    ("208", "COVID-19"),
)
_ALLERGENS = (("762952008", "Peanut"), ("264287008", "Animal dander"), ("7980", "Penicillin G"))


def condition(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """A Condition with every form of onset; a later version is resolved."""
    snomed, icd, display = draws.pick(_CONDITIONS)
    resource = envelope("Condition", life, "us-core-condition")
    status = "active" if life.version == 1 else "resolved"
    resource["clinicalStatus"] = {"coding": [coding(TERMINOLOGY + "condition-clinical", status)]}
    resource["verificationStatus"] = {"coding": [coding(TERMINOLOGY + "condition-ver-status", "confirmed")]}
    resource["category"] = [
        concept(TERMINOLOGY + "condition-category", "encounter-diagnosis", "Encounter Diagnosis")
    ]
    resource["code"] = {
        "coding": [{**coding(SNOMED, snomed, display), "userSelected": True}, coding(ICD10, icd)],
        "text": display,
    }
    resource["subject"] = chart.subject(draws)
    resource["encounter"] = chart.encounter(visit, draws)
    form = draws.below(6)
    if form == 0:
        resource["onsetAge"] = {**quantity("52.50", "years", "a"), "system": UCUM}
    elif form == 1:
        resource["onsetString"] = "in early childhood"
    else:
        resource["onsetDateTime"] = partial_date(visit.day - 200, draws)
    if status == "resolved":
        resource["abatementDateTime"] = iso_date(visit.day + 30)
    resource["recordedDate"] = date_time(visit.day, draws)
    if draws.one_in(5):
        resource["stage"] = [{"summary": {"text": "Stage Ⅱ"}}]
    return resource


def procedure(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """A Procedure; now and then its performer is a contained Practitioner."""
    snomed, cpt, display = draws.pick(_PROCEDURES)
    resource = envelope("Procedure", life)
    contained = draws.one_in(9)
    if contained:
        resource["contained"] = [
            {
                "resourceType": "Practitioner",
                "id": "op",
                "name": [{"family": "Rivière", "given": ["Léa", "M."]}],
            }
        ]
    resource["status"] = "completed"
    resource["code"] = {"coding": [coding(SNOMED, snomed, display), coding(CPT, cpt)], "text": display}
    resource["subject"] = chart.subject(draws)
    resource["encounter"] = chart.encounter(visit, draws)
    if draws.one_in(4):
        resource["performedDateTime"] = partial_date(visit.day, draws)
    else:
        resource["performedPeriod"] = period(visit.day, draws)
    actor = {"reference": "#op"} if contained else chart.practitioner(draws)
    resource["performer"] = [{"actor": actor}]
    if draws.one_in(3):
        resource["reasonReference"] = [
            {
                "reference": "Condition?identifier=https://ehr.sandbox.example/problem|42",
                "display": "Problem 42",
            }
        ]
    if life.version > 1:
        resource["note"] = [{"authorString": "QA", "text": draws.pick(NOTES)}]
    return resource


def immunization(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """An Immunization."""
    code, display = draws.pick(_VACCINES)
    resource = envelope("Immunization", life, "us-core-immunization")
    resource["status"] = "completed"
    resource["vaccineCode"] = concept(CVX, code, display)
    resource["patient"] = chart.subject(draws)
    resource["encounter"] = chart.encounter(visit, draws)
    if draws.one_in(10):
        resource["occurrenceString"] = "spring 1998, abroad"
    else:
        resource["occurrenceDateTime"] = date_time(visit.day, draws)
    resource["primarySource"] = draws.one_in(2)
    resource["lotNumber"] = f"L{draws.below(10**6):06d}"
    resource["expirationDate"] = iso_date(visit.day + 300)
    resource["doseQuantity"] = quantity("0.50", "mL")
    resource["protocolApplied"] = [{"doseNumberPositiveInt": draws.between(1, 3), "seriesDosesString": "1–3"}]
    if life.changed >= 2:
        resource["site"] = concept(TERMINOLOGY + "v3-ActSite", "LA", "left arm")
    return resource


def allergy(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """An AllergyIntolerance."""
    resource = envelope("AllergyIntolerance", life)
    resource["clinicalStatus"] = {"coding": [coding(TERMINOLOGY + "allergyintolerance-clinical", "active")]}
    resource["type"] = "allergy"
    resource["category"] = ["food", "environment"] if draws.one_in(2) else ["medication"]
    resource["criticality"] = draws.pick(("low", "high", "unable-to-assess"))
    resource["code"] = concept(SNOMED, *draws.pick(_ALLERGENS))
    resource["patient"] = chart.subject(draws)
    resource["onsetDateTime"] = partial_date(visit.day - 4000, draws)
    resource["recorder"] = chart.practitioner(draws)
    resource["reaction"] = [
        {
            "manifestation": [concept(SNOMED, "247472004", "Wheal"), concept(SNOMED, "49727002", "Cough")],
            "severity": draws.pick(("mild", "moderate", "severe")),
            "onset": partial_date(visit.day - 3000, draws),
        }
    ]
    return resource
