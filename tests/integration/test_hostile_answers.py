"""Answers that no honest server gives: bombs, floods, false lengths. All end in words and cost little."""

from __future__ import annotations

import functools
import gzip
import json
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from raw_server import Answer, RawServer, sending

from pipeline.auth import short_answers
from pipeline.auth.discovery import discover
from pipeline.auth.keys import generate_key
from pipeline.auth.signers import PemSigner
from pipeline.auth.tokens import SmartTokenSource
from pipeline.bulkdata.client import BulkClient
from pipeline.bulkdata.limits import Limits
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.bulkdata.profiles import PROFILES
from pipeline.errors import AuthError, ExportError, Unreachable, VerificationFailed
from pipeline.network.guarded import guarded_client
from pipeline.network.known_hosts import KnownHosts

LINE = b'{"resourceType":"Patient","id":"1"}\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
OK = HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(LINE), LINE)
LITTLE_MEMORY = 150 << 20
"""Bytes, beyond what the same request takes when its answer is small."""


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer(sending(OK)) as running:
        yield running


def http_for(server: RawServer, head_seconds: float = 30, timeout: float = 20) -> httpx.Client:
    return guarded_client(KnownHosts.of([server.fhir]), head_seconds=head_seconds, timeout=timeout)


def bulk(server: RawServer, http: httpx.Client, answer_seconds: float = 30, **limits: int) -> BulkClient:
    return BulkClient(
        server.fhir,
        http,
        PROFILES["smart"],
        answer_seconds=answer_seconds,
        limits=Limits(**limits),
        sleep=lambda _: None,
    )


def file_at(server: RawServer, count: int | None = None) -> ManifestFile:
    return ManifestFile("output", 0, "Patient", f"{server.origin}/f?sig=S3CRET", count)


def source(server: RawServer) -> SmartTokenSource:
    signer = PemSigner.from_pem(generate_key("ES384"), "ES384")
    return SmartTokenSource(
        signer, "c", "s", fhir_url=server.fhir, token_url=f"{server.origin}/token", sleep=lambda _: None
    )


def for_ever(first: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    """Longer than anybody has patience; then an answer as it should be, so that the test fails of it."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(first)
        end = time.monotonic() + 45
        while time.monotonic() < end:
            connection.sendall(piece)
            time.sleep(pause)
        connection.sendall(OK)

    return answer


ASKING: dict[str, Callable[[RawServer, httpx.Client, Path], object]] = {
    "status": lambda server, http, _: bulk(server, http).status(f"{server.fhir}/s"),
    "capability": lambda server, http, _: bulk(server, http).capability(),
    "token": lambda server, http, _: source(server).fetch(http),
    "discovery": lambda server, http, _: discover(http, server.fhir),
    "file": lambda server, http, folder: bulk(server, http).download(file_at(server), None, folder / "f"),
}
asking = pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING.keys())


BROKEN = {
    "nothing": b"",
    "garbage": b"\x00\xff\xfe garbage garbage\r\n\r\n",
    "half a status line": b"HTTP/1.1 2",
    "a status that is none": b"HTTP/1.1 20x OK\r\n\r\n",
    "a status of six digits": b"HTTP/1.1 200200 OK\r\n\r\n",
    "http 0.9": b"<html>hello</html>",
    "tls where none is": b"\x15\x03\x01\x00\x02\x02\x28",
    "half the headers": HEAD,
    "a header of a megabyte": HEAD + b"X-Long: " + b"x" * (1 << 20) + b"\r\nContent-Length: 0\r\n\r\n",
    "thousands of headers": HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(50_000)) + b"\r\n",
    "a NUL in a header": HEAD + b"X-Odd: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "a header without a name": HEAD + b": value\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n" + LINE,
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n" + LINE,
    "a length in words": HEAD + b"Content-Length: many\r\n\r\n" + LINE,
    "a length of a hundred digits": HEAD + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n" + LINE,
    "less than announced": HEAD + b"Content-Length: 1000\r\n\r\n" + LINE,
    "a chunk size that is none": HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n" + LINE,
    "a negative chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n" + LINE,
    "a chunk size of a megabyte": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * (1 << 20) + b"\r\n",
    "a chunk extension of a megabyte": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n5;x="
    + b"x" * (1 << 20)
    + b"\r\nabcde\r\n",
    "trailers of a megabyte": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    + b"X: y\r\n" * (1 << 18)
    + b"\r\n",
    "chunks that stop": HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(LINE) + LINE + b"\r\n",
    "an encoding that nobody asked for": HEAD + b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc",
    "an encoding twice": HEAD + b"Content-Encoding: gzip, gzip\r\nContent-Length: 3\r\n\r\nabc",
    "gzip that is none": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
}


@asking
@pytest.mark.parametrize("wire", BROKEN.values(), ids=BROKEN.keys())
def test_an_answer_that_is_none_is_told_in_words(
    ask: Callable[[RawServer, httpx.Client, Path], object], wire: bytes, server: RawServer, tmp_path: Path
) -> None:
    """No traceback of a library, no file, and never the signed part of a URL."""
    server.answer = sending(wire)
    with http_for(server) as http, pytest.raises(ExportError) as failed:
        ask(server, http, tmp_path)
    assert "S3CRET" not in str(failed.value)
    assert str(failed.value).isprintable()
    assert len(str(failed.value)) < 2000
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("encoding", [b"br", b"gzip, gzip", b"zstd"])
def test_an_answer_in_an_encoding_that_nobody_asked_for_is_not_believed(
    encoding: bytes, server: RawServer
) -> None:
    """Though its bytes, as they are, would do."""
    body = b'{"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"}'
    plain = HEAD + b"Content-Length: %d\r\n" % len(body)
    with http_for(server) as http:
        server.answer = sending(plain + b"\r\n" + body)
        assert bulk(server, http).capability()
        server.answer = sending(plain + b"Content-Encoding: " + encoding + b"\r\n\r\n" + body)
        with pytest.raises(Unreachable, match="DecodingError"):
            bulk(server, http).capability()


def test_more_than_announced_is_not_taken(server: RawServer, tmp_path: Path) -> None:
    server.answer = sending(
        HEAD + b"Content-Length: %d\r\n\r\n" % len(LINE) + LINE + b"HTTP/1.1 200 OK\r\n\r\n"
    )
    with http_for(server) as http:
        for _ in range(2):  # what came too much is no answer to the next request either
            found = bulk(server, http).download(file_at(server), None, tmp_path / "f")
            assert (found.lines, found.wire_bytes) == (1, len(LINE))


@asking
def test_interim_answers_without_end_are_given_up(
    ask: Callable[[RawServer, httpx.Client, Path], object], server: RawServer, tmp_path: Path
) -> None:
    """1xx at full speed break no timeout of a read: their bytes are counted."""
    server.answer = for_ever(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 500)
    with http_for(server, head_seconds=300) as http, pytest.raises(ExportError):
        ask(server, http, tmp_path)


@asking
@pytest.mark.parametrize("piece", [b"HTTP/1.1 102 Processing\r\n\r\n", b"X-A: b\r\n"], ids=["1xx", "headers"])
def test_a_head_that_drips_is_given_up(
    ask: Callable[[RawServer, httpx.Client, Path], object], piece: bytes, server: RawServer, tmp_path: Path
) -> None:
    first = b"" if piece.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n"
    server.answer = for_ever(first, piece, pause=0.02)
    with http_for(server, head_seconds=0.3) as http, pytest.raises(Unreachable, match="in time"):
        ask(server, http, tmp_path)


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (HEAD + b"\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["body", "chunk extension", "trailer", "chunks"],
)
def test_a_status_that_drips_is_given_up(first: bytes, piece: bytes, server: RawServer) -> None:
    server.answer = for_ever(first, piece, pause=0.02)
    with http_for(server) as http, pytest.raises(Unreachable):
        bulk(server, http, answer_seconds=0.4).status(f"{server.fhir}/s")


@pytest.mark.parametrize("piece", [b"x", b"X"], ids=["chunk extension", "trailer"])
def test_a_token_that_drips_out_of_sight_is_given_up(
    piece: bytes, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_answers, "LONGEST_ANSWER", 0.4)
    begin = b"1;" if piece == b"x" else b"0\r\n"
    server.answer = for_ever(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + begin, piece, pause=0.02)
    with http_for(server) as http, pytest.raises(Unreachable, match="in time"):
        source(server).fetch(http)


def test_a_file_without_end_stops_at_its_limit(server: RawServer, tmp_path: Path) -> None:
    """`downloads.limits.file_gigabytes` bounds the disk too; asking again would bring no less."""
    server.answer = for_ever(HEAD + b"\r\n", LINE * 2000)
    with http_for(server) as http, pytest.raises(VerificationFailed, match="file_gigabytes"):
        bulk(server, http, file_bytes=4_000_000).download(file_at(server), None, tmp_path / "f")
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 5_000_000
    assert len(server.requests) == 1


def test_a_file_that_announces_too_much_is_not_begun(server: RawServer, tmp_path: Path) -> None:
    server.answer = for_ever(HEAD + b"Content-Length: 300000000000\r\n\r\n", LINE)
    with http_for(server) as http, pytest.raises(VerificationFailed, match="file_gigabytes"):
        bulk(server, http).download(file_at(server), None, tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_the_connection_may_end_at_any_byte(server: RawServer, tmp_path: Path) -> None:
    """Of a file of known length, whatever arrives is the whole file or an error."""
    for end in range(0, len(OK), 7):
        server.answer = sending(OK[:end])
        with http_for(server) as http, pytest.raises(ExportError):
            bulk(server, http).download(file_at(server), None, tmp_path / "f")
        assert not (tmp_path / "f").exists()


def test_a_header_cannot_put_a_second_one_into_our_requests(server: RawServer) -> None:
    """A Content-Location with line ends in it is escaped or refused; it never splits a request."""
    server.answer = sending(
        b"HTTP/1.1 202 Accepted\r\nContent-Location: /fhir/s%0d%0aX-Evil:%201\r\n"
        b"Connection: close\r\nContent-Length: 0\r\n\r\n"
    )
    with http_for(server) as http:
        from pipeline.bulkdata.parameters import KickoffParameters

        accepted = bulk(server, http).kick_off(KickoffParameters(level="system"))
        bulk(server, http).status(accepted.status_url)  # type: ignore[union-attr]
    assert all(b"\nX-Evil" not in request for request in server.requests)


# --- bombs: what they cost is measured in a process of its own -------------------------------------------


@functools.cache
def zeros(megabytes: int, times: int) -> bytes:
    data = gzip.compress(b" " * (megabytes << 20))
    for _ in range(times - 1):
        data = gzip.compress(data)
    return data


def own_peak() -> int:
    """Bytes (VmHWM): `ru_maxrss` also remembers the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def measured(server: RawServer, body: str) -> tuple[str, int]:
    """Runs `body` in a fresh process. Returns the error's name and words, and the most memory it took."""
    script = f"""
        import json, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_hostile_answers as here
        from pipeline.errors import ExportError

        class At: origin, fhir = {server.origin!r}, {server.fhir!r}
        with here.http_for(At, timeout=60) as http:
            try:
                {body}
                said = "nothing"
            except ExportError as error:
                said = f"{{type(error).__name__}}: {{error}}"
        print(json.dumps([said, here.own_peak()]))
    """
    path = ":".join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={"PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, memory = json.loads(done.stdout)
    return said, memory


def usual_memory(server: RawServer, ask: str) -> int:
    """The peak where the answer is a few bytes: mostly what is imported."""
    server.answer = sending(OK)
    return measured(server, ask)[1]


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip, gzip"])
@pytest.mark.parametrize(
    "ask",
    [
        "here.source(At).fetch(http)",
        "here.discover(http, At.fhir)",
        'here.bulk(At, http).read("Patient/1")',
    ],
    ids=["token", "discovery", "error body"],
)
def test_an_answer_that_unpacks_to_gigabytes_costs_little_memory(
    encoding: str, ask: str, server: RawServer
) -> None:
    bomb = zeros(600, 1 + encoding.count(","))
    status = b"500 No" if "read" in ask else b"200 OK"
    server.answer = sending(
        b"HTTP/1.1 %s\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n"
        % (status, encoding.encode(), len(bomb)),
        bomb,
    )
    _, memory = measured(server, ask)
    assert memory < usual_memory(server, ask) + LITTLE_MEMORY


def test_a_manifest_that_unpacks_to_gigabytes_stops_at_its_limit(server: RawServer) -> None:
    bomb = zeros(600, 1)
    server.answer = sending(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb), bomb)
    said, memory = measured(server, 'here.bulk(At, http).status(f"{At.fhir}/s")')
    assert said.startswith("VerificationFailed")
    usual = usual_memory(server, 'here.bulk(At, http).status(f"{At.fhir}/s")')
    assert memory < usual + LITTLE_MEMORY + (600 << 20)  # the limit's 256 MB, and their copy


def bombs() -> dict[str, bytes]:
    empty = gzip.compress(b"")
    return {
        "zeros": zeros(600, 1),
        "zeros in gzip in gzip": zeros(600, 2),
        "lines": gzip.compress((b"\n" * 1024 + LINE) * (1 << 18)),
        "empty members in gzip": gzip.compress(empty * (1 << 23)),
    }


@pytest.fixture(scope="module")
def packed() -> dict[str, bytes]:
    return bombs()


@pytest.mark.parametrize("kind", ["zeros", "zeros in gzip in gzip", "lines", "empty members in gzip"])
def test_a_file_that_is_a_bomb_is_refused_once(
    kind: str, packed: dict[str, bytes], server: RawServer, tmp_path: Path
) -> None:
    """Protocol 29; `downloads.limits.ratio`, from 100 MB on. Nothing is stored unpacked."""
    wire = packed[kind]
    server.answer = sending(HEAD + b"Content-Length: %d\r\n\r\n" % len(wire), wire)
    ask = f'here.bulk(At, http).download(here.file_at(At), None, Path({str(tmp_path)!r}) / "f")'
    said, memory = measured(server, ask)
    assert said.startswith("VerificationFailed"), said
    assert "downloads.limits.ratio" in said or "line 1 is longer" in said
    assert len(server.requests) == 1
    stored = list(tmp_path.iterdir())
    assert memory < usual_memory(server, ask) + LITTLE_MEMORY + (300 << 20)  # a line may have 256 MB
    assert sum(each.stat().st_size for each in stored) <= len(wire)


def test_trailing_garbage_after_gzip_is_damage(server: RawServer, tmp_path: Path) -> None:
    wire = gzip.compress(LINE) + b"garbage"
    server.answer = sending(HEAD + b"Content-Length: %d\r\n\r\n" % len(wire), wire)
    with http_for(server) as http, pytest.raises(VerificationFailed, match="damaged"):
        bulk(server, http).download(file_at(server), None, tmp_path / "f")


def test_what_is_packed_well_and_honestly_passes(server: RawServer, tmp_path: Path) -> None:
    """The same line over and over packs 200 times and more: below 100 MB nobody minds."""
    wire = gzip.compress(LINE * 1_000_000)
    server.answer = sending(HEAD + b"Content-Length: %d\r\n\r\n" % len(wire), wire)
    with http_for(server) as http:
        assert bulk(server, http).download(file_at(server), None, tmp_path / "f").lines == 1_000_000


def test_nothing_hangs_in_a_thread(server: RawServer) -> None:
    """An allowance ends with its request: the next one of the thread has its own."""
    server.answer = for_ever(HEAD + b"\r\n", b" ", pause=0.02)
    with http_for(server) as http:
        with pytest.raises(Unreachable):
            bulk(server, http, answer_seconds=0.3).status(f"{server.fhir}/s")
        server.answer = sending(OK)
        assert bulk(server, http, answer_seconds=2).read("Patient/1").http_status == 200
        time.sleep(2.1)
        assert bulk(server, http, answer_seconds=2).read("Patient/1").http_status == 200
    assert threading.current_thread().is_alive()


def test_a_refused_sign_in_keeps_its_name_through_a_request(server: RawServer) -> None:
    server.answer = sending(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
    with http_for(server) as http, pytest.raises(AuthError):
        bulk(server, http).status(f"{server.fhir}/s")
