"""Downloads from loopback servers: whole, verified while they stream, never with the token elsewhere."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from test_bulkdata_protocol import TOKEN, Server, Token, client_of

from pipeline.bulkdata.client import BulkClient
from pipeline.bulkdata.decoding import decoded_blocks, lines
from pipeline.bulkdata.downloads import verify
from pipeline.bulkdata.limits import Limits
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.bulkdata.policy import DownloadPolicy
from pipeline.errors import (
    AuthError,
    DownloadRefused,
    ExportError,
    LakeError,
    Unreachable,
    VerificationFailed,
)

PATIENTS = "".join(
    json.dumps({"resourceType": "Patient", "id": str(n), "text": "Zoë 雪 " * 20}, ensure_ascii=False) + "\n"
    for n in range(500)
).encode()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with Server() as one, Server() as two:
        yield one, two


@pytest.fixture
def server(servers: tuple[Server, Server]) -> Server:
    for each in servers:
        each.handlers.clear()
        each.seen.clear()
    return servers[0]


@pytest.fixture
def stranger(server: Server, servers: tuple[Server, Server]) -> Server:
    """A server at another origin."""
    return servers[1]


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(auth=Token(), timeout=5, trust_env=False) as client:
        yield client


@pytest.fixture
def client(server: Server, http: httpx.Client) -> BulkClient:
    return client_of(server, http)


def file_at(
    server: Server, path: str = "/f", type_: str | None = "Patient", count: int | None = None
) -> ManifestFile:
    return ManifestFile("output", 0, type_, f"{server.origin}{path}", count)


def in_pieces(data: bytes, size: int, **headers: str) -> Callable[[Request], Response]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    return lambda _: StreamingResponse(pieces(), headers=headers)


def cut_after(data: bytes, sent: int, **headers: str) -> Callable[[Request], Response]:
    """Promises all of `data`, sends a part, and breaks the connection."""
    return in_pieces(data[:sent], 1 << 16, **{"content-length": str(len(data)), **headers})


def test_a_file_arrives_whole_and_is_described(server: Server, client: BulkClient, tmp_path: Path) -> None:
    """Protocol facts 28, 29: token, Accept-Encoding, Accept."""
    headers = {"ETag": '"v1"', "Content-Type": "application/fhir+ndjson"}
    server.on("GET", "/f", Response(PATIENTS, headers=headers))
    got = client.download(file_at(server, count=500), True, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == PATIENTS
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
    assert (got.lines, got.wire_bytes, got.decoded_bytes) == (500, len(PATIENTS), len(PATIENTS))
    assert got.sha256 == hashlib.sha256(PATIENTS).hexdigest()
    assert (got.encoding, got.etag, got.count_matches, got.requests) == ("identity", '"v1"', True, 1)
    assert got.types_seen == {"Patient": 500}
    assert verify(got, file_at(server, count=500)) == []
    (seen,) = server.seen
    assert seen.headers["accept"] == "application/fhir+ndjson"
    assert seen.headers["accept-encoding"] == "gzip"
    assert seen.headers["authorization"] == f"Bearer {TOKEN}"


ZIPPED = gzip.compress(PATIENTS, mtime=0)


@pytest.mark.parametrize(
    ("wire", "headers", "encoding"),
    [
        (ZIPPED, {"content-encoding": "gzip"}, "gzip"),
        (ZIPPED, {}, "gzip"),
        (gzip.compress(ZIPPED, mtime=0), {"content-encoding": "gzip"}, "gzip"),
        (PATIENTS, {"content-encoding": "gzip"}, "identity"),
        (PATIENTS, {}, "identity"),
    ],
)
def test_gzip_is_told_by_its_bytes_and_stored_as_it_came(
    server: Server, client: BulkClient, tmp_path: Path, wire: bytes, headers: dict[str, str], encoding: str
) -> None:
    """Protocol fact 29: Aidbox hands out gzip files without Content-Encoding."""
    server.on("GET", "/f", in_pieces(wire, 1000, **headers))
    got = client.download(file_at(server), True, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == wire
    assert (got.encoding, got.wire_bytes) == (encoding, len(wire))
    assert (got.lines, got.decoded_bytes) == (500, len(PATIENTS))
    assert got.sha256 == hashlib.sha256(PATIENTS).hexdigest()
    assert b"".join(decoded_blocks(tmp_path / "f", got.encoding)) == PATIENTS
    assert sum(1 for _ in lines(decoded_blocks(tmp_path / "f", got.encoding))) == 500


def test_compression_can_be_left_out(server: Server, client: BulkClient, tmp_path: Path) -> None:
    server.on("GET", "/f", Response(PATIENTS))
    client.download(file_at(server), True, tmp_path / "f", compressed=False)
    assert server.seen[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("response", [Response(b""), Response(status_code=204), Response(b"\r\n \n")])
def test_an_empty_file_has_no_lines(
    server: Server, client: BulkClient, tmp_path: Path, response: Response
) -> None:
    """Protocol fact 33: count 0 is verified too."""
    server.on("GET", "/f", response)
    got = client.download(file_at(server, count=0), True, tmp_path / "f")
    assert (got.lines, got.count_matches) == (0, True)
    assert (tmp_path / "f").exists()


def test_odd_but_sound_ndjson_is_taken(server: Server, client: BulkClient, tmp_path: Path) -> None:
    """Protocol fact 34: CRLF, a BOM, no final newline, empty lines."""
    one = b'{"resourceType":"Patient"}'
    server.on("GET", "/f", Response(b"\xef\xbb\xbf" + one + b"\r\n\r\n" + one + b"\n \n" + one))
    got = client.download(file_at(server, count=3), True, tmp_path / "f")
    assert (got.lines, got.blank_lines, got.malformed, got.count_matches) == (3, 2, 0, True)


def test_a_wrong_count_and_a_wrong_type_are_reported(
    server: Server, client: BulkClient, tmp_path: Path
) -> None:
    """Protocol facts 33 and 34."""
    server.on("GET", "/f", Response(b'{"resourceType":"Device"}\n{"resourceType":"Patient"}\n'))
    got = client.download(file_at(server, count=3), True, tmp_path / "f")
    assert (got.count_matches, got.types_seen) == (False, {"Device": 1, "Patient": 1})
    with pytest.raises(VerificationFailed, match="promises 3 lines, 2 arrived"):
        verify(got, file_at(server, count=3))
    warnings = verify(got, file_at(server, count=3), "warn")
    assert [("1 lines of type Device" in each, "promises 3" in each) for each in warnings] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize(
    ("content", "headers", "hint"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", {"content-type": "text/html"}, "HTML"),
        (b"<!DOCTYPE html><html>Sign in</html>", {"content-type": "application/fhir+ndjson"}, "HTML"),
        (gzip.compress(b"<html>Sign in</html>", mtime=0), {"content-encoding": "gzip"}, "HTML"),
        (json.dumps({"resourceType": "Bundle"}, indent=2).encode(), {}, "first line"),
        (b'[{"resourceType":"Patient"}]', {}, "array"),
        (b"anything", {"content-encoding": "br"}, "encoding"),
    ],
)
def test_what_is_no_ndjson_is_refused_and_leaves_no_file(
    server: Server, client: BulkClient, tmp_path: Path, content: bytes, headers: dict[str, str], hint: str
) -> None:
    """Protocol fact 34; section 6: an HTML page stored as data."""
    server.on("GET", "/f", Response(content, headers=headers))
    with pytest.raises(VerificationFailed, match=hint) as raised:
        client.download(file_at(server), True, tmp_path / "f")
    assert type(raised.value) is VerificationFailed
    assert "output[0] (Patient)" in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    assert len(server.seen) == 1


@pytest.mark.parametrize("zipped", [True, False])
def test_a_transfer_that_breaks_is_begun_anew(
    server: Server, client: BulkClient, tmp_path: Path, zipped: bool
) -> None:
    """Section 6: a file cut short accepted as complete."""
    wire = ZIPPED if zipped else PATIENTS
    whole = in_pieces(wire, 4096)
    server.on("GET", "/f", cut_after(wire, len(wire) // 2), Response("", 503), whole)
    got = client.download(file_at(server), True, tmp_path / "f")
    assert (got.requests, got.lines) == (3, 500)
    assert (tmp_path / "f").read_bytes() == wire


def test_a_transfer_that_keeps_breaking_is_given_up(
    server: Server, client: BulkClient, tmp_path: Path
) -> None:
    server.on("GET", "/f", cut_after(PATIENTS, len(PATIENTS) // 2))
    with pytest.raises(Unreachable):
        client.download(file_at(server), True, tmp_path / "f")
    assert len(server.seen) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wire", "hint"),
    [
        (ZIPPED[:-4], "cut short"),
        (ZIPPED[: len(ZIPPED) // 2], "cut short"),
        (ZIPPED[:-8] + b"\0" * 8, "damaged"),
    ],
)
def test_a_file_that_is_short_on_the_server_fails_verification(
    server: Server, client: BulkClient, tmp_path: Path, wire: bytes, hint: str
) -> None:
    """Section 6: the transport is complete here, only the content is not."""
    server.on("GET", "/f", Response(wire))
    with pytest.raises(VerificationFailed, match=hint) as raised:
        client.download(file_at(server), True, tmp_path / "f")
    assert type(raised.value) is VerificationFailed
    assert len(server.seen) == 3
    assert list(tmp_path.iterdir()) == []


HALF = PATIENTS[:-5]


@pytest.mark.parametrize(
    ("wire", "count"),
    [(HALF, None), (HALF, 499), (gzip.compress(HALF, mtime=0), None), (gzip.compress(HALF, mtime=0), 501)],
)
def test_half_a_last_line_fails_where_nothing_proves_that_it_was_the_last(
    server: Server, client: BulkClient, tmp_path: Path, wire: bytes, count: int | None
) -> None:
    """Section 6: a proxy ends a chunked body, and gzip too, for a server that died in the middle."""
    server.on("GET", "/f", in_pieces(wire, 4096))
    with pytest.raises(VerificationFailed, match="last line is incomplete"):
        client.download(file_at(server, count=count), True, tmp_path / "f")
    assert len(server.seen) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wire", [HALF, gzip.compress(HALF, mtime=0)])
@pytest.mark.parametrize("count", [None, 500])
def test_half_a_last_line_is_a_bad_line_where_the_announced_length_has_arrived(
    server: Server, client: BulkClient, tmp_path: Path, wire: bytes, count: int | None
) -> None:
    """It is what lies on the server: asking again would bring the same."""
    server.on("GET", "/f", Response(wire))
    got = client.download(file_at(server, count=count), True, tmp_path / "f")
    assert (got.lines, got.malformed, got.malformed_lines, got.requests) == (500, 1, (500,), 1)
    assert len(verify(got, file_at(server, count=count))) == 1


def test_half_a_last_line_is_a_bad_line_where_the_count_says_that_no_line_is_missing(
    server: Server, client: BulkClient, tmp_path: Path
) -> None:
    """Only when it came like this again and again."""
    server.on("GET", "/f", in_pieces(HALF, 4096))
    got = client.download(file_at(server, count=500), True, tmp_path / "f")
    assert (got.lines, got.malformed, got.requests) == (500, 1, 3)
    server.on("GET", "/g", in_pieces(HALF, 4096), in_pieces(PATIENTS, 4096))
    got = client.download(file_at(server, "/g", count=500), True, tmp_path / "g")
    assert (got.lines, got.malformed, got.requests) == (500, 0, 2)


@pytest.mark.parametrize(
    ("response", "error", "hint", "requests"),
    [
        (Response("", 403), DownloadRefused, "fresh manifest", 1),
        (Response("", 404), DownloadRefused, "fresh manifest", 1),
        (Response("", 410), DownloadRefused, "fresh manifest", 1),
        (Response("", 206), DownloadRefused, "206", 1),
        (Response("", 401), AuthError, "scopes", 2),
        (Response("", 500), Unreachable, "500", 3),
        (Response("", 503, {"Retry-After": "600"}), Unreachable, "503", 1),
    ],
)
def test_each_refusal_says_what_happens_next(
    server: Server,
    client: BulkClient,
    tmp_path: Path,
    response: Response,
    error: type[ExportError],
    hint: str,
    requests: int,
) -> None:
    """Protocol fact 30: a fresh manifest MAY be fetched for fresh links."""
    server.on("GET", "/f", response)
    with pytest.raises(error, match=hint) as raised:
        client.download(file_at(server, "/f?sig=SECRETSECRET"), True, tmp_path / "f")
    assert type(raised.value) is error
    assert "SECRET" not in str(raised.value)
    assert len(server.seen) == requests
    if "retry-after" in response.headers:
        assert isinstance(raised.value, Unreachable)
        assert raised.value.retry_after == 600


def test_an_expired_token_is_renewed_and_the_download_goes_on(
    server: Server, client: BulkClient, tmp_path: Path
) -> None:
    """Section 6: one token for the whole run; no refresh on 401."""
    server.on("GET", "/f", Response("", 401), Response(PATIENTS))
    assert client.download(file_at(server), True, tmp_path / "f").lines == 500


def test_no_token_is_sent_where_the_manifest_says_none_is_needed(
    server: Server, stranger: Server, client: BulkClient, tmp_path: Path
) -> None:
    """Protocol fact 28: SHALL NOT when false; bare and signed URLs elsewhere."""
    for each in (server, stranger):
        each.on("GET", "/f", Response(PATIENTS))
        client.download(file_at(each, "/f?sig=a%2Fb%3D"), False, tmp_path / "f")
        assert "authorization" not in each.seen[0].headers
        assert each.seen[0].query == "sig=a%2Fb%3D"
    server.on("GET", "/f", Response("", 401))
    with pytest.raises(DownloadRefused, match=r"downloads\.auth"):
        client.download(file_at(server), False, tmp_path / "g")


def test_a_header_that_the_client_was_made_with_does_not_leak(
    server: Server, stranger: Server, tmp_path: Path
) -> None:
    """Protocol fact 9: only the `auth` of the client may add Authorization, and only where it may go."""
    stranger.on("GET", "/f", Response(PATIENTS))
    with httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False) as http:
        client_of(server, http).download(file_at(stranger), False, tmp_path / "f")
    assert "authorization" not in stranger.seen[0].headers


def test_another_host_gets_the_token_only_when_it_is_allowed(
    server: Server, stranger: Server, http: httpx.Client, client: BulkClient, tmp_path: Path
) -> None:
    """Protocol facts 9 and 28."""
    stranger.on("GET", "/f", Response(PATIENTS))
    with pytest.raises(DownloadRefused, match=r"downloads\.allow_hosts"):
        client.download(file_at(stranger), True, tmp_path / "f")
    assert stranger.seen == []
    policy = DownloadPolicy("auto", (stranger.origin,))
    client_of(server, http, policy=policy).download(file_at(stranger), True, tmp_path / "f")
    assert stranger.seen[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_a_redirect_to_a_signed_url_elsewhere_goes_without_the_token(
    server: Server, stranger: Server, http: httpx.Client, tmp_path: Path
) -> None:
    """Protocol fact 28: Oracle's 307 to a pre-signed URL that must not carry Authorization."""
    server.on("GET", "/f", RedirectResponse("/g"))
    server.on("GET", "/g", RedirectResponse(f"{stranger.origin}/s?sig=a%2Bb"))
    stranger.on("GET", "/s", RedirectResponse("/t?sig=c"))
    stranger.on("GET", "/t", Response(PATIENTS))
    # Allowed or not: a redirect never takes the token along.
    client = client_of(server, http, policy=DownloadPolicy("auto", (stranger.origin,)))
    assert client.download(file_at(server), True, tmp_path / "f").lines == 500
    assert all(each.headers["authorization"] == f"Bearer {TOKEN}" for each in server.seen)
    assert [each.query for each in stranger.seen] == ["sig=a%2Bb", "sig=c"]
    assert not any("authorization" in each.headers for each in stranger.seen)


def test_a_redirect_back_home_does_not_pick_the_token_up_again(
    server: Server, stranger: Server, client: BulkClient, tmp_path: Path
) -> None:
    server.on("GET", "/f", RedirectResponse(f"{stranger.origin}/s"))
    stranger.on("GET", "/s", RedirectResponse(f"{server.origin}/home"))
    server.on("GET", "/home", Response(PATIENTS))
    client.download(file_at(server), True, tmp_path / "f")
    assert "authorization" not in server.seen[-1].headers


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://files.example.org/x", "http://["]
)
def test_a_redirect_to_what_must_not_be_asked_is_refused(
    server: Server, client: BulkClient, tmp_path: Path, target: str
) -> None:
    """Protocol fact 1."""
    server.on("GET", "/f", lambda _: Response(status_code=302, headers={"location": target}))
    with pytest.raises((DownloadRefused, Unreachable)):
        client.download(file_at(server), True, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://files.example.org/f", "ftp://127.0.0.1/f"])
def test_urls_that_must_not_be_asked_are_refused(client: BulkClient, tmp_path: Path, url: str) -> None:
    """Protocol fact 1."""
    with pytest.raises(DownloadRefused):
        client.download(ManifestFile("output", 0, "Patient", url), False, tmp_path / "f")


def test_a_folder_that_cannot_be_written_is_named_as_such(
    server: Server, client: BulkClient, tmp_path: Path
) -> None:
    server.on("GET", "/f", Response(PATIENTS))
    with pytest.raises(LakeError, match="No such file"):
        client.download(file_at(server), True, tmp_path / "missing" / "f")


def test_a_line_without_end_does_not_eat_the_memory(
    server: Server, http: httpx.Client, tmp_path: Path
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"a":"'
        for _ in range(2000):
            yield b"x" * (1 << 16)

    server.on("GET", "/f", lambda _: StreamingResponse(endless()))
    client = client_of(server, http, limits=Limits(line_bytes=1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(VerificationFailed, match="line 1 is longer than 1048576 bytes"):
            client.download(file_at(server), True, tmp_path / "f")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_bounded_however_long_the_file(
    server: Server, client: BulkClient, tmp_path: Path
) -> None:
    line = json.dumps({"resourceType": "Patient", "text": "x" * 20_000}).encode() + b"\n"
    block = gzip.compress(line * 500)

    async def members() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield block

    server.on("GET", "/f", lambda _: StreamingResponse(members()))
    tracemalloc.start()
    try:
        got = client.download(file_at(server), True, tmp_path / "f")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (got.lines, got.decoded_bytes) == (3000, 3000 * len(line))
    assert got.decoded_bytes > 60_000_000
    assert peak < 8_000_000


def test_one_client_serves_many_threads(server: Server, client: BulkClient, tmp_path: Path) -> None:
    def fetch(number: int) -> Any:
        return client.download(file_at(server, f"/{number}"), True, tmp_path / str(number))

    for number in range(12):
        server.on("GET", f"/{number}", in_pieces(ZIPPED, 3000, **{"content-encoding": "gzip"}))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(fetch, range(12)))
    assert {each.sha256 for each in results} == {hashlib.sha256(PATIENTS).hexdigest()}
