"""A file that is not what was promised: the export fails, the bytes are kept, and it says what differed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from file_server import EXPORT, Ask, Say, configured, file_server, ingest, patient, session_of

from pipeline.errors import VerificationFailed
from pipeline.exports import rejected
from pipeline.exports.session import Session
from pipeline.lake.local import LocalLake

DATA = b"".join(patient(number) for number in range(20))
PAGE = b"<!DOCTYPE html><html><body>Sign in, Mrs. Featherstonehaugh</body></html>"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bulkdata.client.pace", lambda *_, **__: 0.0)


def kept(session: Session) -> list[tuple[Path, dict[str, Any]]]:
    """The bytes and the report of each refused file."""
    folder = Path(session.lake.full(rejected.rejected_folder("many", EXPORT)))
    return [
        (path, json.loads(path.with_suffix(".json").read_text())) for path in sorted(folder.glob("*.bin"))
    ]


def refused(session: Session) -> VerificationFailed:
    with pytest.raises(VerificationFailed) as caught:
        ingest(session)
    assert session.ledger.read(EXPORT).receipt is None
    assert not list(Path(session.lake.full("many")).glob("tables/*/_delta_log"))
    return caught.value


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def test_a_login_page_is_kept_and_named(tmp_path: Path) -> None:
    """Protocol fact 34: its words are in the lake only."""
    with file_server([DATA], lambda _: Say(PAGE)) as server:
        session = session_of(configured(tmp_path, server))
        error = refused(session)
    ((path, report),) = kept(session)
    assert path.read_bytes() == PAGE
    assert path.name.startswith("output-000000-0001-")
    assert "HTML" in error.cause
    assert f"many/raw/{EXPORT}/rejected/{path.name}" in error.advice
    assert report["sha256"] == hashlib.sha256(PAGE).hexdigest()
    assert (report["bytes_arrived"], report["count_promised"], report["attempt"]) == (len(PAGE), 20, 1)
    said = json.dumps(report) + str(error) + session.ledger.read(EXPORT).attempt_errors[1].model_dump_json()
    assert "Featherstonehaugh" not in said


def test_a_wrong_count_says_how_many_came(tmp_path: Path) -> None:
    """Protocol fact 33."""
    with file_server([DATA]) as server:
        server.entries[0]["count"] = 21
        session = session_of(configured(tmp_path, server))
        error = refused(session)
    ((path, report),) = kept(session)
    assert path.read_bytes() == DATA
    assert "promises 21 lines, 20 arrived" in error.cause
    assert (report["count_promised"], report["lines_arrived"]) == (21, 20)
    assert report["sha256"] == report["sha256_decoded"] == hashlib.sha256(DATA).hexdigest()


def _dpc(sha256: bytes, length: int) -> list[dict[str, Any]]:
    return [
        {"url": "https://dpc.cms.gov/checksum", "valueString": f"sha256:{sha256.hex()}"},
        {"url": "https://dpc.cms.gov/file_length", "valueDecimal": length},
    ]


@pytest.mark.parametrize("wire", [DATA, gzip.compress(DATA)], ids=["plain", "gzip file"])
@pytest.mark.parametrize("of", ["decoded", "wire"])
def test_a_sha256_of_the_manifest_may_be_of_either_form(tmp_path: Path, wire: bytes, of: str) -> None:
    """Protocol fact 33: nobody says which is meant where files are compressed (fact 29)."""
    meant = DATA if of == "decoded" else wire
    with file_server([wire]) as server:
        server.entries[0] = {"count": 20, "extension": _dpc(hashlib.sha256(meant).digest(), len(meant))}
        assert ingest(session_of(configured(tmp_path, server))).rows == 20


@pytest.mark.parametrize("wire", [DATA, gzip.compress(DATA)], ids=["plain", "gzip file"])
@pytest.mark.parametrize("wrong", ["sha256", "length"])
def test_a_promise_of_the_manifest_that_is_not_kept(tmp_path: Path, wire: bytes, wrong: str) -> None:
    """Protocol fact 33: DPC's extensions. It is asked for again, as the fault may have been on the way."""
    sha256 = hashlib.sha256(DATA if wrong == "length" else b"other").digest()
    with file_server([wire]) as server:
        server.entries[0] = {"count": 20, "extension": _dpc(sha256, len(DATA) + (wrong == "length"))}
        session = session_of(configured(tmp_path, server))
        error = refused(session)
        assert len(server.of(0)) == 3
    ((path, _report),) = kept(session)
    assert path.read_bytes() == wire
    assert "the manifest promises" in error.cause
    assert hashlib.sha256(DATA).hexdigest() in error.cause or str(len(DATA) + 1) in error.cause


DIGESTS = [
    ("Content-MD5", "{md5}"),
    ("x-ms-blob-content-md5", "{md5}"),
    ("Digest", "sha-256={sha256}"),
    ("Repr-Digest", "sha-256=:{sha256}:"),
    ("Content-Digest", "sha-256=:{sha256}:"),
]


def _digests(data: bytes) -> dict[str, str]:
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    return {"md5": b64(md5), "sha256": b64(hashlib.sha256(data).digest())}


@pytest.mark.parametrize(("name", "form"), DIGESTS)
def test_a_digest_of_the_answer_is_held_against_what_arrived(tmp_path: Path, name: str, form: str) -> None:
    """RFC 9530, RFC 1864: damage on the way, with the length that was announced."""
    damaged = DATA.replace(b'"p7"', b'"p8"')

    def once(ask: Ask) -> Say | None:
        sent = damaged if len(server.of(0)) == 1 else DATA
        return Say(sent, headers={name: form.format(**_digests(DATA))})

    with file_server([DATA]) as server:
        server.behave = once
        session = session_of(configured(tmp_path, server))
        assert ingest(session).rows == 20
        assert len(server.of(0)) == 2
    assert kept(session) == []


def test_a_digest_that_never_fits_ends_the_attempt(tmp_path: Path) -> None:
    headers = {"Repr-Digest": f"sha-256=:{_digests(b'other')['sha256']}:"}
    with file_server([DATA], lambda _: Say(DATA, headers=headers)) as server:
        session = session_of(configured(tmp_path, server))
        error = refused(session)
    assert "repr-digest" in error.cause
    assert hashlib.sha256(DATA).hexdigest() in error.cause
    ((path, _report),) = kept(session)
    assert path.read_bytes() == DATA


def test_a_digest_covers_a_transfer_that_was_resumed(tmp_path: Path) -> None:
    """RFC 9110, 14: the first answer's digest is of the whole, also where the rest comes in another one."""
    big = b"".join(patient(number) for number in range(20_000))

    def breaks(ask: Ask) -> Say | None:
        if len(server.of(0)) == 1:
            whole = server.whole(0, 0, **{"Content-MD5": _digests(big)["md5"]})
            length = str(len(whole.body))
            return replace(whole, body=big[:400_000], headers={**whole.headers, "Content-Length": length})
        if len(server.of(0)) > 2:
            return None
        rest = server.whole(0, ask.start)
        return replace(rest, body=rest.body.replace(b'"p19999"', b'"p19998"'))

    with file_server([big]) as server:
        server.behave = breaks
        session = session_of(configured(tmp_path, server))
        assert ingest(session).rows == 20_000
        assert [each.start > 0 for each in server.of(0)] == [False, True, False]


def test_a_digest_of_a_compressed_answer_is_left_alone(tmp_path: Path) -> None:
    """With Content-Encoding nobody can tell which form a gateway has hashed; gzip has its own checksum."""
    headers = {"Content-Encoding": "gzip", "Content-MD5": _digests(DATA)["md5"]}
    with file_server([DATA], lambda _: Say(gzip.compress(DATA), headers=headers)) as server:
        assert ingest(session_of(configured(tmp_path, server))).rows == 20


def test_only_the_newest_are_kept_and_of_each_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejected, "LARGEST", 30)
    with file_server([DATA], lambda _: Say(PAGE)) as server:
        config = configured(tmp_path, server, max_attempts=20)
        for number in range(5):
            session = session_of(config, f"run-{number}")
            refused(session)
    found = kept(session)
    assert [report["attempt"] for _, report in found] == [3, 4, 5]
    for path, report in found:
        assert path.read_bytes() == PAGE[:30]
        assert (report["bytes_arrived"], report["bytes_kept"]) == (len(PAGE), 30)
        assert report["sha256"] == hashlib.sha256(PAGE).hexdigest()
    assert len(list(found[0][0].parent.iterdir())) == 6


def test_a_lake_that_takes_no_more_does_not_hide_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not turn "no NDJSON" into "the lake cannot be written"."""
    logged: list[str] = []
    with file_server([DATA], lambda _: Say(PAGE)) as server:
        session = replace(session_of(configured(tmp_path, server)), log=logged.append)
        folder = Path(session.lake.full(rejected.rejected_folder("many", EXPORT)))
        folder.parent.mkdir(parents=True)
        folder.write_text("a file where the folder should be")
        error = refused(session)
    assert "HTML" in error.cause
    assert "kept" not in error.advice
    assert any("could not be kept" in words for words in logged)
    assert isinstance(session.lake, LocalLake)
