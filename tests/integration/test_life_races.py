"""Withdraw, cancel, clean, flat tables and kick-off, each in the middle of another: nothing is lost or left.

Where two processes would race, the other one's step is done at that very moment, in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from ingest_by_hand import EXPORT, ingest, session_of, stage_everything
from nightly_site import Site, open_site
from test_export_life import LATER, asked_for, cut_short, half_published, rows, with_source

from pipeline.errors import ConfigError, VerificationFailed
from pipeline.exports import repair, request
from pipeline.exports.attempt import claim_attempt
from pipeline.exports.closing import close
from pipeline.exports.doctor import examine_lake
from pipeline.exports.flattening import make_flat
from pipeline.exports.orphans import find_orphans
from pipeline.exports.owner import this_process
from pipeline.exports.repair import withdraw
from pipeline.exports.request import request_export
from pipeline.exports.retention import remove_orphans
from pipeline.exports.session import Session, utc_now
from pipeline.exports.state import Closed
from pipeline.lake.local import LocalLake
from pipeline.tables import delta, kept
from pipeline.terminal.cancelling import cancel


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    options = {"export_seconds": 0.05, "poll_seconds": 0.0, "patients": 3, "file_lines": 10}
    export = {"types": ["Patient", "Encounter"]}
    knobs = {"knobs": {"partial_below": 0.8}}
    with open_site(tmp_path_factory.mktemp("site"), export=export, source=knobs, **options) as site:
        yield site


@pytest.fixture
def site(opened: Site, tmp_path: Path) -> Site:
    """The installation with a lake of its own for each test."""
    settings = yaml.safe_load(opened.config_path.read_text())
    settings["lake"] = str(tmp_path / "lake")
    opened.config_path.write_text(yaml.safe_dump(settings))
    opened.sandbox.control(faults=[], night=1)
    return _Elsewhere(opened.folder, opened.sandbox, opened.patients, opened.seed)


class _Elsewhere(Site):
    @property
    def lake(self) -> Path:
        return Path(yaml.safe_load(self.config_path.read_text())["lake"])


def incremental(site: Site, run_id: str) -> Session:
    """A source whose exports begin where the one before ended."""
    session = session_of(site, run_id)
    export = session.source.export.model_copy(update={"level": "system", "group": None, "since": "auto"})
    return with_source(session, export=export)


def once_before(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, act: Callable[..., bool]) -> None:
    """Lets `act` run before each call of a function until it says that it has done its part."""
    whole, done = getattr(where, name), []

    def work(*arguments: Any, **named: Any) -> Any:
        if not done:
            done.append(1)
            if not act(*arguments, **named):
                done.clear()
        return whole(*arguments, **named)

    monkeypatch.setattr(where, name, work)


# --- flat tables and a withdrawal ------------------------------------------------------------------------


def test_flat_tables_of_an_export_that_is_withdrawn_meanwhile_are_not_made(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(site, "one")
    asked_for(session, EXPORT)
    ingest(session, EXPORT)

    def withdrawn(lake: LocalLake, source: Path, path: str) -> bool:
        return "patient_flat" in path and bool(withdraw(session, EXPORT))

    once_before(monkeypatch, LocalLake, "put_file", withdrawn)
    with pytest.raises(VerificationFailed, match="withdrawn"):
        make_flat(session, EXPORT, "Patient", ("patient_flat",))
    assert rows(site, "patient_flat", EXPORT) == 0


def test_rows_that_came_behind_a_withdrawal_are_told_and_taken_back_by_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(site, "one")
    asked_for(session, EXPORT)
    ingest(session, EXPORT)
    once_before(monkeypatch, delta, "commit_export", lambda *_, **__: bool(withdraw(session, EXPORT)))
    make_flat(session, EXPORT, "Patient", ("patient_flat",))
    assert rows(site, "patient_flat", EXPORT), "between the look at the facts and the commit"
    assert [each.check for each in examine_lake(session) if each.severity == "error"] == ["rows-withdrawn"]
    assert withdraw(session, EXPORT)[0] == "patient_flat: the rows of this export are taken back"
    assert rows(site, "patient_flat", EXPORT) == 0
    assert withdraw(session, EXPORT) == [f"hosp/{EXPORT} is withdrawn already"]


# --- a withdrawal and what began where the export ended --------------------------------------------------


def test_a_request_that_took_its_watermark_before_a_withdrawal_is_made_anew(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protocol 26: from there on, what the withdrawn export brought would be missing for good."""
    first = incremental(site, "first")
    asked_for(first, EXPORT)
    assert ingest(first, EXPORT).watermark is not None
    whole, withdrawals = request.plan_kickoff, []

    def overtaken(*arguments: Any) -> Any:
        found = whole(*arguments)
        if not withdrawals:
            withdrawals.append(withdraw(first, EXPORT))
        return found

    monkeypatch.setattr(request, "plan_kickoff", overtaken)
    asked = len(site.sandbox.access_log())
    facts = request_export(incremental(site, "second"), LATER)
    assert facts.request is not None
    assert [intent.parameters["since"] is None for intent in facts.intents] == [False, True]
    assert facts.request.intent == 2
    kickoffs = [each for each in site.sandbox.access_log()[asked:] if "$export" in each["path"]]
    assert ["_since" in each["query"] for each in kickoffs] == [False], "the first was never sent"


def test_an_export_is_not_withdrawn_when_one_begins_at_its_end_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = incremental(site, "first"), incremental(site, "second")
    asked_for(first, EXPORT)
    mark = ingest(first, EXPORT).watermark

    def kicked_off(session: Session, export_id: str, state: str, *_: Any) -> bool:
        return state == "withdrawing" and bool(asked_for(second, LATER))

    once_before(monkeypatch, repair, "close", kicked_off)
    with pytest.raises(ConfigError, match=f"{LATER} began where"):
        withdraw(first, EXPORT)
    assert second.ledger.read(LATER).intents[0].parameters["since"] == mark
    assert rows(site, "patient", EXPORT), "what the later one lacks is still there"
    withdraw(second, LATER)
    withdraw(first, EXPORT)
    assert rows(site, "patient", EXPORT) == 0


def test_a_held_export_stands_in_the_way_of_withdrawing_the_one_that_it_began_at(site: Site) -> None:
    """It can be retried, and moves the watermark then."""
    first, second = incremental(site, "first"), incremental(site, "second")
    asked_for(first, EXPORT)
    ingest(first, EXPORT)
    asked_for(second, LATER)
    close(second, LATER, "held", "bad lines")
    with pytest.raises(ConfigError, match=f"{LATER} began where"):
        withdraw(first, EXPORT)
    assert first.ledger.read(EXPORT).closings == {}


def test_every_watermark_that_an_export_had_counts_when_it_is_withdrawn(site: Site) -> None:
    """Ingested again it may have none, or another one; a later export began at the first."""
    first, second = incremental(site, "first"), incremental(site, "second")
    asked_for(first, EXPORT)
    receipt = ingest(first, EXPORT)
    asked_for(second, LATER)
    again = receipt.model_copy(update={"attempt": 2, "watermark": None, "incomplete": ("bad lines",)})
    claim = first.ledger.read(EXPORT).claims[0].model_copy(update={"number": 2})
    first.ledger.write(EXPORT, "attempts/0002.json", claim)
    first.ledger.write(EXPORT, "receipts/0002.json", again)
    assert first.ledger.read(EXPORT).receipt == again
    with pytest.raises(ConfigError, match=f"{LATER} began where"):
        withdraw(first, EXPORT)


# --- cancel ----------------------------------------------------------------------------------------------


def test_cancelling_takes_the_tables_of_a_publish_that_was_cut_short_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = half_published(site, monkeypatch)
    assert "the job on the server is deleted" in cancel(session, EXPORT)
    assert rows(site, "patient", EXPORT) == rows(site, "encounter", EXPORT) == 0
    assert session.next_step(session.ledger.read(EXPORT)) == Closed("cancelled")


def test_rows_that_a_killed_cancel_left_are_told_by_the_doctor_whose_advice_removes_them(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = half_published(site, monkeypatch)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(repair, "take_back", die)
        with pytest.raises(KeyboardInterrupt):
            cancel(session, EXPORT)
    assert session.next_step(session.ledger.read(EXPORT)) == Closed("cancelled")
    (found,) = [each for each in examine_lake(session) if each.check == "publish-cut"]
    assert found.mend == f"`fhir-export withdraw hosp/{EXPORT}` takes them back"
    withdraw(session, EXPORT)
    assert rows(site, "patient", EXPORT) == rows(site, "encounter", EXPORT) == 0
    assert [each for each in examine_lake(session) if each.severity == "error"] == []


# --- clean -----------------------------------------------------------------------------------------------


def orphans_of(session: Session) -> list[str]:
    """All that is unreferenced, whatever its age; removed."""
    return [each.path for each in remove_orphans(session, find_orphans(session, soon()))]


def soon() -> Any:
    return utc_now() + timedelta(seconds=1)


def test_what_is_published_while_a_log_is_being_read_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its facts, read behind the log, would say that nothing is waiting any more; the log has it not yet."""
    session, other = session_of(site, "one"), session_of(site, "two")
    for export_id in (EXPORT, LATER):
        asked_for(session, export_id)
        ingest(session, export_id)
    stage_everything(other, claim_attempt(other, LATER))  # again, by hand
    listing, reading, published = LocalLake.stored, kept.shown_paths, []

    def encounter_first(lake: LocalLake, folder: str) -> Any:
        """A file system lists folders in any order."""
        found = listing(lake, folder)
        first = "tables/encounter/"
        return {name: found[name] for name in sorted(found, key=lambda each: (first not in each, each))}

    def then_published(uri: str, *options: Any) -> set[str]:
        shown = reading(uri, *options)
        if uri.endswith("/encounter") and not published:
            published.append(ingest(session_of(site, "three"), LATER))
        return shown

    monkeypatch.setattr(LocalLake, "stored", encounter_first)
    monkeypatch.setattr(kept, "shown_paths", then_published)
    orphans_of(session)
    assert published
    for kind in ("Patient", "Encounter"):
        assert site.ids_in(kind.lower(), LATER) == site.ids_in_truth(1)[kind]


@pytest.mark.parametrize("lost", ["the newest commit", "the whole log"])
def test_parts_that_a_log_does_not_show_although_a_receipt_counts_them_stay(site: Site, lost: str) -> None:
    """A lake that was restored in part: with the files the table can be made again."""
    session = session_of(site, "one")
    asked_for(session, EXPORT)
    ingest(session, EXPORT)
    before = {Path(path) for path in site.files_of("patient", EXPORT)}
    assert orphans_of(session) == []
    commits = sorted((site.lake / "hosp" / "tables" / "patient" / "_delta_log").glob("*.json"))
    for commit in commits[-1:] if lost == "the newest commit" else commits:
        commit.unlink()
    found = find_orphans(session, soon())
    doubt = f"table patient: its log lacks parts of {EXPORT} that the receipt counts"
    assert found.left_alone == (doubt,)
    assert [each.path for each in found.orphans] == []
    withdraw(session, EXPORT)
    gone = set(orphans_of(session))
    assert {str(path.relative_to(site.lake)) for path in before} <= gone, "then nobody counts them"


# --- measured by an earlier one --------------------------------------------------------------------------


def test_an_old_partition_that_is_ingested_again_is_not_measured_by_a_later_one(site: Site) -> None:
    session = with_source(session_of(site, "one"), on_partial="hold")
    cut_short(site, session, EXPORT)
    assert ingest(session, EXPORT).partial == ()
    site.sandbox.control(faults=[])
    asked_for(session, LATER)
    ingest(replace(session, owner=this_process("two")), LATER)
    again = ingest(replace(session, owner=this_process("three")), EXPORT)
    assert (again.attempt, again.partial) == (2, ())
