"""A profile: the knobs of one kind of server, and the pure rules that follow from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pipeline.bulkdata.parameters import NDJSON, KickoffParameters
from pipeline.bulkdata.profiles.knobs import (
    BASE_PATH,
    FLAG,
    LAG,
    MEDIA_TYPE,
    PARAMETERS,
    PATTERN,
    SCOPE,
    SECONDS,
    SENTENCE,
    SHARE,
    TOKEN_PATH,
    TYPES,
    Form,
    choice,
    knob,
    some_of,
)
from pipeline.errors import ConfigError
from pipeline.redaction import clean
from pipeline.retry_after import pace

DownloadAuth = Literal["auto", "bearer", "none", "storage"]

US_CORE = (
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
US_CORE_AND_CLAIMS = (
    *US_CORE,
    "Claim",
    "ExplanationOfBenefit",
    "Coverage",
    "ServiceRequest",
    "Specimen",
)


@dataclass(frozen=True)
class Profile:
    """The knobs of one kind of server; each says in its metadata what it does and what it accepts.

    Times are seconds. The defaults are those of a server that keeps to the specification (`smart`).
    """

    name: str

    # Signing in
    scope: str = field(
        default="system/*.rs",
        metadata=knob("The `scope` of the token request, where `auth.scope` names none.", SCOPE),
    )
    token_body: Literal["form", "json"] = field(
        default="form",
        metadata=knob("How the token request is written.", choice("form", "json")),
    )
    base_path: str = field(
        default="",
        metadata=knob(
            "What follows the box's address in the FHIR base; a `fhir_url` that already ends so is taken as "
            "it is.",
            BASE_PATH,
        ),
    )
    token_path: str | None = field(
        default=None,
        metadata=knob(
            "Where the token endpoint lies below the box's address; null: it is discovered.", TOKEN_PATH
        ),
    )
    audience: Literal["token-url", "fhir-service"] = field(
        default="token-url",
        metadata=knob(
            "What the token is for, where `auth.audience` names nothing: the token URL (SMART), or the FHIR "
            "service itself (Entra).",
            choice("token-url", "fhir-service"),
        ),
    )

    # Kick-off
    levels: tuple[str, ...] = field(
        default=("group", "patient", "system"),
        metadata=knob("The levels that can be exported.", some_of("group", "patient", "system")),
    )
    group_id: str | None = field(
        default=None,
        metadata=knob("The form of a group's id, where it is narrower than FHIR's.", PATTERN),
    )
    types: tuple[str, ...] = field(
        default=US_CORE_AND_CLAIMS,
        metadata=knob("The resource types that get a table where `export.types` names none.", TYPES),
    )
    accepted: frozenset[str] | None = field(
        default=None,
        metadata=knob(
            "The kick-off parameters that the server takes, null: all. Others are refused before anything is "
            "sent.",
            PARAMETERS,
        ),
    )
    output_format: str | None = field(
        default=NDJSON,
        metadata=knob("`_outputFormat`, to the letter; null: not sent.", MEDIA_TYPE),
    )
    post: bool = field(
        default=True,
        metadata=knob("Whether a kick-off by POST is understood (a list of patients needs it).", FLAG),
    )
    until_parameter: str = field(
        default="_until",
        metadata=knob("What the end of the time window is called.", choice("_until", "_till")),
    )
    until_lag: float | None = field(
        default=None,
        metadata=knob(
            "How far behind now the end of the time window is set, in seconds, so that resources that are "
            "being written are left to the next export; null: none is sent.",
            LAG,
        ),
    )
    type_filter_needs_type: bool = field(
        default=False,
        metadata=knob("Whether `_typeFilter` is taken only together with `_type`.", FLAG),
    )
    type_filter_commas: bool = field(
        default=True,
        metadata=knob("Whether a comma inside a filter's value survives.", FLAG),
    )
    one_at_a_time: bool = field(
        default=False,
        metadata=knob("Whether a kick-off answered 429 means that another export runs there.", FLAG),
    )
    throttled_wait: float = field(
        default=300.0,
        metadata=knob("How long to wait after a kick-off answered 429 without `Retry-After`.", SECONDS),
    )
    kickoff_500: str = field(
        default="",
        metadata=knob("What a kick-off answered 500 usually means there; empty: nothing special.", SENTENCE),
    )

    # From night to night
    since_levels: tuple[str, ...] = field(
        default=("group", "patient", "system"),
        metadata=knob(
            "The levels at which `_since` finds every change; at others `since: auto` exports in full "
            "(docs/incremental.md).",
            some_of("group", "patient", "system"),
        ),
    )
    patient_list: bool = field(
        default=True,
        metadata=knob(
            "Whether new members of a group can be asked for by name (POST with `patient`); else the whole "
            "group is exported in full when somebody has joined.",
            FLAG,
        ),
    )
    ask_for_deleted: bool = field(
        default=False,
        metadata=knob(
            "Whether soft-deleted resources are asked for (`includeAssociatedData=_deleted`); not together "
            "with type filters, which Microsoft's server refuses then.",
            FLAG,
        ),
    )
    since_overlap: float = field(
        default=0.0,
        metadata=knob(
            "How many seconds `since: auto` goes back behind the watermark, where `export.since_overlap` "
            "does not say.",
            SECONDS,
        ),
    )
    transaction_time: Literal["start", "end"] = field(
        default="start",
        metadata=knob(
            "Whether `transactionTime` is when the export began, as it should be, or when it was done: "
            "`_since` then goes back by the time it took.",
            choice("start", "end"),
        ),
    )

    # Status
    first_poll: float = field(
        default=5.0,
        metadata=knob("Seconds to the second status request, where the server does not say.", SECONDS),
    )
    longest_poll: float = field(
        default=300.0,
        metadata=knob("The longest pause between status requests, where the server does not say.", SECONDS),
    )
    empty_result_is_404: bool = field(
        default=False,
        metadata=knob(
            "Whether a status answer 404 without an OperationOutcome means: finished, nothing to export.",
            FLAG,
        ),
    )

    partial_below: float | None = field(
        default=None,
        metadata=knob(
            "A full export with a type that has less than this share of the lines of the last whole one "
            "counts as partial, for servers that give no sign of a job that they cut short; null: not "
            "compared.",
            SHARE,
        ),
    )

    # Files
    downloads: DownloadAuth = field(
        default="auto",
        metadata=knob(
            "What `downloads.auth: auto` means: by the manifest (`auto`), or everything from the configured "
            "storage account (`storage`), ...",
            choice("auto", "bearer", "none", "storage"),
        ),
    )
    range_resume: bool = field(
        default=True,
        metadata=knob("Whether a broken download goes on where it stopped, if the server offers that.", FLAG),
    )
    error_files: Literal["required", "optional"] = field(
        default="required",
        metadata=knob(
            "Whether an `error` file that must not be asked for (the token would go to a foreign host) fails "
            "the export, or only makes it incomplete.",
            choice("required", "optional"),
        ),
    )

    def with_knobs(self, overrides: Mapping[str, Any]) -> Profile:
        """This profile with some knobs set otherwise, as YAML gives them (`source.knobs`).

        Raises ConfigError that names the knob and what it accepts; values are not repeated.
        """
        known = knobs_of_profile()
        changed: dict[str, Any] = {}
        for name, value in overrides.items():
            form = known.get(name)
            if form is None:
                raise ConfigError(
                    f"profile {self.name} has no knob {clean(name, 60)}", f"There are: {', '.join(known)}."
                )
            try:
                changed[name] = form.read(value)
            except ValueError:
                raise ConfigError(
                    f"the knob {name} of profile {self.name} does not take that value",
                    f"It accepts {form.accepts}.",
                ) from None
        profile = replace(self, **changed)
        profile._check_knobs_fit()
        return profile

    def download_auth(self, configured: DownloadAuth) -> DownloadAuth:
        """What `downloads.auth` of the configuration means here: `auto` leaves it to the profile."""
        return self.downloads if configured == "auto" else configured

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

    def _check_knobs_fit(self) -> None:
        if self.first_poll > self.longest_poll:
            raise ConfigError(
                f"profile {self.name}: the knob first_poll is greater than longest_poll",
                "Correct one of them.",
            )
        if self.until_lag is not None and self.until_parameter not in (
            self.accepted or {self.until_parameter}
        ):
            raise ConfigError(
                f"profile {self.name}: the knob until_lag sends {self.until_parameter}, which the knob "
                "accepted does not hold",
                "Set until_lag to null, or add the parameter to accepted.",
            )

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


def knobs_of_profile() -> dict[str, Form]:
    """Every knob's name and what it accepts, in the documentation's order."""
    return {each.name: each.metadata["form"] for each in fields(Profile) if "form" in each.metadata}
