"""The documentation's table of profiles and knobs, made from the profiles themselves."""

from __future__ import annotations

from dataclasses import fields

from pipeline.bulkdata.profiles.catalogue import PROFILES
from pipeline.bulkdata.profiles.profile import US_CORE, US_CORE_AND_CLAIMS, Profile


def profile_table() -> list[list[str]]:
    """One row a knob: its name and each profile's value; the first row is the heading."""
    rows = [["knob", *(f"`{name}`" for name in PROFILES)]]
    for name in knob_notes():
        rows.append([f"`{name}`", *(_cell(getattr(profile, name)) for profile in PROFILES.values())])
    return rows


def knob_notes() -> dict[str, tuple[str, str]]:
    """For each knob: what it does, and what it accepts."""
    return {
        each.name: (each.metadata["says"], each.metadata["form"].accepts)
        for each in fields(Profile)
        if "form" in each.metadata
    }


def as_markdown() -> str:
    """The table, and a line for each knob."""
    heading, *rows = profile_table()
    lines = [_row(heading), _row(["---"] * len(heading)), *map(_row, rows), ""]
    lines += [f"- `{name}`: {says} Accepts {accepts}." for name, (says, accepts) in knob_notes().items()]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "null"
    if value == "":
        return '""'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if value in (US_CORE, US_CORE_AND_CLAIMS):
        return "US Core" if value == US_CORE else "US Core and claims"
    if isinstance(value, tuple | frozenset):
        return ", ".join(value if isinstance(value, tuple) else sorted(value))
    return f"`{value}`" if any(each in str(value) for each in "/[{*") else str(value)


def _row(cells: list[str]) -> str:
    return "| {} |".format(" | ".join(cell.replace("|", "\\|") for cell in cells))
