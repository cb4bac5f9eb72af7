"""The profiles: knobs that can be overridden, addresses that follow, and the documentation's table."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulkdata.exchange import Reply
from pipeline.bulkdata.parameters import KickoffParameters
from pipeline.bulkdata.profiles import (
    PROFILES,
    Profile,
    default_audience,
    fhir_base,
    profile_of,
    profile_table,
    token_url,
)
from pipeline.bulkdata.profiles.table import as_markdown, knob_notes
from pipeline.bulkdata.verdicts import kickoff_refusal
from pipeline.config import PROFILE_NAMES
from pipeline.errors import ConfigError, KickoffRejected, Unreachable

DOCS = Path(__file__).parents[2] / "docs" / "systems" / "profiles.md"
KNOBS = [each.name for each in fields(Profile) if each.name != "name"]

GOOD: dict[str, tuple[Any, Any]] = {
    "scope": ("system/Patient.rs system/Group.rs", "system/Patient.rs system/Group.rs"),
    "token_body": ("json", "json"),
    "base_path": ("/t/{tenant}/r4", "/t/{tenant}/r4"),
    "token_path": ("/oauth/token", "/oauth/token"),
    "audience": ("fhir-service", "fhir-service"),
    "levels": (["system", "group"], ("group", "system")),
    "group_id": ("[0-9]+", "[0-9]+"),
    "types": (["Patient", "Group", "Patient"], ("Patient", "Group")),
    "accepted": (["_since", "_till", "_until"], frozenset({"_since", "_till", "_until"})),
    "output_format": ("application/fhir+ndjson+gzip", "application/fhir+ndjson+gzip"),
    "post": (False, False),
    "until_parameter": ("_till", "_till"),
    "until_lag": (120, 120.0),
    "type_filter_needs_type": (True, True),
    "type_filter_commas": (False, False),
    "one_at_a_time": (True, True),
    "throttled_wait": (30, 30.0),
    "kickoff_500": ("Look at the box.", "Look at the box."),
    "since_levels": (["system", "patient"], ("patient", "system")),
    "patient_list": (False, False),
    "ask_for_deleted": (True, True),
    "since_overlap": (60, 60.0),
    "transaction_time": ("end", "end"),
    "first_poll": (0.5, 0.5),
    "longest_poll": (600, 600.0),
    "empty_result_is_404": (True, True),
    "partial_below": (0.5, 0.5),
    "downloads": ("storage", "storage"),
    "range_resume": (False, False),
    "error_files": ("optional", "optional"),
}


def test_every_profile_of_the_configuration_is_there() -> None:
    assert tuple(PROFILES) == PROFILE_NAMES
    assert all(name == profile.name for name, profile in PROFILES.items())


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_can_be_overridden(knob: str) -> None:
    given_value, expected = GOOD[knob]
    changed = profile_of("smart", {knob: given_value})
    assert getattr(changed, knob) == expected
    for other in (*(each for each in KNOBS if each != knob), "name"):
        assert getattr(changed, other) == getattr(PROFILES["smart"], other)


WRONG = ["nonsense!\x00", "", 17.5, -1, True, [], ["?"], {"a": 1}, None, math.inf, math.nan, 1e9, "/x\n"]


@pytest.mark.parametrize("knob", KNOBS)
def test_what_a_knob_does_not_accept_is_refused_with_its_name_and_what_it_accepts(knob: str) -> None:
    """And what is taken has the type that the field declares: judged here, not by the reader of the knob."""
    hint = get_type_hints(Profile)[knob]
    refused = 0
    for value in WRONG:
        try:
            changed = profile_of("smart", {knob: value})
        except ConfigError as error:
            refused += 1
            assert f"knob {knob} " in str(error)
            assert "It accepts " in error.advice or knob in ("first_poll", "longest_poll", "until_lag")
            assert "nonsense" not in str(error)
        else:
            assert _is_a(getattr(changed, knob), hint)
    assert refused >= 5


def _is_a(value: Any, hint: Any) -> bool:
    text = str(hint)
    if value is None:
        return "None" in text
    if "Literal" in text:
        return f"'{value}'" in text
    if "tuple" in text or "frozenset" in text:
        return isinstance(value, tuple | frozenset) and all(isinstance(each, str) for each in value)
    return type(value).__name__ in text


@given(
    st.dictionaries(
        st.sampled_from([*KNOBS, "name", "nothing", "__class__"]),
        st.none()
        | st.booleans()
        | st.floats()
        | st.integers()
        | st.text(max_size=20)
        | st.lists(st.text(max_size=9), max_size=4)
        | st.sampled_from([given_value for given_value, _ in GOOD.values()]),
        max_size=4,
    )
)
def test_overrides_give_a_whole_profile_or_a_configuration_error(overrides: dict[str, Any]) -> None:
    try:
        changed = profile_of("azure-fhir", overrides)
    except ConfigError:
        return
    assert changed.name == "azure-fhir"
    assert set(overrides) <= set(KNOBS)
    assert 0 < changed.first_poll <= changed.longest_poll < math.inf
    assert 0 < changed.next_poll(50, None) <= changed.longest_poll or changed.longest_poll < 0.5
    assert changed.levels and set(changed.levels) <= {"group", "patient", "system"}
    as_markdown()


def test_an_unknown_knob_is_named_together_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="has no knob range_resumes") as raised:
        profile_of("aidbox", {"range_resumes": True})
    assert all(knob in raised.value.advice for knob in KNOBS)
    with pytest.raises(ConfigError, match="no such profile"):
        profile_of("epic")


@pytest.mark.parametrize(
    ("knobs", "hint"),
    [
        ({"first_poll": 900}, "first_poll is greater"),
        ({"longest_poll": 1}, "first_poll is greater"),
        ({"accepted": ["_since"]}, "until_lag sends _till"),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(knobs: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        profile_of("azure-fhir-export", knobs)


@pytest.mark.parametrize(
    ("profile", "fhir_url", "tenant", "base", "token"),
    [
        ("aidbox", "https://box.example", None, "https://box.example/fhir", "https://box.example/auth/token"),
        (
            "aidbox",
            "https://box.example/fhir/",
            None,
            "https://box.example/fhir",
            "https://box.example/auth/token",
        ),
        ("aidbox", "https://h/box1/fhir", "t", "https://h/box1/fhir", "https://h/box1/auth/token"),
        (
            "smartbox",
            "https://box.example/",
            "my-clinic",
            "https://box.example/tenant/my-clinic/bulk-api",
            "https://box.example/auth/token",
        ),
        (
            "smartbox",
            "https://box.example/tenant/my-clinic/bulk-api",
            None,
            "https://box.example/tenant/my-clinic/bulk-api",
            "https://box.example/auth/token",
        ),
        ("smart", "https://fhir.example/r4/", "ignored", "https://fhir.example/r4", None),
        ("apim-smart", "https://gw.example/smart", None, "https://gw.example/smart", None),
    ],
)
def test_base_and_token_endpoint_follow_from_the_box(
    profile: str, fhir_url: str, tenant: str | None, base: str, token: str | None
) -> None:
    """azure-and-aidbox B: `{base}/fhir`, `{base}/tenant/{tenant}/bulk-api`, `{base}/auth/token`."""
    assert fhir_base(PROFILES[profile], fhir_url, tenant) == base
    assert fhir_base(PROFILES[profile], base, tenant) == base
    assert token_url(PROFILES[profile], fhir_url, tenant) == token


@pytest.mark.parametrize(
    ("fhir_url", "tenant", "hint"),
    [
        ("https://box.example", None, "needs to know the tenant"),
        ("https://box.example", "../x", "no plain name"),
        ("https://box.example", "a/b", "no plain name"),
        ("https://box.example", "", "no plain name"),
        ("https://box.example/tenant/one/bulk-api", "two", "one tenant and the key tenant another"),
    ],
)
def test_a_smartbox_without_a_sound_tenant_is_refused(fhir_url: str, tenant: str | None, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        fhir_base(PROFILES["smartbox"], fhir_url, tenant)


@given(st.text(max_size=30))
def test_no_tenant_leads_out_of_the_box(tenant: str) -> None:
    try:
        base = fhir_base(PROFILES["smartbox"], "https://box.example", tenant)
    except ConfigError:
        return
    parts = urlsplit(base)
    assert (parts.netloc, parts.path.split("/")) == ("box.example", ["", "tenant", tenant, "bulk-api"])
    assert tenant not in (".", "..") and not (parts.query or parts.fragment)


@pytest.mark.parametrize(
    ("fhir_url", "audience"),
    [
        ("https://ws-fhir.fhir.azurehealthcareapis.com", "https://ws-fhir.fhir.azurehealthcareapis.com"),
        ("https://contoso.azurehealthcareapis.com", "https://azurehealthcareapis.com"),
        ("https://contoso.azurehealthcareapis.us", "https://azurehealthcareapis.us"),
        ("https://fhir.example.org:8443/r4", "https://fhir.example.org:8443"),
        ("https://azurehealthcareapis.com.evil.example", "https://azurehealthcareapis.com.evil.example"),
    ],
)
def test_entra_tokens_are_for_the_fhir_service(fhir_url: str, audience: str) -> None:
    """azure-and-aidbox C."""
    assert default_audience(PROFILES["azure-fhir"], fhir_url) == audience
    assert default_audience(PROFILES["smart"], fhir_url) is None


def test_the_profiles_say_what_the_facts_say() -> None:
    """azure-and-aidbox A, B, D; protocol facts 13, 24."""
    apim, aidbox, smartbox = (PROFILES[name] for name in ("apim-smart", "aidbox", "smartbox"))
    fhir, export = PROFILES["azure-fhir"], PROFILES["azure-fhir-export"]
    assert (apim.levels, apim.group_id, apim.empty_result_is_404) == (("group",), "[A-Za-z0-9-]+", True)
    assert (apim.range_resume, apim.error_files, apim.token_path) == (False, "optional", None)
    assert {aidbox.scope, smartbox.scope} == {"system/*.read"}
    assert aidbox.one_at_a_time and smartbox.one_at_a_time
    assert aidbox.accepted == {"_outputFormat", "_type", "_since", "patient"}
    assert (export.downloads, export.until_parameter, export.until_lag) == ("storage", "_till", 300.0)
    assert (fhir.downloads, fhir.audience, fhir.post) == ("auto", "fhir-service", False)
    assert PROFILES["smart"].scope == "system/*.rs"
    assert export.download_auth("auto") == "storage"
    assert export.download_auth("none") == "none"
    assert fhir.download_auth("auto") == "auto"


def test_what_a_profile_adds_is_what_it_accepts() -> None:
    """What the client sends by itself would be refused by its own check otherwise (facts B, D)."""
    for profile in PROFILES.values():
        lag = {"until": "2026-01-01T00:00:00Z"} if profile.until_lag is not None else {}
        profile.check(
            KickoffParameters(
                "group", "g-1", since="2025-01-01T00:00:00Z", output_format=profile.output_format, **lag
            )
        )


def reply(status: int) -> Reply:
    import httpx

    return Reply(status, "https://box.example/fhir/$export", httpx.Headers(), b"")


def test_429_and_500_of_an_aidbox_kick_off_are_explained() -> None:
    """azure-and-aidbox B: another export runs on the box; no storage configured."""
    throttled = kickoff_refusal(reply(429), PROFILES["aidbox"])
    assert (throttled.retry_after, "another export runs" in throttled.reason) == (300.0, True)
    assert "another export" not in kickoff_refusal(reply(429), PROFILES["smart"]).reason
    with pytest.raises((Unreachable, KickoffRejected), match="no storage for bulk exports"):
        kickoff_refusal(reply(500), PROFILES["smartbox"])
    with pytest.raises(Unreachable) as raised:
        kickoff_refusal(reply(500), PROFILES["smart"])
    assert "storage" not in str(raised.value)


def test_the_documentation_has_the_table_as_the_code_has_it() -> None:
    text = DOCS.read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- profiles -->\n")
    table, mark, _ = rest.partition("<!-- /profiles -->")
    assert mark
    assert table == as_markdown()


def test_the_table_has_a_column_a_profile_and_a_row_and_a_line_a_knob() -> None:
    """Read back by a parser of its own."""
    heading, *rows = profile_table()
    assert [re.sub("`", "", each) for each in heading[1:]] == list(PROFILES)
    assert [row[0].strip("`") for row in rows] == KNOBS
    assert set(knob_notes()) == set(KNOBS)
    lines = [line for line in as_markdown().splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {len(PROFILES) + 3}
    cell = dict(zip(heading, next(row for row in rows if row[0] == "`empty_result_is_404`"), strict=True))
    assert (cell["`apim-smart`"], cell["`smart`"]) == ("true", "false")
