"""Erasing beside runs that have read the lake before, in lakes that hold more than its tables show, and in
lakes that hold nothing. What is left is read from the files."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deltalake import DeltaTable
from published_by_hand import HandMade

from pipeline import cli
from pipeline.errors import ConfigError, LakeError, StillRunning
from pipeline.exports.attachments import linking
from pipeline.exports.attachments.at_work import at_work, those_at_work
from pipeline.exports.attachments.fetched import Content, Fetched
from pipeline.exports.attachments.run import link_attachments
from pipeline.exports.erasing import Erased, erase, erasure
from pipeline.exports.flattening import flat_names, make_flat
from pipeline.tables import delta

N1, N2 = "20260101T020000Z", "20260102T020000Z"
LETTER = b"%PDF-1.4 the letter"
Rows = list[dict[str, Any]]


def resource(kind: str, identifier: str, patient: str = "", **more: Any) -> dict[str, Any]:
    subject = {"subject": {"reference": f"Patient/{patient}"}} if patient else {}
    return {"resourceType": kind, "id": identifier, "meta": {"versionId": "1"}, **subject, **more}


def document(identifier: str, patient: str, content: bytes) -> dict[str, Any]:
    attachment = {"contentType": "application/pdf", "data": base64.b64encode(content).decode()}
    return resource("DocumentReference", identifier, patient, content=[{"attachment": attachment}])


def two_patients(folder: Path, **source: Any) -> HandMade:
    made = HandMade(folder, **source)
    made.publish(N1, *observations())
    return made


def observations() -> Rows:
    return [resource("Patient", "p1"), *(resource("Observation", f"o{n}", f"p{n}") for n in (1, 2))]


def rows(made: HandMade, table: str, column: str = "id") -> list[Any]:
    found = DeltaTable(str(made.folder / "lake/hosp/tables" / table)).to_pyarrow_table()
    return sorted(found.column(column).to_pylist())


def flatten(made: HandMade) -> None:
    make_flat(made.session, N1, "Observation", flat_names("Observation"))


def files_with(made: HandMade, table: str) -> int:
    """Parts in a table's folder, whether its log shows them or not."""
    return len(list((made.folder / "lake/hosp/tables" / table).glob("export_id=*/*.parquet")))


def contents(made: HandMade) -> list[bytes]:
    return sorted(
        path.read_bytes() for path in (made.folder / "lake/hosp/attachments").glob("*") if path.is_file()
    )


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, before: Callable[[], object]) -> list[int]:
    """`before` runs in front of the first call."""
    real, done = getattr(owner, name), []

    def called(*arguments: Any, **more: Any) -> Any:
        if not done:
            done.append(1)
            before()
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, called)
    return done


# --- flat tables -------------------------------------------------------------------------------------


def test_flat_rows_that_were_read_before_an_erasure_are_made_again_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the erasure falls between the making's last look and its commit. While the making lives the
    erasure is no proof, afterwards it is."""
    made = two_patients(tmp_path)
    beside: list[Erased] = []

    def erase_now() -> None:
        monkeypatch.undo()
        beside.append(erase(made.session, "p1", dry_run=False))

    once(monkeypatch, delta, "_commit_parts", erase_now)
    flatten(made)
    (first,) = beside
    assert first.rows["tables/observation"] == 1
    assert first.in_use and not first.proved and isinstance(first.error, StillRunning)
    assert rows(made, "observation_flat") == ["o2"]
    assert files_with(made, "observation_flat") == 1, "nor does a part hold them that no log shows"
    assert erase(made.session, "p1", dry_run=False).proved


def test_flat_rows_are_found_where_their_table_is_older_than_the_exports(tmp_path: Path) -> None:
    """By their own column of the patient, by the ids of what goes, in tables of items too."""
    made = HandMade(tmp_path)
    claim = {"item": [{"sequence": 1}], "patient": {"reference": "Patient/p1"}}
    several = [{"reference": f"Patient/p{n}"} for n in (1, 2)]
    brought = [
        *observations(),
        resource("Claim", "c1") | claim,
        resource("Account", "a1", subject=several),
    ]
    made.publish(N1, *brought)
    for kind in ("Observation", "Claim", "Account"):
        make_flat(made.session, N1, kind, flat_names(kind))
    # Published again, with other lines; one resource is there no more.
    made.publish(N1, *brought[:3], brought[4], attempt=2)
    made.commit(N1, "Claim", [], attempt=2)
    dry = erase(made.session, "p1")
    done = erase(made.session, "p1", dry_run=False)
    flat = ("observation_flat", "claim_flat", "claim_item_flat")
    assert [done.rows[f"tables/{name}"] for name in flat] == [1, 1, 1]
    assert dry.rows == done.rows
    assert done.proved, done
    assert rows(made, "observation_flat") == ["o2"]
    assert rows(made, "claim_item_flat", "claim_id") == []
    assert rows(made, "account_flat") == ["a1"], "of two patients: it stays, as the Account does"
    assert done.mentions["tables/account_flat"] == 1 == done.mentions["tables/account"]


# --- attachments -------------------------------------------------------------------------------------


def test_nothing_is_erased_while_attachments_are_fetched(tmp_path: Path) -> None:
    """Until the run has ended, or is dead and has left its word behind."""
    made = two_patients(tmp_path)
    with at_work(made.session):
        with pytest.raises(StillRunning, match="fetches attachments"):
            erase(made.session, "p1", dry_run=False)
        assert erase(made.session, "p1").rows, "a dry run may look"
        killed = next((tmp_path / "lake/hosp/attachments/_running").iterdir()).read_text()
    assert not those_at_work(made.session)
    dead = json.loads(killed) | {"pid": 2**22 + 1}
    assert made.session.lake.put_new("hosp/attachments/_running/killed.json", json.dumps(dead).encode())
    assert erase(made.session, "p1", dry_run=False).proved


@pytest.mark.parametrize("before", [[], ["d0"]], ids=["the first links", "more links"])
def test_attachments_that_were_read_before_an_erasure_are_not_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[str]
) -> None:
    """A run that began right behind the erasure's look: its links of before are refused, its contents go."""
    made = HandMade(tmp_path, attachments=True)
    for identifier in before:
        made.publish(N2, document(identifier, "p0", b"old"))
        list(link_attachments(made.session))
    made.publish(N1, resource("Patient", "p1"), document("d1", "p1", LETTER), document("d2", "p2", b"other"))
    beside: list[Erased] = []

    def erase_now() -> None:
        monkeypatch.undo()
        with pytest.raises(StillRunning, match="fetches attachments"):
            erase(made.session, "p1", dry_run=False)
        with pytest.MonkeyPatch.context() as unseen:
            unseen.setattr(erasure, "require_quiet", lambda *_, **__: None)
            beside.append(erase(made.session, "p1", dry_run=False))

    once(monkeypatch, linking, "decoded", erase_now)
    (linked,) = link_attachments(made.session)
    assert beside[0].in_use and isinstance(beside[0].error, StillRunning)
    assert linked.states == {"stored": 1}
    assert rows(made, "_attachments", "resource_id") == [*before, "d2"]
    assert contents(made) == [b"old"] * len(before) + [b"other"]
    assert files_with(made, "_attachments") == len(before) + 1
    assert erase(made.session, "p1", dry_run=False).proved


def test_contents_go_that_no_link_names_any_more_or_not_yet(tmp_path: Path) -> None:
    """After a withdrawal, and of a killed run: with its notes."""
    made = HandMade(tmp_path, attachments=True)
    made.publish(N1, resource("Patient", "p1"), document("d2", "p2", b"other"))
    made.publish(N2, document("d1", "p1", LETTER))
    list(link_attachments(made.session))
    made.take_back(N2, "_exports", "documentreference", "_attachments")
    assert made.session.lake.put_new(f"hosp/attachments/{'a' * 64}", b"of a killed run")
    notes = Fetched(made.session, N2)
    notes.note("key", Content("a" * 64, 15, None))
    notes.write()
    assert erase(made.session, "p1").attachments == 2
    done = erase(made.session, "p1", dry_run=False)
    assert done.proved and done.attachments == 2
    assert contents(made) == [b"other"]
    assert not list((tmp_path / "lake/hosp/attachments/_fetched").rglob("*.json"))


def test_without_a_table_of_links_only_what_was_noted_goes_and_the_rest_is_told(tmp_path: Path) -> None:
    made = two_patients(tmp_path)
    for content in "ab":
        assert made.session.lake.put_new(f"hosp/attachments/{content * 64}", content.encode())
    notes = Fetched(made.session, N1)
    notes.note("key", Content("a" * 64, 1, None))
    notes.write()
    done = erase(made.session, "p1", dry_run=False)
    assert contents(made) == [b"b"], "it may be anybody's"
    assert not done.proved and done.left == {"attachments": 1}
    assert done.error is not None and done.error.exit_code == 4


# --- lakes that prove nothing ------------------------------------------------------------------------


def command(made: HandMade, *arguments: str, **config: str) -> tuple[int, str]:
    path = made.folder / "exports.yaml"
    lake = {"lake": str(made.folder / "lake"), **config}
    path.write_text(yaml.safe_dump({**lake, "sources": [made.source.model_dump(mode="json")]}))
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = cli._exit_code(["--config", str(path), "erase", *arguments])
    return code, told.getvalue()


@pytest.mark.parametrize("lake", ["empty", "absent", "a file"])
def test_a_lake_without_the_source_proves_nothing(tmp_path: Path, lake: str) -> None:
    made = two_patients(tmp_path)
    place = tmp_path / "elsewhere"
    if lake == "a file":
        place.write_text("")
    elif lake == "empty":
        place.mkdir()
    for options in ([], ["--yes"]):
        code, told = command(made, "hosp", "p1", *options, lake=str(place))
        assert code == ConfigError.exit_code
        assert "nothing of the source hosp is in the lake" in told and "`lake`" in told
    assert command(made, "hosp", "p1", "--yes")[0] == 0
    with at_work(made.session):
        assert command(made, "hosp", "p1", "--yes")[0] == StillRunning.exit_code


@pytest.mark.parametrize("harm", ["gone", "cut", "pages"])
def test_a_part_that_cannot_be_read_is_told_in_words(tmp_path: Path, harm: str) -> None:
    made = two_patients(tmp_path)
    (part,) = (tmp_path / "lake/hosp/tables/patient").glob("export_id=*/*.parquet")
    whole = part.read_bytes()
    if harm == "gone":
        part.unlink()
    else:
        # The lake's file may be linked to a spool's: a new one takes its place.
        part.unlink()
        part.write_bytes(whole[:-20] if harm == "cut" else whole[:100] + b"\xff" * 500 + whole[600:])
    for options in ([], ["--yes"]):
        code, told = command(made, "hosp", "p1", *options)
        assert code == LakeError.exit_code
        assert f"tables/patient/export_id={N1}/{part.name}" in told and "erase again" in told
        assert "unexpected" not in told
    part.unlink(missing_ok=True)
    part.write_bytes(whole)
    assert erase(made.session, "p1", dry_run=False).proved
    shutil.rmtree(tmp_path / "lake")
