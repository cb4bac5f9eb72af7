"""Where resources name their patients: the R4 Patient compartment, as JSON paths.

The paths are those of the search parameters of `CompartmentDefinition/patient` 4.0.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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

REFERENCE = re.compile(
    r"(?:^|/)Patient/(?P<id>[^/?#|]+)(?:/_history(?:/[^/?#|]*)?)?/*(?:[?#|].*)?$", re.DOTALL
)
"""A reference to a patient, relative or absolute, with a version or without (protocol fact 32)."""
URN = re.compile(r"^urn:(?:uuid|oid):(?P<id>.+)$", re.IGNORECASE)


def about(resource_type: str) -> Paths:
    """Where a type names the one whom it is about; for what R4 does not know, the names that nearly all types
    use."""
    known = OF.get(resource_type) or BEYOND.get(resource_type)
    return known or (() if resource_type in BY else ("subject", "patient"))


def others(resource_type: str) -> Paths:
    """Where it names others who are in it; they count where it is about nobody."""
    return BY.get(resource_type, ())
