"""A server that attachments lie on does not answer: what lies elsewhere is fetched and linked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attachments_server import EXPORTS, Answer, Place, document, open_place

from pipeline import cli
from pipeline.errors import AuthError, Unreachable
from pipeline.exports.attachments import links
from pipeline.exports.attachments.run import require_all

ONE, TWO, THREE = EXPORTS
AWAY = Answer(status=503, headers={"Retry-After": "0"})


def many(base: str, count: int = 14, name: str = "far") -> list[dict[str, object]]:
    return [document(f"{name}{number:02}", url=f"{base}/{name}/{number:02}?sig=s") for number in range(count)]


def of(place: Place, name: str, export_id: str) -> set[str]:
    return {state for key, state in place.states(export_id).items() if key.startswith(name)}


def test_a_named_host_that_is_gone_stands_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own export is linked, and an older one; the command names it, and no URL."""
    with open_place(tmp_path) as place:
        gone = place.other.base
        place.other.close()
        place.configure({"allow_hosts": [gone]})
        place.server.binary("1", b"own document")
        own = document("own", url="Binary/1")
        place.publish(ONE, DocumentReference=[own])
        place.publish(TWO, DocumentReference=[*many(gone), own, document("inline", content=b"inline")])
        monkeypatch.setenv("EXPORTS_CONFIG", str(place.config_path))
        assert cli._exit_code(["attachments", "hosp"]) == 6
        told = capsys.readouterr().err
        assert f"10 attachments in a row could not be fetched from {gone}" in told
        assert "/far/" not in told
        assert "sig=" not in told
        assert place.states(ONE) == {"own": "stored"}
        assert of(place, "own", TWO) | of(place, "inline", TWO) == {"stored"}
        assert of(place, "far", TWO) == {"failed"}


def test_a_server_that_comes_back_is_asked_again_for_old_exports_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for and failed is left as it is in old exports; what was not asked for is not."""
    monkeypatch.setattr(links, "_TRIED_AGAIN", 1)
    with open_place(tmp_path) as place:
        other = place.other
        place.configure({"allow_hosts": [other.base]})
        far = [f"/far/{number:02}" for number in range(14)]
        other.answers = dict.fromkeys(far, AWAY)
        place.publish(ONE, DocumentReference=many(other.base))
        place.publish(TWO, DocumentReference=many(other.base))
        newest, old = place.fetch()
        assert (newest.export_id, newest.states, old.states) == (TWO, {"failed": 14}, {"failed": 14})
        asked = len(other.asked)
        assert asked <= 3 * (10 + 4), "those on their way, and no more: not for the next export either"
        assert [each.export_id for each in place.fetch()] == [TWO], "still away: the old one must wait"
        other.answers = {each: Answer(each.encode()) for each in far}
        assert [each.states for each in place.fetch()] == [{"stored": 14}, {"stored": 14}]
        assert place.fetch() == []


def test_a_server_that_asks_for_a_long_pause_gets_it_and_the_others_go_on(tmp_path: Path) -> None:
    with open_place(tmp_path) as place:
        other = place.other
        place.configure({"allow_hosts": [other.base]}, downloads={"concurrency": 1})
        place.server.binary("1", b"own document")
        other.answers = {
            f"/far/{each:02}": Answer(status=429, headers={"Retry-After": "3600"}) for each in range(3)
        }
        place.publish(ONE, DocumentReference=[*many(other.base, 3), document("own", url="Binary/1")])
        found = place.fetch()
        assert place.states() == {"far00": "failed", "far01": "failed", "far02": "failed", "own": "stored"}
        assert len(other.asked) == 1
        with pytest.raises(Unreachable, match=f"3 attachments.*{re.escape(other.base)}.*wait 3600 s"):
            require_all(found)


def test_without_the_scope_for_binaries_what_lies_elsewhere_is_fetched(tmp_path: Path) -> None:
    with open_place(tmp_path) as place:
        place.configure({"allow_hosts": [place.other.base]})
        place.server.answers |= {f"/fhir/Binary/{each}": Answer(status=401) for each in range(12)}
        place.other.answers = {"/far/00": Answer(b"far")}
        own = [document(f"a{each:02}", url=f"Binary/{each}") for each in range(12)]
        place.publish(ONE, DocumentReference=[*own, *many(place.other.base, 1)])
        found = place.fetch()
        assert (of(place, "a", ONE), of(place, "far", ONE)) == ({"failed"}, {"stored"})
        with pytest.raises(AuthError, match=r"12 attachments.*HTTP 401"):
            require_all(found)


def test_new_limits_hold_for_contents_that_are_known(tmp_path: Path) -> None:
    """By the size that came, and where the resource declares no type by the one that came."""
    with open_place(tmp_path) as place:
        place.server.binary("large", b"x" * 3000, "text/plain")
        place.server.binary("film", b"film", "video/mp4")
        place.server.binary("note", b"note", "text/plain")
        named = [document(name, url=f"Binary/{name}") for name in ("large", "film", "note")]
        place.publish(ONE, DocumentReference=named)
        place.fetch()
        assert set(place.states(ONE).values()) == {"stored"}
        place.configure({"megabytes": 0.001, "content_types": ["text/*"]})
        place.publish(TWO, DocumentReference=named)
        place.fetch()
        limited = {"large": "too large", "film": "type not wanted", "note": "stored"}
        assert place.states(TWO) == limited
        assert set(place.states(ONE).values()) == {"stored"}, "until it is named"
        place.fetch(ONE)
        assert place.states(ONE) == limited
        assert len(place.server.paths("/fhir/Binary")) == 3
