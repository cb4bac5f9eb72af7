"""What every resource begins with: type, id and meta."""

from __future__ import annotations

from pipeline.sandbox.generator.datatypes import Json, instant
from pipeline.sandbox.generator.identity import resource_id
from pipeline.sandbox.generator.world import Life

US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/"


def envelope(resource_type: str, life: Life, profile: str | None = None) -> Json:
    """`resourceType`, `id` and `meta` of a resource; the zone of `lastUpdated` varies by resource."""
    bits = life.bits >> 44
    meta: Json = {"versionId": str(life.version), "lastUpdated": instant(life.updated, bits & 3)}
    if bits & 12 == 0:
        meta["source"] = "urn:oid:2.16.840.1.113883.3.9999#" + str(life.slot)
    if profile:
        meta["profile"] = [US_CORE + profile]
    return {
        "resourceType": resource_type,
        "id": resource_id(life.bits, life.patient, life.slot),
        "meta": meta,
    }
