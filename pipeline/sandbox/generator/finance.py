"""Coverage, Claim and ExplanationOfBenefit resources: deep, and full of amounts."""

from __future__ import annotations

from decimal import Decimal

from pipeline.sandbox.generator.chart import Chart
from pipeline.sandbox.generator.datatypes import (
    ICD10,
    SNOMED,
    TERMINOLOGY,
    Json,
    coding,
    concept,
    date_time,
    iso_date,
    money,
    partial_date,
    period,
)
from pipeline.sandbox.generator.draws import Draws
from pipeline.sandbox.generator.envelope import envelope
from pipeline.sandbox.generator.world import Life, Visit

_SERVICES = (
    ("162673000", "General examination of patient (procedure)"),
    ("710824005", "Assessment of health and social care needs (procedure)"),
    ("428211000124100", "Assessment of substance use (procedure)"),
)
_BENEFIT = "https://bluebutton.cms.gov/resources/codesystem/adjudication"


def coverage(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """A Coverage whose payor is known by an identifier of an assigner of an assigner."""
    resource = envelope("Coverage", life)
    resource["status"] = "active" if life.version == 1 else "cancelled"
    resource["type"] = concept(TERMINOLOGY + "v3-ActCode", "HIP", "health insurance plan policy")
    resource["subscriberId"] = f"{chart.number:010d}"
    resource["beneficiary"] = chart.subject(draws)
    resource["relationship"] = {"coding": [coding(TERMINOLOGY + "subscriber-relationship", "self")]}
    resource["period"] = {"start": partial_date(visit.day - 500, draws)}
    resource["payor"] = [
        {
            "type": "Organization",
            "identifier": {
                "system": "urn:oid:2.16.840.1.113883.4.4",
                "value": f"{draws.below(10**6):06d}",
                "assigner": {"identifier": {"value": "CMS", "assigner": {"display": "HHS"}}},
            },
            "display": "Caisse Générale d’Assurance",
        }
    ]
    resource["class"] = [
        {
            "type": {"coding": [coding(TERMINOLOGY + "coverage-class", "plan")]},
            "value": "B37FC",
            "name": "Full",
        }
    ]
    resource["order"] = 1
    if draws.one_in(3):
        resource["costToBeneficiary"] = [{"type": {"text": "copay"}, "valueMoney": money("20.00")}]
    return resource


def claim(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """A Claim for a visit."""
    total = draws.between(40, 4000)
    resource = envelope("Claim", life)
    resource["status"] = "active" if life.version == 1 else "cancelled"
    resource["type"] = {"coding": [coding(TERMINOLOGY + "claim-type", "institutional")]}
    resource["use"] = "claim"
    resource["patient"] = chart.subject(draws)
    resource["billablePeriod"] = period(visit.day, draws)
    resource["created"] = date_time(visit.day, draws)
    resource["provider"] = chart.organization(draws)
    resource["priority"] = {"coding": [coding(TERMINOLOGY + "processpriority", "normal")]}
    resource["diagnosis"] = [
        {"sequence": 1, "diagnosisCodeableConcept": concept(ICD10, "E11.9", "Type 2 diabetes mellitus")},
        {"sequence": 2, "diagnosisReference": {"reference": "Condition/" + chart.id_of("Condition", 0)}},
    ]
    resource["insurance"] = [{"sequence": 1, "focal": True, "coverage": _coverage(chart)}]
    resource["item"] = [
        _claim_item(chart, visit, draws, sequence) for sequence in range(1, draws.between(2, 5))
    ]
    resource["total"] = money(f"{total}.{draws.below(10)}0")
    return resource


def _claim_item(chart: Chart, visit: Visit, draws: Draws, sequence: int) -> Json:
    item: Json = {
        "sequence": sequence,
        "diagnosisSequence": [1, 2],
        "productOrService": concept(SNOMED, *draws.pick(_SERVICES)),
        "unitPrice": money(f"{draws.between(1, 400)}.{draws.below(100):02d}"),
        "factor": Decimal("1.00"),
        "net": money(f"{draws.between(1, 400)}.{draws.below(100):02d}"),
    }
    if sequence == 1:
        item["servicedDate"] = iso_date(visit.day)
        item["encounter"] = [chart.encounter(visit, draws)]
    if draws.one_in(5):
        item["detail"] = [
            {
                "sequence": 1,
                "productOrService": {"text": "kit"},
                "subDetail": [
                    {
                        "sequence": 1,
                        "productOrService": {"text": "gauze"},
                        "quantity": {"value": Decimal("12.0")},
                    }
                ],
            }
        ]
    return item


def explanation_of_benefit(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """An ExplanationOfBenefit with contained referral and coverage, as Synthea writes them."""
    resource = envelope("ExplanationOfBenefit", life)
    resource["contained"] = [
        {
            "resourceType": "ServiceRequest",
            "id": "referral",
            "status": "completed",
            "intent": "order",
            "subject": {"reference": "Patient/" + chart.patient_id},
            "performer": [chart.practitioner(draws)],
        },
        {
            "resourceType": "Coverage",
            "id": "coverage",
            "status": "active",
            "beneficiary": {"reference": "Patient/" + chart.patient_id},
            "payor": [{"display": "Medicare"}],
        },
    ]
    resource["identifier"] = [
        {"system": "https://bluebutton.cms.gov/resources/variables/clm_id", "value": str(life.bits)}
    ]
    resource["status"] = "active" if life.version == 1 else "cancelled"
    resource["type"] = {"coding": [coding(TERMINOLOGY + "claim-type", "professional")]}
    resource["use"] = "claim"
    resource["patient"] = chart.subject(draws)
    resource["billablePeriod"] = {
        "start": date_time(visit.day, draws),
        "end": date_time(visit.day + 365, draws),
    }
    resource["created"] = date_time(visit.day + 2, draws)
    resource["insurer"] = {"display": "Médicare"}
    resource["provider"] = chart.practitioner(draws)
    resource["referral"] = {"reference": "#referral"}
    resource["claim"] = {"reference": "Claim/" + chart.id_of("Claim", life.slot)}
    resource["outcome"] = "complete"
    resource["insurance"] = [{"focal": True, "coverage": {"reference": "#coverage", "display": "Medicare"}}]
    resource["item"] = [_benefit_item(visit, draws, sequence) for sequence in range(1, draws.between(2, 4))]
    resource["total"] = [
        {
            "category": {"coding": [coding(TERMINOLOGY + "adjudication", "submitted")]},
            "amount": money("129.160"),
        }
    ]
    resource["payment"] = {
        "date": iso_date(visit.day + 30),
        "amount": money(f"{draws.below(1000)}.{draws.below(10**9)}"),
    }
    if life.changed >= 2:
        resource["processNote"] = [{"number": 1, "type": "display", "text": "réévalué"}]
    return resource


def _benefit_item(visit: Visit, draws: Draws, sequence: int) -> Json:
    return {
        "sequence": sequence,
        "category": concept(
            "https://bluebutton.cms.gov/resources/variables/line_cms_type_srvc_cd", "1", "Medical care"
        ),
        "productOrService": concept(SNOMED, *draws.pick(_SERVICES)),
        "servicedPeriod": period(visit.day, draws),
        "locationCodeableConcept": concept(
            TERMINOLOGY + "ex-serviceplace", "19", "Off Campus-Outpatient Hospital"
        ),
        "adjudication": [
            {
                "category": concept(_BENEFIT, code, display),
                "amount": money(f"{draws.between(0, 500)}.{draws.below(10**8)}{draws.below(10**8)}"),
            }
            for code, display in (
                ("line_coinsrnc_amt", "Line Beneficiary Coinsurance Amount"),
                ("line_prvdr_pmt_amt", "Line Provider Payment Amount"),
            )
        ],
    }


def _coverage(chart: Chart) -> Json:
    return {"reference": "Coverage/" + chart.id_of("Coverage", 0), "display": "Medicare"}
