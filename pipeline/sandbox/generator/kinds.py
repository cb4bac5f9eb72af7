"""The resource types of the sandbox, each with the number that seeds its streams. Numbers never change."""

from __future__ import annotations

KINDS = {
    "Patient": 1,
    "Practitioner": 2,
    "Organization": 3,
    "Location": 4,
    "Encounter": 5,
    "Condition": 6,
    "Observation": 7,
    "MedicationRequest": 8,
    "Procedure": 9,
    "Immunization": 10,
    "AllergyIntolerance": 11,
    "DiagnosticReport": 12,
    "DocumentReference": 13,
    "Coverage": 14,
    "Claim": 15,
    "ExplanationOfBenefit": 16,
    "CarePlan": 17,
    "Goal": 18,
    "Group": 19,
}

SHARED = ("Practitioner", "Organization", "Location")
"""Outside the patient compartment, given along because patient data refers to them."""
