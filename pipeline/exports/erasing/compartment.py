"""Whose a resource is: the R4 Patient compartment, as JSON paths.

The paths are those of the search parameters of `CompartmentDefinition/patient` 4.0.1. Where several patients
can be named, a resource is one patient's only when it names nobody else: erasing it would take others' data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

Paths = tuple[str, ...]

_SUBJECT: Paths = ("subject",)
_PATIENT: Paths = ("patient",)

OF: Mapping[str, Paths] = {
    "Account": _SUBJECT,
    "AdverseEvent": _SUBJECT,
    "AllergyIntolerance": _PATIENT,
    "Basic": _SUBJECT,
    "BodyStructure": _PATIENT,
    "CarePlan": _SUBJECT,
    "CareTeam": _SUBJECT,
    "ChargeItem": _SUBJECT,
    "Claim": _PATIENT,
    "ClaimResponse": _PATIENT,
    "ClinicalImpression": _SUBJECT,
    "Communication": _SUBJECT,
    "CommunicationRequest": _SUBJECT,
    "Composition": _SUBJECT,
    "Condition": _SUBJECT,
    "Consent": _PATIENT,
    "Coverage": ("beneficiary",),
    "CoverageEligibilityRequest": _PATIENT,
    "CoverageEligibilityResponse": _PATIENT,
    "DetectedIssue": _PATIENT,
    "DeviceRequest": _SUBJECT,
    "DeviceUseStatement": _SUBJECT,
    "DiagnosticReport": _SUBJECT,
    "DocumentManifest": _SUBJECT,
    "DocumentReference": _SUBJECT,
    "Encounter": _SUBJECT,
    "EnrollmentRequest": ("candidate",),
    "EpisodeOfCare": _PATIENT,
    "ExplanationOfBenefit": _PATIENT,
    "FamilyMemberHistory": _PATIENT,
    "Flag": _SUBJECT,
    "Goal": _SUBJECT,
    "ImagingStudy": _SUBJECT,
    "Immunization": _PATIENT,
    "ImmunizationEvaluation": _PATIENT,
    "ImmunizationRecommendation": _PATIENT,
    "Invoice": _SUBJECT,
    "List": _SUBJECT,
    "MeasureReport": _SUBJECT,
    "Media": _SUBJECT,
    "MedicationAdministration": _SUBJECT,
    "MedicationDispense": _SUBJECT,
    "MedicationRequest": _SUBJECT,
    "MedicationStatement": _SUBJECT,
    "MolecularSequence": _PATIENT,
    "NutritionOrder": _PATIENT,
    "Observation": _SUBJECT,
    "Procedure": _SUBJECT,
    "QuestionnaireResponse": _SUBJECT,
    "RelatedPerson": _PATIENT,
    "RequestGroup": _SUBJECT,
    "ResearchSubject": ("individual",),
    "RiskAssessment": _SUBJECT,
    "ServiceRequest": _SUBJECT,
    "Specimen": _SUBJECT,
    "SupplyDelivery": _PATIENT,
    "SupplyRequest": ("deliverTo",),
    "VisionPrescription": _PATIENT,
}
"""Whom it is about: nobody else counts where one of these names a patient."""

BY: Mapping[str, Paths] = {
    "AllergyIntolerance": ("recorder", "asserter"),
    "Appointment": ("participant.actor",),
    "AppointmentResponse": ("actor",),
    "AuditEvent": ("agent.who", "entity.what"),
    "Basic": ("author",),
    "CarePlan": ("activity.detail.performer",),
    "CareTeam": ("participant.member",),
    "Claim": ("payee.party",),
    "Communication": ("sender", "recipient"),
    "CommunicationRequest": ("sender", "recipient", "requester"),
    "Composition": ("author", "attester.party"),
    "Condition": ("asserter",),
    "Coverage": ("policyHolder", "subscriber", "payor"),
    "DeviceRequest": ("performer",),
    "DocumentManifest": ("author", "recipient"),
    "DocumentReference": ("author",),
    "ExplanationOfBenefit": ("payee.party",),
    "Invoice": ("recipient",),
    "List": ("source",),
    "MedicationAdministration": ("performer.actor",),
    "MedicationDispense": ("receiver",),
    "Observation": ("performer",),
    "Person": ("link.target",),
    "Procedure": ("performer.actor",),
    "Provenance": ("target",),
    "QuestionnaireResponse": ("author",),
    "RequestGroup": ("action.participant",),
    "Schedule": ("actor",),
    "ServiceRequest": ("performer",),
}
"""Who else is in it: they count where the paths of `OF` name no patient at all."""

BEYOND: Mapping[str, Paths] = {
    "Binary": ("securityContext",),
    "Contract": _SUBJECT,
    "Device": _PATIENT,
    "GuidanceResponse": _SUBJECT,
    "Parameters": ("parameter.valueReference",),
    "Task": ("for",),
}
"""About one patient all the same, although R4 has them not in the compartment; `Parameters` heads the block
of a patient (protocol fact 27)."""

KEPT: Mapping[str, Paths] = {"Group": ("member.entity",), "Patient": ("link.other",)}
"""In the compartment, and never erased for a mention: a list of many, and another patient."""

_REFERENCE = re.compile(r"(?:^|/)Patient/([^/?#|]+)(?:/_history(?:/[^/?#|]*)?)?/*(?:[?#|].*)?$", re.DOTALL)
_URN = re.compile(r"^urn:(?:uuid|oid):(.+)$", re.IGNORECASE)


class Standing(Enum):
    """Whose a resource is, from one patient's point of view."""

    OWN = "own"
    OTHERS = "others"
    """Somebody else's, or several patients'."""
    NOBODY = "nobody"
    """It names no patient."""


@dataclass(frozen=True)
class Patient:
    """The patient in question."""

    id: str

    def standing(self, resource: Mapping[str, Any]) -> Standing:
        """Whose the resource is."""
        kind = resource.get("resourceType")
        if kind == "Patient":
            return Standing.OWN if resource.get("id") == self.id else Standing.OTHERS
        if not isinstance(kind, str) or kind in KEPT:
            return Standing.OTHERS
        # What R4 does not know at all is held against the names that nearly all types use.
        about = OF.get(kind) or BEYOND.get(kind) or (() if kind in BY else ("subject", "patient"))
        for paths in (about, BY.get(kind, ())):
            named = self._named(resource, paths)
            if named:
                return Standing.OWN if named == {self.id} else Standing.OTHERS
        return Standing.NOBODY

    def _named(self, resource: Mapping[str, Any], paths: Sequence[str]) -> set[str]:
        found = (self.of_reference(each, path) for path in paths for each in _at(resource, path.split(".")))
        return {each for each in found if each is not None}

    def of_reference(self, reference: object, path: str = "") -> str | None:
        """The id of the patient that a Reference names (protocol fact 32: relative, absolute, with a
        version); None where it names none."""
        if not isinstance(reference, dict) or not isinstance(text := reference.get("reference"), str):
            return None
        if match := _REFERENCE.search(text):
            return match[1]
        if match := _URN.match(text):
            return self.id if match[1] == self.id else None
        stated = str(reference.get("type", "Patient" if path == "patient" else "")).rpartition("/")[2]
        bare = stated == "Patient" and not set(text) & set("/#:? ")
        return text if bare and text else None


def _at(value: object, path: Sequence[str]) -> Iterator[object]:
    """The values at a path, of every element of lists on the way."""
    if isinstance(value, list):
        for each in value:
            yield from _at(each, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _at(value[path[0]], path[1:])
