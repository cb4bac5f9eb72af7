"""What `since: auto` will come to at this server, before the first night: words for `check`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.config import Source
from pipeline.errors import VerificationFailed
from pipeline.exports.verdict import Doubtful
from pipeline.exports.watermark import is_sound

if TYPE_CHECKING:
    from pipeline.bulkdata.profiles import Profile

_WALKS_CHANGED_PATIENTS = re.compile(r"hapi|smile ?cdr|azure|microsoft", re.IGNORECASE)
"""Software that exports with `_since` only compartments of changed patients (protocol section 6)."""


def from_night_to_night(
    source: Source,
    profile: Profile,
    software: str,
    group: Mapping[str, Any] | None,
    fhir_url: str,
    now: datetime,
) -> str:
    """What later exports ask for, and why. Raises `Doubtful` where that could leave changes out.

    `software`: what the CapabilityStatement calls itself; `group`: the Group, where it could be read.
    """
    since, level = source.export.since, source.export.level
    if since == "never":
        return "every export is a full one: since is never"
    if since != "auto":
        return f"every export begins at {since}, as configured"
    if not is_sound(source, profile):
        return f"every export is a full one: with _since at level {level} this server leaves out changes"
    known = _WALKS_CHANGED_PATIENTS.search(software)
    if known and level != "system":
        raise Doubtful(
            f"the server calls itself {known[0]}: with _since at level {level} such a server leaves out "
            "changes of patients whose own resource did not change",
            "Set `knobs: {since_levels: [system]}` for this source: every export is a full one then, or "
            "change export.level to system (docs/incremental.md)",
        )
    if level != "group":
        return "later exports ask for changes only"
    if group is None:
        return "the Group cannot be read, so nobody can tell who joined: every export is a full one"
    from pipeline.bulkdata.group import patients_of

    try:
        members = patients_of(group, fhir_url, now)
    except VerificationFailed as error:
        return f"{error.cause}, so nobody can tell who joined: every export is a full one"
    joins = "by name" if profile.patient_list else "by a full export of the group"
    return (
        f"later exports ask for changes only; the Group lists {len(members)} patients, new ones come {joins}"
    )


def about_the_deleted(source: Source) -> str:
    """What `infer_deletes` cannot tell of this source: words to add, or none."""
    if source.export.infer_deletes and source.export.level == "group" and source.on_leave == "keep":
        return "; who is deleted and listed in the Group no more counts as one who left, and is kept"
    return ""
