"""Where the next `_since` starts: by complete exports of the same line only, type by type (design, Facts;
protocol facts 15 and 26)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipts_by_hand import OWNER, receipt_of

from pipeline.config import Config
from pipeline.errors import LakeError
from pipeline.exports.facts import ClosingFact, Intent, Receipt, Request
from pipeline.exports.ledger import Facts
from pipeline.exports.lost_marks import note_lost_mark
from pipeline.exports.owner import this_process
from pipeline.exports.planning import Plan
from pipeline.exports.request import asked_for, line_of, plan_kickoff
from pipeline.exports.session import Session
from pipeline.exports.watermark import WHATEVER, Mark, earliest, marks_of, with_overlap

NOW = datetime(2026, 2, 1, 2, tzinfo=UTC)


def night(day: int) -> str:
    return f"202601{day:02d}T020000Z"


def mark_at(day: int) -> str:
    return f"2026-01-{day:02d}T02:00:00Z"


def receipt(mark: str | None) -> Receipt:
    return receipt_of(mark or "", complete=mark is not None)


def facts(day: int, types: Sequence[str] = (), line: str = "line", since: int | None = None) -> Facts:
    parameters = {"types": list(types), "since": mark_at(since) if since else None}
    intent = Intent(
        at=NOW, number=1, owner=OWNER, parameters=parameters, fingerprint="f", since_reason="", line=line
    )
    request = Request(at=NOW, intent=1, status_url="https://s.example/1", owner=OWNER)
    return Facts("hosp", night(day), (intent,), request=request, receipts=(receipt(mark_at(day)),))


# --- marks -------------------------------------------------------------------------------------------------


def test_without_exports_there_is_none() -> None:
    assert marks_of([], ["Patient"]) == {}


def test_each_type_goes_on_from_the_newest_export_that_has_it() -> None:
    exports = [facts(3, ["Condition"]), facts(2, ["Patient"], since=1), facts(1, ["Patient"])]
    found = marks_of(exports, ["Patient", "Condition", "Goal"])
    assert {each: mark.instant for each, mark in found.items()} == {
        "Condition": mark_at(3),
        "Patient": mark_at(2),
    }


def test_whatever_the_server_gives_is_no_list_of_types() -> None:
    assert set(marks_of([facts(1)], [])) == {WHATEVER}
    assert marks_of([facts(1)], ["Patient"]) == {}
    assert marks_of([facts(1, ["Patient"])], []) == {}


def test_no_more_exports_are_read_than_are_needed() -> None:
    read = []

    def exports() -> Any:
        for day in (9, 8, 7):
            read.append(day)
            yield facts(day, ["Patient"], since=day - 1)

    marks_of(exports(), ["Patient"])
    assert read == [9]


def test_full_exports_one_after_the_other_leave_the_mark_of_the_first_for_what_was_deleted() -> None:
    """None of them names deletes, unless those are inferred; the members are those of the newest."""
    exports = [facts(9), facts(8), facts(7, since=6), facts(6)]
    (mark,) = marks_of(exports, []).values()
    assert (mark.facts.export_id, mark.instant) == (night(9), mark_at(7))
    (mark,) = marks_of(exports, [], deletes=False).values()
    assert (mark.facts.export_id, mark.instant) == (night(9), mark_at(9))
    (mark,) = marks_of(exports[:2], []).values()
    assert (mark.facts.export_id, mark.instant) == (night(9), mark_at(8))


def test_the_earliest_is_the_smallest_instant_not_the_smallest_text() -> None:
    """Servers write offsets: 23:30-05:00 is later than 02:00Z of the next day."""
    marks = [Mark(facts(1), each) for each in ("2026-01-30T23:30:00-05:00", "2026-01-31T02:00:00Z")]
    assert earliest(marks) == "2026-01-31T02:00:00Z"


@given(st.datetimes(datetime(2000, 1, 2), datetime(2100, 1, 1)), st.floats(0.001, 86_400))
def test_an_overlap_goes_back_by_so_much_and_never_less(moment: datetime, seconds: float) -> None:
    mark = moment.replace(tzinfo=UTC)
    since = datetime.fromisoformat(with_overlap(mark.isoformat(), seconds))
    assert timedelta(0) <= (mark - timedelta(seconds=seconds)) - since < timedelta(milliseconds=1.001)
    assert with_overlap("2026-01-31T02:00:00+01:00", 0) == "2026-01-31T02:00:00+01:00", (
        "as the server wrote it"
    )


# --- plans -------------------------------------------------------------------------------------------------


def session(folder: Path, profile: str = "smart", moment: datetime = NOW, **source: Any) -> Session:
    export = {"level": "system"} | source.pop("export", {})
    entry = {
        "name": "hosp",
        "profile": profile,
        "fhir_url": "http://127.0.0.1:9/fhir",
        "auth": {"kind": "none"},
        "export": export,
        **source,
    }
    config = Config.model_validate({"lake": "lake", "sources": [entry], "folder": folder})
    return Session(config, config.source(None), this_process("one"), lambda _: True, now=lambda: moment)


def published(made: Session, day: int, since: str | None, mark: Receipt | None = None, **others: Any) -> None:
    """An export as an earlier night left it, with the types of that night."""
    asked = asked_for(made.source, made.profile)
    parameters = {"types": list(others.pop("types", asked.types)), "since": since}
    intent = Intent(
        at=datetime(2026, 1, day, 2, tzinfo=UTC),
        number=1,
        owner=OWNER,
        parameters=parameters,
        fingerprint="f",
        since_reason="",
        line=line_of(made.source, asked),
        **others,
    )
    write = made.ledger.write
    assert write(night(day), "intent.json", intent)
    request = Request(at=intent.at, intent=1, status_url="https://s.example/1", owner=OWNER)
    assert write(night(day), "request.json", request)
    assert write(night(day), "receipts/0001.json", mark or receipt(mark_at(day)))


def plan(made: Session) -> Plan:
    return plan_kickoff(made, Facts("hosp", night(31)))


def test_never_and_an_instant_are_taken_at_their_word(tmp_path: Path) -> None:
    wanted = "2025-06-01T00:00:00Z"
    for since, value in (("never", None), (wanted, wanted)):
        made = session(tmp_path / since[:4], export={"since": since})
        published(made, 5, None)
        assert plan(made).parameters.since == value


def test_auto_goes_on_from_the_last_complete_export(tmp_path: Path) -> None:
    made = session(tmp_path)
    assert plan(made).since.value is None
    published(made, 5, None)
    published(made, 6, mark_at(5))
    assert plan(made).since.value == mark_at(6)


@pytest.mark.parametrize(
    ("profile", "level"), [("azure-fhir", "patient"), ("azure-fhir-export", "group"), ("apim-smart", "group")]
)
def test_auto_stays_full_where_since_would_leave_data_out(tmp_path: Path, profile: str, level: str) -> None:
    """Protocol section 6: compartments of changed patients only."""
    export = {"level": level} | ({"group": "1"} if level == "group" else {})
    made = session(tmp_path, profile, export=export)
    published(made, 5, None)
    since = plan(made).since
    assert since.value is None
    assert since.reason.startswith(f"full: with _since at level {level} this server leaves out changes")


def test_at_microsofts_system_level_auto_goes_on(tmp_path: Path) -> None:
    made = session(tmp_path, "azure-fhir")
    published(made, 5, None)
    assert plan(made).since.value == mark_at(5)


def test_a_type_that_was_added_comes_in_full_by_a_supplement(tmp_path: Path) -> None:
    """The others go on; filters on the new one go with it."""
    first = session(tmp_path, export={"types": ["Patient", "Goal"]})
    published(first, 5, None)
    wanted = {"types": ["Patient", "Goal", "Condition"]}
    made = session(tmp_path, export=wanted)
    found = plan(made)
    assert (found.parameters.types, found.parameters.since) == (("Patient", "Goal"), mark_at(5))
    assert found.lacks.types == ("Condition",)
    assert "Condition" in found.since.reason
    published(made, 6, mark_at(5), types=["Patient", "Goal"])
    published(made, 7, None, types=["Condition"])
    later = plan(made)
    assert (later.parameters.types, later.parameters.since) == (("Patient", "Goal", "Condition"), mark_at(6))
    assert later.lacks.types == ()


def test_other_filters_or_elements_are_another_line(tmp_path: Path) -> None:
    """Changing what is exported starts a new full export, and says so."""
    published(session(tmp_path, export={"types": ["Patient"]}), 5, None)
    found = plan(session(tmp_path, export={"types": ["Patient"], "elements": ["id"]}))
    assert found.since.value is None
    assert found.since.reason == "full: no complete export of the same parameters yet"


def test_the_overlap_is_the_sources_or_the_profiles(tmp_path: Path) -> None:
    made = session(tmp_path, knobs={"since_overlap": 60})
    published(made, 5, None)
    assert plan(made).since.value == "2026-01-05T01:59:00.000Z"
    made = session(tmp_path, knobs={"since_overlap": 60}, export={"since_overlap": 0})
    assert plan(made).since.value == mark_at(5)


def test_a_full_export_is_due_when_its_time_has_come_since_the_last(tmp_path: Path) -> None:
    """Sundays at three: the 4th of January 2026 is one."""
    weekly = {"full_resync": "0 3 * * 0"}
    made = session(tmp_path, **weekly)
    published(made, 4, None)
    published(made, 5, mark_at(4))
    assert plan(replace(made, now=lambda: datetime(2026, 1, 4, 2, 59, tzinfo=UTC))).since.value is not None
    assert plan(replace(made, now=lambda: datetime(2026, 1, 6, 2, tzinfo=UTC))).since.reason == (
        "full: full_resync (0 3 * * 0) is due"
    )
    published(made, 6, None, deletes_from=mark_at(5))
    assert plan(replace(made, now=lambda: datetime(2026, 1, 11, 2, tzinfo=UTC))).since.value == mark_at(5)
    assert plan(replace(made, now=lambda: datetime(2026, 1, 11, 3, tzinfo=UTC))).since.value is None


def test_a_full_export_keeps_the_mark_before_it_for_what_was_deleted(tmp_path: Path) -> None:
    """Protocol fact 31: only an export with `_since` names deletes. Inferred, they need no such mark."""
    weekly = {"full_resync": "0 3 * * 0"}
    for inferred, kept in ((False, mark_at(5)), (True, None)):
        made = session(tmp_path / str(inferred), export={"infer_deletes": inferred}, **weekly)
        published(made, 4, None)
        published(made, 5, mark_at(4))
        assert plan(made).deletes_from == kept


def test_a_supplement_moves_no_other_type_and_no_resync(tmp_path: Path) -> None:
    made = session(tmp_path, full_resync="0 3 * * 0")
    published(made, 4, None)
    published(made, 5, mark_at(4), patients=3)
    made.ledger.write(night(5), "withdrawn.json", ClosingFact(at=NOW, reason="by hand"))
    assert plan(replace(made, now=lambda: datetime(2026, 1, 4, 2, tzinfo=UTC))).since.value == mark_at(4)


def test_a_mark_that_is_later_than_what_the_server_said_after_it_is_none(tmp_path: Path) -> None:
    """Its clock was ahead for a night. What it wrote before it is that late again is before that mark."""
    made = session(tmp_path)
    published(made, 4, None)
    published(made, 5, mark_at(4), mark=receipt(mark_at(9)))
    assert plan(made).since.value == mark_at(9), "nobody can know it yet"
    went_back = receipt(None).model_copy(update={"transaction_time": mark_at(6)})
    published(made, 6, mark_at(9), mark=went_back)
    assert plan(made).since.value == mark_at(4)
    published(made, 7, mark_at(4))
    assert plan(made).since.value == mark_at(7)


def test_an_export_that_lost_its_mark_when_it_was_ingested_again_asks_for_a_full_one(tmp_path: Path) -> None:
    """Those after it began where it ended, and it has not all of it any more."""
    made = session(tmp_path)
    for day in (4, 5, 6):
        published(made, day, mark_at(day - 1) if day > 4 else None)
    later = replace(made, now=lambda: datetime(2026, 1, 6, 12, tzinfo=UTC))
    note_lost_mark(later, later.ledger.read(night(5)), 2)
    assert plan(made).since.value == mark_at(6), "killed before the receipt: it is as it was"
    lost = receipt(None).model_copy(update={"attempt": 2})
    assert made.ledger.write(night(5), "receipts/0002.json", lost)
    assert (
        plan(made).since.reason
        == f"full: hosp/{night(5)} is not complete any more since it was ingested again"
    )
    published(made, 7, None, deletes_from=mark_at(6))
    assert plan(made).since.value == mark_at(6)


def test_an_export_that_had_no_mark_leaves_no_note(tmp_path: Path) -> None:
    made = session(tmp_path)
    published(made, 4, None, mark=receipt(None))
    note_lost_mark(made, made.ledger.read(night(4)), 2)
    assert not made.lake.names("hosp/resync")


def test_full_nights_in_between_lose_no_deletes(tmp_path: Path) -> None:
    made = session(tmp_path)
    published(made, 4, None)
    published(made, 5, mark_at(4))
    published(made, 6, None)
    assert plan(made).since.value == mark_at(5), "`since: never` for a night"


def test_without_a_complete_full_export_one_is_due(tmp_path: Path) -> None:
    made = session(tmp_path, full_resync="0 3 * * 0")
    published(made, 5, mark_at(4))
    assert plan(made).since.reason == "full: full_resync (0 3 * * 0) is due: there is no complete full export"


def test_a_note_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    made = session(tmp_path)
    published(made, 4, None)
    assert made.lake.put_new(f"hosp/resync/{night(4)}-0002.json", b"{")
    with pytest.raises(LakeError, match="cannot be read"):
        plan(made)
