"""`_elements`: a resource cut down to some root elements, and marked as cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_ALWAYS = frozenset({"resourceType", "id", "meta", "contained"})
"""`contained` stays: references to it would lead nowhere."""

MANDATORY: dict[str, tuple[str, ...]] = {
    "Encounter": ("status", "class"),
    "Condition": ("subject",),
    "Observation": ("status", "code"),
    "MedicationRequest": ("status", "intent", "medication", "subject"),
    "Procedure": ("status", "subject"),
    "Immunization": ("status", "vaccineCode", "patient", "occurrence"),
    "AllergyIntolerance": ("patient",),
    "DiagnosticReport": ("status", "code"),
    "DocumentReference": ("status", "content"),
    "Coverage": ("status", "beneficiary", "payor"),
    "Claim": ("status", "type", "use", "patient", "created", "provider", "priority", "insurance"),
    "ExplanationOfBenefit": (
        "status", "type", "use", "patient", "created", "insurer", "provider", "outcome", "insurance",
    ),
    "CarePlan": ("status", "intent", "subject"),
    "Goal": ("lifecycleStatus", "description", "subject"),
    "Group": ("type", "actual"),
}  # fmt: skip
_CHOICES = frozenset(
    {"medication", "occurrence", "value", "effective", "onset", "abatement", "performed", "deceased"}
)
_TAG = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}


def subset_of(
    resource_type: str, elements: tuple[tuple[str | None, str], ...]
) -> Callable[[Any], Any] | None:
    """The cut for resources of that type, or None where no element applies to it.

    `elements` are (type or None for any, root element); mandatory elements always stay.
    """
    wanted = {name for owner, name in elements if owner in (None, resource_type)}
    if not wanted:
        return None
    wanted |= _ALWAYS | set(MANDATORY.get(resource_type, ()))
    choices = tuple(wanted & _CHOICES)

    def kept(key: str) -> bool:
        name = key.removeprefix("_")
        return name in wanted or any(name.startswith(choice) and name != choice for choice in choices)

    def cut(resource: dict[str, Any]) -> dict[str, Any]:
        result = {key: value for key, value in resource.items() if kept(key)}
        meta = result.get("meta", {})
        result["meta"] = {**meta, "tag": [*meta.get("tag", ()), _TAG]}
        return result

    return cut
