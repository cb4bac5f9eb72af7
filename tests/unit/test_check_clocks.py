"""How far a server's clock is from ours, from what its answers say and when they came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.exports.clocks import Clocks
from pipeline.exports.token_claims import claims_of, uncovered
from pipeline.exports.verdict import Doubtful, NotNeeded

NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)


def noted(*answers: tuple[str, dict[str, str], float, float]) -> Clocks:
    """Answers as (server, headers, sent, received), times in seconds after noon here."""
    clocks = Clocks()
    for who, headers, sent, received in answers:
        clocks.note(who, headers, NOON.timestamp() + sent, NOON.timestamp() + received)
    return clocks


def test_no_date_is_no_verdict() -> None:
    with pytest.raises(NotNeeded):
        noted(("s", {}, 0, 1), ("s", {"date": "yesterday"}, 0, 1)).verdict()


@given(slow=st.floats(0, 600), within=st.floats(0, 1))
def test_a_slow_answer_is_no_wrong_clock(slow: float, within: float) -> None:
    """A Date written at any moment between request and answer agrees with ours."""
    written = NOON + timedelta(seconds=int(slow * within))
    assert "within 1 s of s" in noted(("s", {"date": date(written)}, 0, slow)).verdict()


@given(off=st.integers(62, 100_000), ahead=st.booleans())
def test_a_clock_that_is_off_is_never_taken_for_right(off: int, ahead: bool) -> None:
    theirs = NOON + timedelta(seconds=off if ahead else -off)
    with pytest.raises((Doubtful, ConfigError)) as told:
        noted(("s", {"date": date(theirs)}, 0, 0.2)).verdict()
    assert ("behind" if ahead else "ahead of") in str(told.value.args[0])
    assert isinstance(told.value, ConfigError) == (off - (0.2 if ahead else 1) >= 240)


def test_an_answer_out_of_a_cache_is_as_old_as_it_says() -> None:
    old = {"date": date(NOON - timedelta(hours=2)), "age": "7200"}
    assert "within 1 s" in noted(("s", old, 0, 1)).verdict()


def test_one_good_answer_of_a_server_is_enough() -> None:
    stale = {"date": date(NOON - timedelta(hours=2))}
    fresh = {"date": date(NOON)}
    assert "within 1 s" in noted(("s", stale, 0, 1), ("s", fresh, 0, 1)).verdict()


def test_where_another_server_agrees_with_us_it_is_not_our_clock() -> None:
    wrong = {"date": date(NOON - timedelta(hours=2))}
    with pytest.raises(ConfigError) as told:
        noted(("fhir", wrong, 0, 1), ("token", {"date": date(NOON)}, 0, 1)).verdict()
    assert "tell the operator of fhir" in told.value.advice
    with pytest.raises(ConfigError) as told:
        noted(("fhir", wrong, 0, 1), ("token", wrong, 0, 1)).verdict()
    assert "Set this machine's clock" in told.value.advice


@pytest.mark.parametrize(
    "token",
    ["", "opaque", "a.b.c", "..", "a.bnVsbA.c", "a.W10.c", "a.eyJhdWQiOjF9.c", "a.////.c", "a.\udcff.c"],
)
def test_a_token_that_is_no_jwt_has_no_claims(token: str) -> None:
    found = claims_of(token)
    assert (found.audience, found.roles) == (None, ())


@pytest.mark.parametrize(
    ("scope", "types", "missing"),
    [
        (None, ("Claim",), []),
        ("", ("Claim",), []),
        ("system/*.read", ("Claim",), []),
        ("system/*.rs", ("Claim",), []),
        ("openid profile", ("Claim",), []),
        ("system/Patient.read system/Claim.rs", ("Patient", "Claim"), []),
        ("system/Patient.read", ("Patient", "Claim", "Goal"), ["Claim", "Goal"]),
    ],
)
def test_types_that_a_scope_leaves_out(scope: str | None, types: tuple[str, ...], missing: list[str]) -> None:
    assert uncovered(scope, types) == missing
