"""MedicationRequest resources, with coded, contained and referenced medications."""

from __future__ import annotations

from decimal import Decimal

from pipeline.sandbox.generator.chart import Chart
from pipeline.sandbox.generator.datatypes import RXNORM, SNOMED, Json, concept, date_time, iso_date, quantity
from pipeline.sandbox.generator.draws import Draws
from pipeline.sandbox.generator.envelope import envelope
from pipeline.sandbox.generator.world import Life, Visit

_MEDICATIONS = (
    ("860975", "24 HR Metformin hydrochloride 500 MG Extended Release Oral Tablet"),
    ("314076", "lisinopril 10 MG Oral Tablet"),
    ("259255", "atorvastatin 80 MG Oral Tablet"),
)
_DATA_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"


def medication_request(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """A MedicationRequest; a later version is stopped."""
    code, display = draws.pick(_MEDICATIONS)
    resource = envelope("MedicationRequest", life, "us-core-medicationrequest")
    form = draws.below(5)
    if form == 0:
        resource["contained"] = [
            {
                "resourceType": "Medication",
                "id": "med0",
                "code": concept(RXNORM, code, display),
                "ingredient": [
                    {
                        "itemCodeableConcept": {"text": display},
                        "strength": {"numerator": quantity("10.0", "mg"), "denominator": quantity("1", "1")},
                    }
                ],
            }
        ]
        resource["medicationReference"] = {"reference": "#med0", "display": display}
    elif form == 1:
        resource["medicationReference"] = {
            "reference": "https://drugs.sandbox.example/fhir/Medication/" + code
        }
    else:
        resource["medicationCodeableConcept"] = concept(RXNORM, code, display)
    resource["status"] = "active" if life.version == 1 else "stopped"
    resource["intent"] = "order"
    if draws.one_in(4):
        resource["reportedBoolean"] = False
    resource["subject"] = chart.subject(draws)
    resource["encounter"] = chart.encounter(visit, draws)
    if draws.one_in(9):
        resource["_authoredOn"] = {"extension": [{"url": _DATA_ABSENT, "valueCode": "unknown"}]}
    else:
        resource["authoredOn"] = date_time(visit.day, draws)
    resource["requester"] = chart.practitioner(draws)
    resource["dosageInstruction"] = [_dosage(visit, draws)]
    resource["dispenseRequest"] = {
        "validityPeriod": {"start": iso_date(visit.day), "end": iso_date(visit.day + 365)},
        "numberOfRepeatsAllowed": draws.below(5),
        "quantity": {"value": Decimal("30.000"), "unit": "tablet"},
    }
    if life.changed >= 2:
        resource["priority"] = "routine"
        resource["substitution"] = {"allowedBoolean": True}
    return resource


def _dosage(visit: Visit, draws: Draws) -> Json:
    dosage: Json = {
        "sequence": 1,
        "text": "1 Tablette täglich, « au coucher »",
        "timing": {"repeat": {"frequency": draws.between(1, 3), "period": Decimal("1.0"), "periodUnit": "d"}},
        "asNeededBoolean": draws.one_in(5),
        "route": concept(SNOMED, "26643006", "Oral route"),
        "doseAndRate": [
            {"doseQuantity": {"value": Decimal(draws.pick(("1.0", "0.5", "2"))), "unit": "tablet"}}
        ],
    }
    if draws.one_in(6):
        dosage["timing"] = {
            "event": [f"{iso_date(visit.day)}T08:00:00Z", None],
            "_event": [None, {"extension": [{"url": _DATA_ABSENT, "valueCode": "unknown"}]}],
        }
    return dosage
