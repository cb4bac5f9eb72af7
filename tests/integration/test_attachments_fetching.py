"""Attachments of published exports over real HTTP: what is taken, what is not, and who sees the token."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attachments_server import EXPORTS, Answer, Asked, Place, document, open_place, report
from azure_storage import Azurite
from lake_on_azurite import lake_url

from pipeline.errors import ConfigError, Unreachable
from pipeline.exports.attachments.run import require_all
from pipeline.exports.orphans import find_orphans
from pipeline.exports.repair import withdraw
from pipeline.exports.retention import clean, remove_orphans
from pipeline.exports.session import Session

ONE, TWO, THREE = EXPORTS
PDF = b"%PDF-1.7 a letter of three pages"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha1(content: bytes) -> str:
    return base64.b64encode(hashlib.sha1(content, usedforsecurity=False).digest()).decode()


def linked(place: Place, name: str, export_id: str = ONE) -> dict[str, Any]:
    (row,) = [each for each in place.links(export_id) if each["resource_id"] == name]
    return row


def test_inline_relative_and_absolute_attachments_are_stored_once_by_their_hash(tmp_path: Path) -> None:
    with open_place(tmp_path) as place:
        server = place.server
        server.binary("letter", PDF)
        server.binary("scan", b"scanned", "image/tiff")
        signed = "/files-elsewhere/report.pdf"
        server.answers[signed] = lambda asked: server.guarded(asked, Answer(b"report"))
        place.publish(
            ONE,
            DocumentReference=[
                document("inline", contentType="text/plain", content=b"in the resource", size=15),
                document("relative", url="Binary/letter", contentType="application/pdf", size=len(PDF)),
                document("absolute", url=f"{server.fhir_url}/Binary/scan", hash=sha1(b"scanned")),
                document("same", url="Binary/letter", hash=sha1(PDF)),
                document("query", url=f"{server.base}{signed}?sig=a-capability"),
                document("empty", title="neither url nor data"),
            ],
            DiagnosticReport=[
                report("forms", {"url": "Binary/letter"}, {"data": base64.b64encode(PDF).decode()})
            ],
        )
        (done,) = place.fetch()
        assert done.states == {"stored": 7}
        assert place.blobs == {
            sha256(each): each for each in (b"in the resource", PDF, b"scanned", b"report")
        }
        rows = place.links(ONE)
        assert {(row["resource_id"], row["path"], row["sha256"]) for row in rows} == {
            ("inline", "content[0].attachment", sha256(b"in the resource")),
            ("relative", "content[0].attachment", sha256(PDF)),
            ("absolute", "content[0].attachment", sha256(b"scanned")),
            ("same", "content[0].attachment", sha256(PDF)),
            ("query", "content[0].attachment", sha256(b"report")),
            ("forms", "presentedForm[0]", sha256(PDF)),
            ("forms", "presentedForm[1]", sha256(PDF)),
        }
        assert linked(place, "absolute")["stored_content_type"] == "image/tiff"
        assert linked(place, "relative")["version_id"] == "1"
        assert linked(place, "inline")["inline"] and not linked(place, "relative")["inline"]
        query = linked(place, "query")
        assert query["url"] == f"{server.base}{signed}"
        assert query["url_sha256"] == sha256(f"{server.base}{signed}?sig=a-capability".encode())
        assert "a-capability" not in json.dumps(rows)
        asked = [each for each in server.asked if each.path == "/fhir/Binary/letter"]
        assert {each.bearer for each in asked} == {server.token}
        assert "application/pdf, */*;q=0.1" in {each.headers["accept"] for each in asked}, "raw content"


def test_the_token_goes_nowhere_else_and_other_hosts_must_be_named(tmp_path: Path) -> None:
    """Protocol facts 9 and 28; by the other host's own log."""
    with open_place(tmp_path) as place:
        server, other = place.server, place.other
        other.answers = {"/a.pdf": Answer(PDF), "/moved.pdf": Answer(b"moved")}
        server.answers["/fhir/Binary/moved"] = Answer(
            status=302, headers={"Location": f"{other.base}/moved.pdf"}
        )
        documents = [
            document("foreign", url=f"{other.base}/a.pdf"),
            document("redirected", url="Binary/moved"),
            document("metadata", url="http://169.254.169.254/metadata/instance"),
            document("metadata-tls", url="https://169.254.169.254/metadata/instance"),
            document("protocol-relative", url=f"//localhost:{other.base.rpartition(':')[2]}/a.pdf"),
            document("file", url="file:///etc/passwd"),
            document("password", url=f"{server.base.replace('://', '://user:pass@')}/fhir/Binary/x"),
            document("operation", url="Patient/$export"),
            document("contained", url="#inside"),
        ]
        place.publish(ONE, DocumentReference=documents)
        kicked_off = server.paths("/fhir/Patient")
        (done,) = place.fetch()
        assert done.states == {"refused": len(documents)}
        assert other.asked == [], "not even without the token"
        assert server.paths("/fhir/Patient") == kicked_off
        assert place.blobs == {}
        assert linked(place, "password")["url"] == f"{server.base}/fhir/Binary/x"
        assert linked(place, "file")["url"] is None

        # Also where files of a manifest may take the token there: attachments do not.
        place.configure({"allow_hosts": [other.base]}, downloads={"allow_hosts": [other.base]})
        (done,) = place.fetch(ONE)
        assert {name for name, state in place.states(ONE).items() if state == "stored"} == {
            "foreign",
            "redirected",
        }
        assert {each.path for each in other.asked} == {"/a.pdf", "/moved.pdf"}
        assert [each.bearer for each in other.asked] == [None, None]


def test_too_large_ones_are_not_taken(tmp_path: Path) -> None:
    """By the resource: not asked for; by the announced length: not read; else it stops at the limit."""
    with open_place(tmp_path, {"megabytes": 0.01}) as place:
        server = place.server
        large, wrapped = b"x" * 10_001, base64.b64encode(b"y" * 10_001).decode()
        server.binary("announced", large)
        server.answers["/fhir/Binary/endless"] = Answer(b"x" * 3_000_000, chunked=True)
        server.answers["/fhir/Binary/wrapped"] = Answer(
            json.dumps({"resourceType": "Binary", "data": wrapped}).encode(),
            headers={"Content-Type": "application/fhir+json"},
        )
        server.binary("just", b"x" * 10_000)
        place.publish(
            ONE,
            DocumentReference=[
                document("declared", url="Binary/never", size=10_001),
                document("announced", url="Binary/announced"),
                document("endless", url="Binary/endless"),
                document("wrapped", url="Binary/wrapped"),
                document("inline", content=large),
                document("just", url="Binary/just"),
            ],
        )
        place.fetch()
        states = place.states(ONE)
        assert states.pop("just") == "stored"
        assert set(states.values()) == {"too large"}, states
        assert linked(place, "announced")["reason"].startswith("10001 bytes, "), "not one was read"
        assert linked(place, "endless")["reason"].startswith("more than "), "not all were read"
        assert server.paths("/fhir/Binary/never") == []
        assert list(place.blobs) == [sha256(b"x" * 10_000)]


def test_unwanted_types_are_not_taken(tmp_path: Path) -> None:
    wanted = {"content_types": ["application/pdf", "text/*"], "types": ["DocumentReference"]}
    with open_place(tmp_path, wanted) as place:
        place.server.binary("film", b"film", "video/mp4")
        place.server.binary("note", b"note", "text/rtf; charset=utf-8")
        place.publish(
            ONE,
            DocumentReference=[
                document("declared", url="Binary/never", contentType="image/png"),
                document("answered", url="Binary/film"),
                document("note", url="Binary/note"),
                document("inline", content=b"image", contentType="image/png"),
                document("untyped", content=b"anything"),
                document("parameters", content=b"text", contentType="Text/Plain; charset=utf-8"),
            ],
            DiagnosticReport=[report("other", {"url": "Binary/never", "contentType": "text/plain"})],
        )
        place.fetch()
        assert place.states(ONE) == {
            "declared": "type not wanted",
            "answered": "type not wanted",
            "note": "stored",
            "inline": "type not wanted",
            "untyped": "type not wanted",
            "parameters": "stored",
        }
        assert place.server.paths("/fhir/Binary/never") == []
        assert set(place.blobs) == {sha256(b"note"), sha256(b"text")}


def test_what_is_not_as_promised_is_kept_nowhere(tmp_path: Path) -> None:
    with open_place(tmp_path) as place:
        server = place.server
        server.binary("letter", PDF)
        server.binary("login", b"<html>Sign in</html>", "text/html")
        place.publish(
            ONE,
            DocumentReference=[
                document("size", url="Binary/letter", size=len(PDF) + 1),
                document("hash", url="Binary/letter", hash=sha1(b"another")),
                document("inline", content=PDF, hash=sha1(b"another")),
                document("inline-size", content=PDF, size=1),
                document("no-base64", data="%%%%"),
                document("login", url="Binary/login", contentType="application/pdf"),
            ],
        )
        (done,) = place.fetch()
        assert done.states == {"mismatch": 6}
        assert place.blobs == {}
        row = linked(place, "size")
        assert row["sha256"] is None
        assert row["reason"] == f"{len(PDF) + 1} bytes were promised, {len(PDF)} arrived"
        assert list((tmp_path / "lake" / ".spool").glob("*/*")) == []


def test_a_binary_that_comes_as_a_resource_is_unwrapped(tmp_path: Path) -> None:
    """Also from a server that refuses to give anything but FHIR (406)."""
    with open_place(tmp_path) as place:
        resource = json.dumps(
            {
                "resourceType": "Binary",
                "contentType": "image/png",
                "data": base64.b64encode(b"pixels").decode(),
            }
        ).encode()
        answer = Answer(resource, headers={"Content-Type": "application/fhir+json; charset=utf-8"})

        def strict(asked: Asked) -> Answer:
            return answer if asked.headers["accept"] == "application/fhir+json" else Answer(status=406)

        outcome = json.dumps({"resourceType": "OperationOutcome"}).encode()
        place.server.answers |= {
            "/fhir/Binary/wrapped": answer,
            "/fhir/Binary/strict": strict,
            "/fhir/Binary/outcome": Answer(outcome, headers={"Content-Type": "application/fhir+json"}),
            "/fhir/Binary/json": Answer(b'{"a": 1}', headers={"Content-Type": "application/json"}),
        }
        place.publish(
            ONE,
            DocumentReference=[
                document(
                    "wrapped", url="Binary/wrapped", contentType="image/png", hash=sha1(b"pixels"), size=6
                ),
                document("strict", url="Binary/strict"),
                document("outcome", url="Binary/outcome", contentType="image/png"),
                document("json", url="Binary/json", contentType="application/json"),
            ],
        )
        place.fetch()
        assert place.states(ONE) == {
            "wrapped": "stored",
            "strict": "stored",
            "outcome": "mismatch",
            "json": "stored",
        }
        assert place.blobs == {sha256(each): each for each in (b"pixels", b'{"a": 1}')}
        assert linked(place, "strict")["stored_content_type"] == "image/png"


def test_passing_errors_are_tried_again_and_final_ones_are_not(tmp_path: Path) -> None:
    with open_place(tmp_path) as place:
        server = place.server
        answers = iter([Answer(status=429, headers={"Retry-After": "1"}), Answer(status=503), Answer(PDF)])
        server.answers["/fhir/Binary/busy"] = lambda _: next(answers)
        server.answers["/fhir/Binary/gone"] = Answer(status=410)
        server.answers["/fhir/Binary/forbidden"] = Answer(status=403)
        broken = {"status": 500}
        server.answers["/fhir/Binary/broken"] = lambda _: Answer(b"mended", **broken)
        place.publish(
            ONE,
            DocumentReference=[
                document(each, url=f"Binary/{each}")
                for each in ("busy", "missing", "gone", "forbidden", "broken")
            ],
        )
        found = place.fetch()
        assert place.states(ONE) == {
            "busy": "stored",
            "missing": "gone",
            "gone": "gone",
            "forbidden": "refused",
            "broken": "failed",
        }
        counts = {
            path: server.paths("/fhir/Binary").count(path) for path in set(server.paths("/fhir/Binary"))
        }
        assert counts == {
            "/fhir/Binary/busy": 3,
            "/fhir/Binary/missing": 1,
            "/fhir/Binary/gone": 1,
            "/fhir/Binary/forbidden": 1,
            "/fhir/Binary/broken": 3,
        }
        at = [each.at for each in server.asked if each.path == "/fhir/Binary/busy"]
        assert at[1] - at[0] >= 1.0, "Retry-After"
        with pytest.raises(Unreachable, match="1 attachments could not be fetched"):
            require_all(found)
        broken["status"] = 200
        (again,) = place.fetch()  # by itself: what has failed is tried again
        assert again.states == {"stored": 2, "gone": 2, "refused": 1}
        assert again.fetched == 1
        assert place.fetch() == []
        assert len(place.links()) == 5


def test_a_token_that_expires_is_renewed_and_nobody_asks_a_dead_server_for_ever(tmp_path: Path) -> None:
    with open_place(tmp_path) as place:
        server = place.server
        server.binary("one", b"one")
        place.publish(ONE, DocumentReference=[document("one", url="Binary/one")])
        place.fetch()
        before = server.tokens
        server.tokens += 1  # the one that we hold is refused from now on
        server.binary("two", b"two")
        place.publish(TWO, DocumentReference=[document("two", url="Binary/two")])
        place.fetch()
        assert place.states() == {"one": "stored", "two": "stored"}
        assert server.tokens == before + 2
        names = [f"dead-{number}" for number in range(40)]
        for each in names:
            server.answers[f"/fhir/Binary/{each}"] = Answer(status=503, headers={"Retry-After": "0"})
        place.publish(THREE, DocumentReference=[document(each, url=f"Binary/{each}") for each in names])
        (done,) = place.fetch()
        with pytest.raises(Unreachable, match="10 attachments in a row"):
            require_all([done])
        assert len(server.paths("/fhir/Binary/dead")) < 20 * 3
        assert set(place.states(THREE).values()) == {"failed"}
        for each in names:
            server.binary(each, each.encode())
        (done,) = place.fetch()
        assert done.states == {"stored": 40}


def test_a_later_export_fetches_only_what_is_new_and_a_withdrawn_one_leaves_no_link(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_place(tmp_path) as place, caplog.at_level(logging.DEBUG):
        server = place.server
        contents = {"a": b"letter a", "b": b"letter b", "c": b"letter c", "d": b"letter d"}
        for name, content in contents.items():
            server.binary(name, content)
        first = [
            document("unchanged", url="Binary/a"),
            document("hashed", url="Binary/b", hash=sha1(b"letter b")),
            document("changed", url="Binary/c"),
            document("unversioned", version=None, url="Binary/d"),
        ]
        place.publish(ONE, DocumentReference=first)
        place.fetch()
        asked = len(server.paths("/fhir/Binary"))
        server.binary("c", b"letter c, corrected")
        second = [
            document("unchanged", url="Binary/a"),
            document("hashed", version="2", url="Binary/b", hash=sha1(b"letter b")),
            document("changed", version="2", url="Binary/c"),
            document("unversioned", version=None, url="Binary/d"),
        ]
        place.publish(TWO, DocumentReference=second)
        (done,) = place.fetch()
        assert done.export_id == TWO
        assert done.states == {"stored": 4}
        assert sorted(server.paths("/fhir/Binary")[asked:]) == ["/fhir/Binary/c", "/fhir/Binary/d"]
        assert linked(place, "changed", TWO)["sha256"] == sha256(b"letter c, corrected")
        assert linked(place, "changed", ONE)["sha256"] == sha256(b"letter c")

        withdraw(place.session, TWO)
        assert place.links(TWO) == []
        assert len(place.links(ONE)) == 4
        assert place.fetch() == []
        with pytest.raises(ConfigError, match="not published"):
            place.fetch(TWO)
        assert "unversioned" not in caplog.text
        assert "nobody-else" not in caplog.text
        for name in list(place.blobs):  # a content that somebody has removed is fetched again
            (tmp_path / "lake" / "hosp" / "attachments" / name).unlink()
        place.fetch(ONE)
        assert sha256(b"letter a") in place.blobs


def test_what_no_link_names_any_more_goes_with_what_is_cleaned(tmp_path: Path) -> None:
    """Not before its time, not while a link names it, and not when somebody has begun to link it."""
    with open_place(tmp_path) as place:
        for name in ("a", "b"):
            place.server.binary(name, name.encode())
        both = [document("stays", url="Binary/a"), document("goes", url="Binary/b")]
        place.publish(ONE, DocumentReference=both[:1])
        place.publish(TWO, DocumentReference=both)
        place.fetch()
        withdraw(place.session, TWO)
        stranger = tmp_path / "lake" / "hosp" / "attachments" / "README"
        stranger.write_text("by hand")

        def later(days: int) -> Session:
            return replace(place.session, now=lambda: datetime.now(UTC) + timedelta(days=days))

        assert [each.path for each in clean(later(6)).orphans] == []
        found = find_orphans(later(8), datetime.now(UTC) + timedelta(days=8))
        assert [each.path for each in found.orphans if each.kind == "attachment"] == [
            f"hosp/attachments/{sha256(b'b')}"
        ]
        place.fetch(ONE)  # another commit: somebody is at work
        assert [each for each in remove_orphans(place.session, found) if each.kind == "attachment"] == []
        gone = clean(later(8)).orphans
        assert [each.path for each in gone if each.kind == "attachment"] == [
            f"hosp/attachments/{sha256(b'b')}"
        ]
        assert {path.name for path in stranger.parent.iterdir() if path.is_file()} == {"README", sha256(b"a")}
        log = tmp_path / "lake" / "hosp" / "tables" / "_attachments" / "_delta_log"
        log.rename(tmp_path / "moved")
        assert [each for each in clean(later(9)).orphans if each.kind == "attachment"] == []
        assert set(place.blobs) == {"README", sha256(b"a")}


def test_a_content_that_is_cleaned_away_while_it_is_linked_is_fetched_again(tmp_path: Path) -> None:
    with open_place(tmp_path) as place:
        folder = tmp_path / "lake" / "hosp" / "attachments"
        place.server.binary("a", b"a")

        def cleaning(asked: Asked) -> Answer:
            (folder / sha256(b"a")).unlink()
            return place.server.guarded(asked, Answer(b"last"))

        place.publish(ONE, DocumentReference=[document("d1", url="Binary/a")])
        place.fetch()
        place.configure(downloads={"concurrency": 1})
        place.publish(
            TWO,
            DocumentReference=[
                document("d1", url="Binary/a"),
                document("d2", version=None, url="Binary/last"),
            ],
        )
        place.server.answers["/fhir/Binary/last"] = lambda asked: (
            cleaning(asked) if (folder / sha256(b"last")).exists() is False else Answer(b"last")
        )
        place.fetch()
        assert place.states(TWO) == {"d1": "stored", "d2": "stored"}
        assert set(place.blobs) == {sha256(b"a"), sha256(b"last")}


def test_a_lake_in_azure_storage_holds_them_as_a_folder_does(
    tmp_path: Path, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a content that another run has stored meanwhile."""
    monkeypatch.setenv("HELD", azurite.connection_string)
    auth = {"kind": "connection-string", "connection_string": "env:HELD"}
    with open_place(tmp_path, lake={"lake": lake_url(azurite.new_container()), "lake_auth": auth}) as place:
        lake = place.session.lake
        place.server.binary("a", b"letter a")

        def raced(_: Asked) -> Answer:
            assert lake.put_new(f"hosp/attachments/{sha256(b'raced')}", b"raced")
            return Answer(b"raced")

        place.server.answers["/fhir/Binary/raced"] = raced
        documents = [document(name, url=f"Binary/{name}") for name in ("a", "raced")]
        documents.append(document("inline", content=b"in"))
        place.publish(ONE, DocumentReference=documents)
        (done,) = place.fetch()
        assert done.states == {"stored": 3}
        assert place.fetch() == []
        contents = [b"letter a", b"raced", b"in"]
        assert lake.sizes("hosp/attachments") == {sha256(each): len(each) for each in contents}
        assert all(lake.read(f"hosp/attachments/{sha256(each)}") == each for each in contents)
        place.publish(TWO, DocumentReference=documents[:2])
        (done,) = place.fetch()
        assert (done.states, done.fetched) == ({"stored": 2}, 0)
