"""The manifest: protocol facts 22, 26, 27, 28, 30."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bulkdata.manifest import (
    Manifest,
    ManifestFile,
    assemble,
    instant_of,
    next_page,
    parse_manifest,
    redacted_page,
    redacted_url,
)
from pipeline.errors import VerificationFailed

STEADY = settings(deadline=None, derandomize=True)  # the machine may be busy

SIGNED = "https://acc.blob.core.windows.net/c/Patient-1.ndjson?sv=2024&sig=SECRETSECRET%3D"


def page(**members: Any) -> dict[str, Any]:
    return {"transactionTime": "2026-01-31T02:00:00Z", "output": [], **members}


def test_a_full_manifest_is_read_in_order_with_all_it_says() -> None:
    """Protocol fact 27."""
    manifest = parse_manifest(
        page(
            request="https://s/fhir/$export",
            requiresAccessToken=True,
            output=[
                {"type": "Patient", "url": "https://s/1", "count": 0, "sha256": "abc"},
                {"type": "Device", "url": "https://s/2", "continuesInFile": "https://s/1"},
            ],
            deleted=[{"type": "Bundle", "url": "https://s/3"}],
            error=[{"type": "OperationOutcome", "url": "https://s/4", "count": "7"}],
            link=[{"relation": "next", "url": "https://s/page2"}],
            status="done",
        )
    )
    assert [each.label for each in manifest.files] == [
        "output[0] (Patient)",
        "output[1] (Device)",
        "deleted[0] (Bundle)",
        "error[0] (OperationOutcome)",
    ]
    assert [each.count for each in manifest.files] == [0, None, None, 7]
    assert manifest.files[0].extra == {"sha256": "abc"}
    assert manifest.files[1].continues_in_file == "https://s/1"
    assert manifest.requires_access_token is True
    assert manifest.links == (("next", "https://s/page2"),)
    assert manifest.pages[0]["status"] == "done"
    assert [each.index for each in manifest.of_kind("output")] == [0, 1]


def test_what_servers_leave_out_is_not_missed() -> None:
    """Protocol fact 27 and azure-and-aidbox B: `request`, `requiresAccessToken`, `error` may be missing."""
    manifest = parse_manifest(page())
    assert manifest.request is None
    assert manifest.requires_access_token is None
    assert manifest.files == ()


def test_stu4_outcomes_are_errors() -> None:
    """Protocol fact 27."""
    manifest = parse_manifest(page(error=[{"url": "https://s/1"}], outcome=[{"url": "https://s/2"}]))
    assert [(each.kind, each.index) for each in manifest.files] == [("error", 0), ("error", 1)]


def test_pages_make_one_manifest_with_indexes_that_run_on() -> None:
    """Section 6: `link next` ignored loses data."""
    first = page(output=[{"type": "Patient", "url": "https://s/1"}], requiresAccessToken=False)
    second = {"output": [{"type": "Patient", "url": "2?sig=x"}], "error": [{"url": "e"}]}
    manifest = assemble([first, second], ["https://s/p/1", "https://s/p/2"])
    assert [(each.kind, each.index, each.url) for each in manifest.files] == [
        ("output", 0, "https://s/1"),
        ("output", 1, "https://s/p/2?sig=x"),
        ("error", 0, "https://s/p/e"),
    ]
    assert manifest.transaction_time == "2026-01-31T02:00:00Z"
    assert manifest.requires_access_token is False
    assert len(manifest.pages) == 2


def test_the_next_page_is_resolved_against_its_own_page() -> None:
    assert (
        next_page(page(link=[{"relation": "next", "url": "?page=2"}]), "https://s/st?x=1")
        == "https://s/st?page=2"
    )
    assert next_page(page(link=[{"relation": "self", "url": "?page=1"}])) is None


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "x",
        {},
        {"transactionTime": "2026-01-31T02:00:00Z"},
        page(transactionTime=None),
        page(transactionTime=" "),
        page(transactionTime=True),
        page(output={}),
        page(output=None),
        page(error="none"),
        page(deleted=7),
        page(output=["https://s/1"]),
        page(output=[{"type": "Patient"}]),
        page(output=[{"type": "Patient", "url": ""}]),
        page(output=[{"type": 7, "url": "https://s/1"}]),
        page(output=[{"url": "https://s/1", "count": -1}]),
        page(output=[{"url": "https://s/1", "count": True}]),
        page(output=[{"url": "https://s/1", "count": "many"}]),
        page(output=[{"url": "https://s/1", "count": 1.5}]),
        page(output=[{"url": "http://[broken"}]),
        {"resourceType": "OperationOutcome", "issue": []},
    ],
)
def test_what_is_no_manifest_is_refused(broken: object) -> None:
    with pytest.raises(VerificationFailed):
        parse_manifest(broken)


def test_a_second_page_without_any_list_of_files_is_refused() -> None:
    with pytest.raises(VerificationFailed):
        assemble([page(), {"resourceType": "OperationOutcome"}])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
entries = st.lists(
    st.fixed_dictionaries({}, optional={"type": json_values, "url": json_values, "count": json_values}),
    max_size=3,
)


@STEADY
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "transactionTime": json_values,
            "requiresAccessToken": json_values,
            "request": json_values,
            "output": st.one_of(entries, json_values),
            "error": st.one_of(entries, json_values),
            "deleted": st.one_of(entries, json_values),
            "link": json_values,
            "extension": json_values,
        },
    )
)
def test_any_json_object_is_a_manifest_or_a_clean_refusal(value: dict[str, Any]) -> None:
    try:
        manifest = parse_manifest(value, "https://s/status")
    except VerificationFailed:
        return
    assert len(manifest.files) == sum(len(value.get(name) or []) for name in ("output", "error", "deleted"))
    assert all(each.count is None or each.count >= 0 for each in manifest.files)
    assert manifest.pages == (value,)
    repr(manifest)
    json.dumps(redacted_page(value))
    manifest.transaction_instant()


def test_signed_queries_are_in_no_repr_and_no_stored_page() -> None:
    """Design, facts: query strings of file URLs are replaced by their sha256 before anything is stored."""
    raw = page(
        request="https://s/fhir/Group/1/$export?_type=Patient",
        output=[
            {"type": "Patient", "url": SIGNED, "continuesInFile": SIGNED, "extension": {"mirror": [SIGNED]}}
        ],
        deleted=[{"url": "/relative?sig=SECRETSECRET"}],
        link=[{"relation": "next", "url": "https://s/p?token=SECRETSECRET"}],
        extension={"note": "see ?sig=SECRETSECRET"},
    )
    manifest = parse_manifest(raw, "https://s/")
    stored = json.dumps(redacted_page(raw))
    for text in (repr(manifest), repr(manifest.files), str(manifest.files[0]), stored):
        assert "SECRET" not in text
    digest = hashlib.sha256(SIGNED.partition("?")[2].encode()).hexdigest()
    assert f"Patient-1.ndjson?sha256={digest}" in stored
    assert "_type=Patient" in stored
    assert raw["output"][0]["url"] == SIGNED
    assert manifest.files[0].url == SIGNED
    assert manifest.files[0].address == SIGNED.partition("?")[0]


@STEADY
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_a_redacted_url_never_keeps_its_query(query: str) -> None:
    redacted = redacted_url(f"https://user:pw@h/p?{query}")
    assert redacted == f"https://h/p?sha256={hashlib.sha256(query.encode()).hexdigest()}"


@pytest.mark.parametrize(
    ("sent", "instant"),
    [
        ("2026-01-31T02:00:00Z", "2026-01-31T02:00:00Z"),
        ("2026-01-31T02:00:00.123456789+01:00", "2026-01-31T02:00:00.123456789+01:00"),
        ("2026-01-31T02:00:00.1234567+0000", "2026-01-31T02:00:00.123456Z"),
        ("2026-01-31 02:00:00Z", "2026-01-31T02:00:00Z"),
        ("2026-01-31 03:00:00.5 +0100 CET", "2026-01-31T02:00:00.500000Z"),
        ("2026-01-31 02:00:00.999999999 +0000 UTC", "2026-01-31T02:00:00.999999Z"),
        ("Sat, 31 Jan 2026 02:00:00 GMT", "2026-01-31T02:00:00Z"),
        ("Sat Jan 31 02:00:00 UTC 2026", "2026-01-31T02:00:00Z"),
        ("Sat Jan 31 2026 03:00:00 GMT+0100 (Central European Standard Time)", "2026-01-31T02:00:00Z"),
        ("1769824800", "2026-01-31T02:00:00Z"),
        ("1769824800250", "2026-01-31T02:00:00.250000Z"),
        ("2026-01-31T02:00:00", None),
        ("2026-01-31", None),
        ("Sat Jan 31 02:00:00 2026", None),
        ("2026-02-31T02:00:00Z", None),
        ("last night", None),
        pytest.param("2026-01-31" + " " * 50_000 + "02:00:00Z", None, id="endless"),
        ("", None),
    ],
)
def test_transaction_times_become_instants_where_they_name_a_moment(sent: str, instant: str | None) -> None:
    """Protocol fact 26: some servers send it in non-ISO form; a guess about the zone could lose data."""
    assert instant_of(sent) == instant
    if sent:
        assert parse_manifest(page(transactionTime=sent)).transaction_time == sent


@STEADY
@given(st.text(max_size=40))
def test_no_transaction_time_breaks_the_reading(sent: str) -> None:
    instant = instant_of(sent)
    assert instant is None or instant_of(instant) == instant


def test_nothing_is_a_manifest_too() -> None:
    """azure-and-aidbox A: v2 answers 404 when the result is wholly empty."""
    assert Manifest.nothing().files == ()
    assert Manifest.nothing().transaction_instant() is None


def test_a_file_is_named_without_its_url() -> None:
    assert ManifestFile("output", 3, "Patient", SIGNED).label == "output[3] (Patient)"
    assert ManifestFile("deleted", 0, None, SIGNED).label == "deleted[0]"


def test_a_file_that_is_named_twice_is_one_file_over_all_pages() -> None:
    """A server that lists a file again must not double its rows; another query is another file."""
    first, other = "https://s/f/1?part=1", "https://s/f/1?part=2"
    entries = [{"type": "Patient", "url": url, "count": 2} for url in (first, other, first)]
    manifest = assemble([page(output=entries), page(output=[entries[1]])])
    assert [(file.index, file.url) for file in manifest.files] == [(0, first), (1, other)]
    assert manifest.repeated == 2
    stored = assemble([redacted_page(each) for each in manifest.pages])
    assert [file.index for file in stored.files] == [0, 1]


def test_a_file_that_is_named_twice_in_two_ways_is_refused() -> None:
    entries = [{"type": "Patient", "url": "https://s/f/1", "count": count} for count in (2, 3)]
    with pytest.raises(VerificationFailed, match="twice"):
        parse_manifest(page(output=entries))
