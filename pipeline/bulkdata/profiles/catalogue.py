"""The kinds of servers that are known, each as its differences from `smart` (azure-and-aidbox A-E)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.bulkdata.profiles.profile import US_CORE, Profile
from pipeline.errors import ConfigError

_MICROSOFT = Profile(
    name="azure-fhir",
    audience="fhir-service",
    accepted=frozenset({"_outputFormat", "_since", "_till", "_type", "_typeFilter", "includeAssociatedData"}),
    post=False,
    since_levels=("system",),  # others walk the compartments of changed patients only (protocol section 6)
    patient_list=False,
    ask_for_deleted=True,
    until_parameter="_till",
    until_lag=300.0,
    type_filter_needs_type=True,
    type_filter_commas=False,
    first_poll=10.0,
    partial_below=0.8,  # a job that the system cancels answers 200 with part of its files (protocol fact 22)
)
_AIDBOX = Profile(
    name="aidbox",
    scope="system/*.read",
    base_path="/fhir",
    token_path="/auth/token",  # noqa: S106 - a path
    types=US_CORE,
    accepted=frozenset({"_outputFormat", "_type", "_since", "patient"}),
    one_at_a_time=True,
    kickoff_500="Aidbox answers so where no storage for bulk exports is set up.",
)

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="smart"),
        replace(
            _MICROSOFT,
            name="apim-smart",
            audience="token-url",
            levels=("group",),
            group_id="[A-Za-z0-9-]+",
            ask_for_deleted=False,
            until_lag=None,  # what the gateway lets pass to the server is its operator's choice
            empty_result_is_404=True,
            range_resume=False,
            error_files="optional",
            partial_below=None,
        ),
        _AIDBOX,
        replace(_AIDBOX, name="smartbox", base_path="/tenant/{tenant}/bulk-api"),
        _MICROSOFT,
        replace(_MICROSOFT, name="azure-fhir-export", downloads="storage"),
    )
}


def profile_of(name: str, knobs: Mapping[str, Any] | None = None) -> Profile:
    """A source's profile, with the knobs that its configuration sets otherwise. Raises ConfigError."""
    profile = PROFILES.get(name)
    if profile is None:
        raise ConfigError("there is no such profile", f"There are: {', '.join(PROFILES)}.")
    return profile.with_knobs(knobs) if knobs else profile
