"""What `check` says about the nights to come (protocol facts 15 and 26, and section 6)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.bulkdata.profiles import profile_of
from pipeline.config import Source
from pipeline.config.source import PROFILE_NAMES
from pipeline.exports.check_nights import about_the_deleted, from_night_to_night
from pipeline.exports.verdict import Doubtful

BASE = "https://fhir.example.org/r4"
GROUP = {"resourceType": "Group", "member": [{"entity": {"reference": f"Patient/{n}"}} for n in range(3)]}
LATER = "later exports ask for changes only"


def said(
    export: dict[str, Any], *, software: str = "", group: dict[str, Any] | None = GROUP, **source: Any
) -> str:
    level = {"level": "group", "group": "g"} if "level" not in export else {}
    entry = {
        "name": "hosp",
        "fhir_url": BASE,
        "auth": {"kind": "none"},
        "export": {**level, **export},
        **source,
    }
    made = Source.model_validate(entry)
    profile = profile_of(made.profile, made.knobs)
    nights = from_night_to_night(made, profile, software, group, BASE, datetime(2026, 1, 1, tzinfo=UTC))
    return nights + about_the_deleted(made)


@pytest.mark.parametrize(
    ("export", "source", "words"),
    [
        ({"since": "never"}, {}, "every export is a full one: since is never"),
        ({"since": "2026-01-31T00:00:00Z"}, {}, "every export begins at 2026-01-31T00:00:00Z, as configured"),
        ({"level": "system"}, {}, LATER),
        ({}, {}, f"{LATER}; the Group lists 3 patients, new ones come by name"),
        ({}, {"knobs": {"patient_list": False}}, "new ones come by a full export of the group"),
        (
            {},
            {"profile": "azure-fhir"},
            "every export is a full one: with _since at level group this server leaves out",
        ),
        ({"level": "system"}, {"profile": "azure-fhir"}, LATER),
    ],
)
def test_what_later_exports_ask_for(export: dict[str, Any], source: dict[str, Any], words: str) -> None:
    assert words in said(export, **source)


@pytest.mark.parametrize("group", [None, {"resourceType": "Group", "quantity": 7}])
def test_a_group_that_does_not_tell_its_members_means_full_exports(group: dict[str, Any] | None) -> None:
    assert "nobody can tell who joined: every export is a full one" in said({}, group=group)


@pytest.mark.parametrize("software", ["HAPI FHIR Server", "Smile CDR", "Microsoft FHIR Server"])
def test_a_server_that_leaves_changes_out_is_warned_of(software: str) -> None:
    with pytest.raises(Doubtful, match="leaves out changes of patients"):
        said({}, software=software)
    assert said({"level": "system"}, software=software) == LATER


@pytest.mark.parametrize(
    ("export", "on_leave", "warned"),
    [
        ({"infer_deletes": True}, "keep", True),
        ({"infer_deletes": True, "since": "never"}, "keep", True),
        ({"infer_deletes": True}, "hide", False),
        ({}, "keep", False),
        ({"infer_deletes": True, "level": "system"}, "keep", False),
    ],
)
def test_that_a_deleted_patient_looks_like_one_who_left_is_said_beforehand(
    export: dict[str, Any], on_leave: str, warned: bool
) -> None:
    assert ("who is deleted and listed in the Group no more" in said(export, on_leave=on_leave)) == warned


def test_the_table_of_profiles_in_the_documentation_says_what_they_do() -> None:
    """docs/incremental.md, `What since: auto does`."""
    text = (Path(__file__).parents[2] / "docs" / "incremental.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if "|" in line
    ]
    header, _, *rows = rows[next(n for n, row in enumerate(rows) if row[0] == "profile") :]
    table = {
        row[0].strip("`"): dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)
    }
    assert table.keys() == set(PROFILE_NAMES)
    for name, told in table.items():
        profile = profile_of(name, {})
        for level in ("group", "patient", "system"):
            cell = told[f"level `{level}`"]
            if level not in profile.levels:
                assert cell == "not offered", (name, level)
            else:
                assert cell.startswith("changes" if level in profile.since_levels else "**full**"), (
                    name,
                    level,
                )
        by_name = "`patient`" in told["new members of the group"]
        assert by_name == profile.patient_list, name
