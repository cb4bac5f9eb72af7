"""What differs between kinds of servers, as data: one `Profile` each, with only knobs that this client obeys.

Facts: azure-and-aidbox A (apim-smart), B (aidbox, smartbox), C and D (azure-fhir, azure-fhir-export).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pipeline.bulkdata.parameters import KickoffParameters
from pipeline.errors import ConfigError
from pipeline.retry_after import pace

_US_CORE = (
    "Patient",
    "Practitioner",
    "PractitionerRole",
    "Organization",
    "Location",
    "Encounter",
    "Condition",
    "Observation",
    "MedicationRequest",
    "Medication",
    "Procedure",
    "Immunization",
    "AllergyIntolerance",
    "DiagnosticReport",
    "DocumentReference",
    "CarePlan",
    "CareTeam",
    "Goal",
    "Device",
    "Provenance",
    "RelatedPerson",
)
_US_CORE_AND_CLAIMS = (
    *_US_CORE,
    "Claim",
    "ExplanationOfBenefit",
    "Coverage",
    "ServiceRequest",
    "Specimen",
)
_MICROSOFT_PARAMETERS = frozenset(
    {"_outputFormat", "_since", "_till", "_type", "_typeFilter", "includeAssociatedData"}
)


@dataclass(frozen=True)
class Profile:
    """The knobs of one kind of server.

    `types` is the static list of resource types where the configuration names none. `accepted` are the
    kick-off parameters that the server takes (None: all of them); `check` refuses the others before anything
    is sent. Times are seconds.
    """

    name: str
    types: tuple[str, ...] = _US_CORE_AND_CLAIMS
    levels: tuple[str, ...] = ("group", "patient", "system")
    accepted: frozenset[str] | None = None
    post: bool = True
    """Whether a kick-off by POST is understood."""
    until_parameter: str = "_until"
    """`_until` (STU3) or `_till` (Microsoft), protocol fact 13."""
    group_id: str | None = None
    """A pattern that group ids must match here, narrower than FHIR's."""
    type_filter_needs_type: bool = False
    type_filter_commas: bool = True
    """Whether a comma inside a filter's value survives."""
    empty_result_is_404: bool = False
    """A status answer 404 without an OperationOutcome means: finished, and nothing to export."""
    first_poll: float = 5.0
    longest_poll: float = 300.0
    throttled_wait: float = 300.0
    """How long to wait after a kick-off answered 429 without Retry-After."""

    def next_poll(self, attempt: int, retry_after: float | None) -> float:
        """Seconds until the next status request, `attempt` counting from 0 (protocol fact 18)."""
        return pace(attempt, retry_after, first=self.first_poll, longest=self.longest_poll)

    def check(self, parameters: KickoffParameters) -> None:
        """Raise ConfigError for a kick-off that this kind of server refuses, or worse, silently narrows."""
        if parameters.level not in self.levels:
            raise ConfigError(
                f"profile {self.name} does not export at level {parameters.level}",
                f"Set export.level to {' or '.join(self.levels)}.",
            )
        if parameters.must_post and not self.post:
            raise ConfigError(f"profile {self.name} takes no list of patients", "Leave patients out.")
        self._check_group(parameters)
        self._check_names(parameters)
        self._check_filters(parameters)

    def _check_group(self, parameters: KickoffParameters) -> None:
        if self.group_id is None or parameters.group is None:
            return
        if not re.fullmatch(self.group_id, parameters.group):
            raise ConfigError(
                f"profile {self.name} takes group ids of the form {self.group_id} only",
                "Correct export.group.",
            )

    def _check_names(self, parameters: KickoffParameters) -> None:
        if self.accepted is None:
            return
        refused = sorted(parameters.names(self.until_parameter) - self.accepted)
        if refused:
            raise ConfigError(
                f"profile {self.name} does not take {', '.join(refused)}",
                "Remove the setting from the export section.",
            )

    def _check_filters(self, parameters: KickoffParameters) -> None:
        if not parameters.type_filters:
            return
        if self.type_filter_needs_type and not parameters.types:
            raise ConfigError(
                f"profile {self.name} takes type_filters only together with types", "Name export.types too."
            )
        if not self.type_filter_commas and any("," in each for each in parameters.type_filters):
            raise ConfigError(
                f"profile {self.name} breaks on a comma inside a type filter",
                "Write one filter for each value: several filters on one type mean OR.",
            )


_MICROSOFT = Profile(
    name="azure-fhir",
    accepted=_MICROSOFT_PARAMETERS,
    post=False,
    until_parameter="_till",
    type_filter_needs_type=True,
    type_filter_commas=False,
    first_poll=10.0,
)
_AIDBOX = Profile(
    name="aidbox", types=_US_CORE, accepted=frozenset({"_outputFormat", "_type", "_since", "patient"})
)

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="smart"),
        replace(
            _MICROSOFT,
            name="apim-smart",
            levels=("group",),
            group_id="[A-Za-z0-9-]+",
            empty_result_is_404=True,
        ),
        _AIDBOX,
        replace(_AIDBOX, name="smartbox"),
        _MICROSOFT,
        replace(_MICROSOFT, name="azure-fhir-export"),
    )
}
