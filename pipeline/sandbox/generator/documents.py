"""DiagnosticReport and DocumentReference resources, the ones with the long lines."""

from __future__ import annotations

import base64
import hashlib

from pipeline.sandbox.generator.chart import Chart
from pipeline.sandbox.generator.datatypes import (
    LOINC,
    TERMINOLOGY,
    Json,
    coding,
    concept,
    date_time,
    instant,
    period,
)
from pipeline.sandbox.generator.draws import Draws
from pipeline.sandbox.generator.envelope import envelope
from pipeline.sandbox.generator.observations import PER_VISIT
from pipeline.sandbox.generator.people import NOTES
from pipeline.sandbox.generator.world import FOLLOW_UPS, Life, Visit

_BLOCK = base64.b64encode(hashlib.shake_256(b"scanned page").digest(9216)).decode()
"""12,288 characters of base64 without padding: any multiple of four of them, repeated, decodes."""


def scan(characters: int, draws: Draws) -> str:
    """That many characters (rounded down to a multiple of four) of base64 that looks like a scanned page."""
    start = draws.below(1024) * 4
    rest = characters // 4 * 4
    text = _BLOCK[start : start + rest]
    rest -= len(text)
    return text + _BLOCK * (rest // len(_BLOCK)) + _BLOCK[: rest % len(_BLOCK)]


def diagnostic_report(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """A DiagnosticReport on the observations of its visit."""
    resource = envelope("DiagnosticReport", life)
    resource["status"] = "final" if life.version == 1 else "corrected"
    resource["category"] = [{"coding": [coding(TERMINOLOGY + "v2-0074", "LAB", "Laboratory")]}]
    resource["code"] = concept(LOINC, "51990-0", "Basic metabolic panel - Blood")
    resource["subject"] = chart.subject(draws)
    resource["encounter"] = chart.encounter(visit, draws)
    resource["effectiveDateTime"] = date_time(visit.day, draws)
    resource["issued"] = instant(visit.day * 86_400_000 + draws.below(86_400_000), draws.below(4))
    resource["performer"] = [chart.organization(draws), chart.practitioner(draws)]
    resource["result"] = [
        {"reference": "Observation/" + chart.id_of("Observation", slot), "display": "Result"}
        for slot in _results(chart, visit)
    ]
    resource["conclusion"] = draws.pick(NOTES) * draws.between(1, 12)
    if draws.one_in(6):
        resource["presentedForm"] = [
            {
                "contentType": "application/pdf",
                "language": "en",
                "data": scan(draws.between(200, 3000), draws),
            }
        ]
    if life.changed >= 2:
        resource["conclusionCode"] = [{"text": "reviewed"}]
    return resource


def _results(chart: Chart, visit: Visit) -> range:
    """Slots of some laboratory results of the visit, fewer where `observations_per_patient` is small."""
    if visit.number >= FOLLOW_UPS:
        return range(visit.number + 3, visit.number + 5)
    wanted = chart.world.observations_per_patient
    if wanted is not None and wanted < (visit.number + 1) * PER_VISIT:
        return range(min(wanted, 1))
    return range(visit.number * PER_VISIT + 3, visit.number * PER_VISIT + 5)


def document_reference(chart: Chart, visit: Visit, life: Life, draws: Draws) -> Json:
    """A DocumentReference with its content inline: some kilobytes, for a few documents 200 to 900."""
    long = (chart.number % 50 == 5 and visit.number == 0) or draws.one_in(997)
    data = scan(draws.between(200_000, 900_000) if long else draws.between(400, 6000), draws)
    resource = envelope("DocumentReference", life, "us-core-documentreference")
    resource["identifier"] = [{"system": "urn:ietf:rfc:3986", "value": f"urn:oid:2.25.{life.bits}"}]
    resource["status"] = "current" if life.version == 1 else "superseded"
    resource["docStatus"] = "final"
    resource["type"] = concept(LOINC, "34117-2", "History and physical note")
    resource["category"] = [concept(LOINC, "LP173421-1", "Report")]
    resource["subject"] = chart.subject(draws)
    resource["date"] = instant(visit.day * 86_400_000 + draws.below(86_400_000), draws.below(4))
    resource["author"] = [chart.practitioner(draws)]
    resource["custodian"] = chart.organization(draws)
    resource["content"] = [
        {
            "attachment": {
                "contentType": "application/pdf",
                "data": data,
                "size": len(data) // 4 * 3,
                "title": "Arztbrief – Übersicht.pdf",
                "creation": date_time(visit.day, draws),
            },
            "format": coding(
                "http://ihe.net/fhir/ihe.formatcode.fhir/CodeSystem/formatcode",
                "urn:ihe:iti:xds:2017:mimeTypeSufficient",
            ),
        }
    ]
    resource["context"] = {"encounter": [chart.encounter(visit, draws)], "period": period(visit.day, draws)}
    if life.changed >= 2:
        resource["description"] = draws.pick(NOTES)
    return resource
