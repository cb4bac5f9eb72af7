"""Code systems that people look for, by canonical URL and by OID, and a column for each."""

from __future__ import annotations

from pipeline.tables.flat.codes import picked
from pipeline.tables.flat.column import FlatColumn
from pipeline.tables.flat.spot import Spot


def _system(*urls: str, oid: str) -> tuple[str, ...]:
    return (*urls, f"urn:oid:{oid}")


SYSTEMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "loinc": ("LOINC", _system("http://loinc.org", oid="2.16.840.1.113883.6.1")),
    "snomed": ("SNOMED CT", _system("http://snomed.info/sct", oid="2.16.840.1.113883.6.96")),
    "icd10": (
        "ICD-10 (WHO, CM, GM)",
        (
            "http://hl7.org/fhir/sid/icd-10-cm",
            "http://hl7.org/fhir/sid/icd-10",
            "http://fhir.de/CodeSystem/bfarm/icd-10-gm",
            "http://fhir.de/CodeSystem/dimdi/icd-10-gm",
            "urn:oid:2.16.840.1.113883.6.90",
            "urn:oid:2.16.840.1.113883.6.3",
        ),
    ),
    "icd9": ("ICD-9-CM", _system("http://hl7.org/fhir/sid/icd-9-cm", oid="2.16.840.1.113883.6.103")),
    "icd10pcs": (
        "ICD-10-PCS",
        _system(
            "http://www.cms.gov/Medicare/Coding/ICD10",
            "http://hl7.org/fhir/sid/icd-10-pcs",
            oid="2.16.840.1.113883.6.4",
        ),
    ),
    "rxnorm": (
        "RxNorm",
        _system("http://www.nlm.nih.gov/research/umls/rxnorm", oid="2.16.840.1.113883.6.88"),
    ),
    "ndc": ("NDC", _system("http://hl7.org/fhir/sid/ndc", oid="2.16.840.1.113883.6.69")),
    "cvx": ("CVX", _system("http://hl7.org/fhir/sid/cvx", oid="2.16.840.1.113883.12.292")),
    "cpt": ("CPT", _system("http://www.ama-assn.org/go/cpt", oid="2.16.840.1.113883.6.12")),
    "hcpcs": (
        "HCPCS",
        _system(
            "http://www.cms.gov/Medicare/Coding/HCPCSReleaseCodeSets",
            "https://bluebutton.cms.gov/resources/codesystem/hcpcs",
            "http://terminology.hl7.org/CodeSystem/HCPCS",
            oid="2.16.840.1.113883.6.285",
        ),
    ),
}
"""By the prefix of the column: what people call it, and the systems that it stands for."""


def picks(where: Spot, *names: str, many: bool = False) -> list[FlatColumn]:
    """`loinc_code`, `snomed_code`, ... of the CodeableConcept at a spot."""
    return [
        picked(f"{name}_code", where, SYSTEMS[name][1], f"{SYSTEMS[name][0]} code", many=many)
        for name in names
    ]
