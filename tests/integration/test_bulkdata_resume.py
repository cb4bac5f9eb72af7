"""Downloads that break off go on where they stopped, with no byte doubled, lost or of another version.

In front of the real Azurite stands a proxy that cuts TCP connections; odd servers are scripted.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from azure_storage import ACCOUNT, Azurite
from breaking_proxy import BreakingProxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from test_bulkdata_protocol import TOKEN, Server, Token, client_of

from pipeline.azure.storage_access import storage_access
from pipeline.bulkdata.client import BulkClient
from pipeline.bulkdata.decoding import BLOCK, decoded_blocks
from pipeline.bulkdata.downloads import Downloaded
from pipeline.bulkdata.manifest import ManifestFile
from pipeline.bulkdata.policy import DownloadPolicy
from pipeline.bulkdata.profiles import profile_of
from pipeline.config import DownloadStorage
from pipeline.errors import DownloadRefused, Unreachable, VerificationFailed


def ndjson(lines: int, seed: int) -> bytes:
    """About 1 kB a line, with characters of two to four bytes."""
    chance = random.Random(seed)
    return "".join(
        json.dumps(
            {
                "resourceType": "Patient",
                "id": str(n),
                "text": "Zoë 雪 😀 " * 30 + chance.randbytes(250).hex(),
            },
            ensure_ascii=False,
        )
        + "\r\n"
        for n in range(lines)
    ).encode()


CONTENT = ndjson(2500, 1)
OTHER = ndjson(2500, 2)


def test_the_contents_are_of_one_length_and_more_than_a_few_blocks() -> None:
    assert len(CONTENT) == len(OTHER) > 9 * BLOCK
    assert CONTENT != OTHER


@pytest.fixture(scope="module")
def container(azurite: Azurite) -> str:
    return azurite.new_container("resume")


def put(azurite: Azurite, container: str, data: bytes, name: str = "Patient-1-1.ndjson", **more: Any) -> str:
    azurite.container(container).upload_blob(name, data, overwrite=True, **more)
    return f"{container}/{name}"


def proxy_for(azurite: Azurite, budgets: list[int | None], **more: Any) -> BreakingProxy:
    parts = urlsplit(azurite.endpoint)
    return BreakingProxy((parts.hostname or "", parts.port or 0), budgets, **more)


def fetch(
    azurite: Azurite,
    proxy: BreakingProxy,
    blob: str,
    into: Path,
    *,
    count: int | None = None,
    profile: str = "azure-fhir-export",
    knobs: dict[str, Any] | None = None,
    tries: int = 3,
) -> Downloaded:
    endpoint = f"http://127.0.0.1:{proxy.port}/{ACCOUNT}"
    storage = DownloadStorage(
        account=ACCOUNT, kind="connection-string", connection_string="env:X", endpoint=endpoint
    )
    access = storage_access(storage, lambda _: azurite.connection_string.encode())
    with httpx.Client(timeout=20, trust_env=False, auth=Token()) as http:
        client = BulkClient(
            "https://fhir.example.org/r4",
            http,
            profile_of(profile, knobs),
            DownloadPolicy("storage", storage=access),
            download_tries=tries,
            sleep=lambda _: None,
        )
        return client.download(ManifestFile("output", 0, "Patient", f"{endpoint}/{blob}", count), False, into)


def starts_of(proxy: BreakingProxy) -> list[int | None]:
    """Where each request begins; None without a Range."""
    ranges = [each.headers.get("range") for each in proxy.asked()]
    return [None if each is None else int(each.removeprefix("bytes=").removesuffix("-")) for each in ranges]


@pytest.mark.parametrize("reset", [True, False])
def test_a_broken_download_goes_on_at_the_byte_where_it_stopped(
    azurite: Azurite, container: str, tmp_path: Path, reset: bool
) -> None:
    """azure-and-aidbox D: Range resume with If-Match."""
    blob = put(azurite, container, CONTENT)
    etag = azurite.container(container).get_blob_client("Patient-1-1.ndjson").get_blob_properties().etag
    with proxy_for(azurite, [900_000, 700_000], reset=reset) as proxy:
        got = fetch(azurite, proxy, blob, tmp_path / "f", count=2500)
        first, second, third = proxy.asked()
        starts = starts_of(proxy)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert (got.lines, got.requests, got.wire_bytes, got.malformed) == (2500, 3, len(CONTENT), 0)
    assert got.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
    assert starts[0] is None and "if-match" not in first.headers
    # Whole blocks of what the proxy let through; at a reset the kernel may throw away what was not read yet.
    least = 0 if reset else 900_000 - 2 * BLOCK
    assert least <= (starts[1] or 0) <= 900_000
    assert (starts[1] or 0) <= (starts[2] or 0) <= (starts[1] or 0) + 700_000
    assert {second.headers["if-match"], third.headers["if-match"]} == {etag}
    assert second.headers["accept-encoding"] == "identity"


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 1_500_000), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from(["plain", "gzip", "gzip of several members"]),
)
def test_wherever_it_breaks_the_bytes_are_those_of_the_blob(
    azurite: Azurite, container: str, tmp_path: Path, budgets: list[int], reset: bool, form: str
) -> None:
    """Also in the middle of a character, of a CRLF and of a gzip file (protocol fact 29)."""
    half = len(CONTENT) // 2
    wire = {
        "plain": CONTENT,
        "gzip": gzip.compress(CONTENT, 1, mtime=0),
        "gzip of several members": gzip.compress(CONTENT[:half], 1, mtime=0)
        + gzip.compress(CONTENT[half:], 1, mtime=0),
    }[form]
    blob = put(azurite, container, wire, f"{hashlib.md5(repr((budgets, form)).encode()).hexdigest()}.ndjson")
    with proxy_for(azurite, list(budgets), reset=reset) as proxy:
        got = fetch(azurite, proxy, blob, tmp_path / "f", tries=7)
        starts = starts_of(proxy)
    assert (tmp_path / "f").read_bytes() == wire
    assert (got.sha256, got.lines) == (hashlib.sha256(CONTENT).hexdigest(), 2500)
    assert b"".join(decoded_blocks(tmp_path / "f", got.encoding)) == CONTENT
    assert [each or 0 for each in starts] == sorted(each or 0 for each in starts)


@pytest.mark.parametrize(
    "later",
    [OTHER, OTHER[: len(OTHER) // 3], OTHER + OTHER[:2_000_000]],
    ids=["same length", "shorter", "longer"],
)
def test_a_blob_that_was_overwritten_in_between_is_fetched_from_its_beginning(
    azurite: Azurite, container: str, tmp_path: Path, later: bytes
) -> None:
    """412 by If-Match: never half of one version and half of another."""
    blob = put(azurite, container, CONTENT, "changing.ndjson")

    def overwrite(number: int) -> None:
        if number == 0:
            put(azurite, container, later, "changing.ndjson")

    with proxy_for(azurite, [1_000_000], on_break=overwrite) as proxy:
        got = fetch(azurite, proxy, blob, tmp_path / "f")
        starts = starts_of(proxy)
    assert (tmp_path / "f").read_bytes() == later
    assert (got.sha256, got.wire_bytes) == (hashlib.sha256(later).hexdigest(), len(later))
    assert [each is None for each in starts] == [True, False, True]
    assert any('" 412 ' in line and "changing.ndjson" in line for line in azurite.requests())


def test_a_blob_that_is_gone_in_between_is_refused_and_leaves_no_file(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    blob = put(azurite, container, CONTENT, "gone.ndjson")

    def delete(_: int) -> None:
        azurite.container(container).delete_blob("gone.ndjson")

    with (
        proxy_for(azurite, [1_000_000], on_break=delete) as proxy,
        pytest.raises(DownloadRefused, match="404"),
    ):
        fetch(azurite, proxy, blob, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_breaks_do_not_count_as_long_as_each_request_brings_something(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    blob = put(azurite, container, CONTENT)
    with proxy_for(azurite, [BLOCK * 2] * 6) as proxy:
        assert 4 < fetch(azurite, proxy, blob, tmp_path / "f", tries=2).requests < 8
        assert starts_of(proxy)[-1]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_breaks_that_bring_nothing_end_in_an_error_and_leave_no_file(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    blob = put(azurite, container, CONTENT)
    with proxy_for(azurite, [BLOCK * 2, *[1000] * 9]) as proxy:
        with pytest.raises(Unreachable, match="broke off"):
            fetch(azurite, proxy, blob, tmp_path / "f")
        assert proxy.connections == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("profile", "knobs"), [("apim-smart", {}), ("smart", {"range_resume": False})])
def test_without_the_knob_it_begins_anew(
    azurite: Azurite, container: str, tmp_path: Path, profile: str, knobs: dict[str, Any]
) -> None:
    """azure-and-aidbox A: no Range at the gateway."""
    blob = put(azurite, container, CONTENT)
    with proxy_for(azurite, [1_000_000]) as proxy:
        got = fetch(azurite, proxy, blob, tmp_path / "f", profile=profile, knobs=knobs)
        assert starts_of(proxy) == [None, None]
    assert (got.requests, (tmp_path / "f").read_bytes()) == (2, CONTENT)


def test_a_blob_that_is_stored_with_a_content_encoding_begins_anew(
    azurite: Azurite, container: str, tmp_path: Path
) -> None:
    from azure.storage.blob import ContentSettings

    wire = gzip.compress(CONTENT, 1, mtime=0)
    blob = put(
        azurite, container, wire, "encoded.ndjson", content_settings=ContentSettings(content_encoding="gzip")
    )
    with proxy_for(azurite, [700_000]) as proxy:
        got = fetch(azurite, proxy, blob, tmp_path / "f")
        assert starts_of(proxy) == [None, None]
    assert (got.sha256, (tmp_path / "f").read_bytes()) == (hashlib.sha256(CONTENT).hexdigest(), wire)


@pytest.fixture(scope="module")
def odd() -> Iterator[Server]:
    with Server() as one:
        yield one


@pytest.fixture
def server(odd: Server) -> Server:
    odd.handlers.clear()
    odd.seen.clear()
    return odd


WHOLE = {"etag": '"v1"', "accept-ranges": "bytes", "content-length": str(len(CONTENT))}
CUT = 5 * BLOCK + 1000


def pieces(data: bytes, status: int = 200, **headers: str) -> Callable[[Request], Response]:
    async def stream() -> Any:
        for start in range(0, len(data), 1 << 16):
            yield data[start : start + (1 << 16)]

    return lambda _: StreamingResponse(
        stream(), status, {name.replace("_", "-"): v for name, v in headers.items()}
    )


def broken(data: bytes = CONTENT, **headers: str) -> Callable[[Request], Response]:
    """Promises all and ends after CUT bytes."""
    return pieces(data[:CUT], **{**WHOLE, **headers})


def part_of(
    data: bytes, *, shift: int = 0, end: int | None = None, total: int | None = None, **headers: str
) -> Callable[[Request], Response]:
    """What a server answers to a Range; wrong on demand."""

    def answer(request: Request) -> Response:
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-")) + shift
        last = len(data) - 1 if end is None else end
        body = data[start : last + 1]
        says = f"bytes {start}-{last}/{len(data) if total is None else total}"
        return Response(body, 206, {"content-range": says, "etag": '"v1"', **headers})

    return answer


def download(server: Server, into: Path) -> Downloaded:
    with httpx.Client(auth=Token(), timeout=10, trust_env=False) as http:
        file = ManifestFile("output", 0, "Patient", f"{server.origin}/f")
        return client_of(server, http).download(file, True, into)


def test_a_fhir_server_that_takes_ranges_is_asked_for_the_rest_with_the_token(
    server: Server, tmp_path: Path
) -> None:
    server.on("GET", "/f", broken(), Response("", 401), part_of(CONTENT))
    got = download(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert (got.sha256, got.requests) == (hashlib.sha256(CONTENT).hexdigest(), 2)
    first, refused, rest = (each.headers for each in server.seen)
    assert "range" not in first
    assert refused["range"] == rest["range"]
    assert rest["if-match"] == '"v1"'
    assert rest["authorization"] == f"Bearer {TOKEN}-1"


def test_a_server_that_sends_the_range_in_portions_is_asked_on(server: Server, tmp_path: Path) -> None:
    server.on("GET", "/f", broken(), part_of(CONTENT, end=7 * BLOCK), part_of(CONTENT))
    assert download(server, tmp_path / "f").requests == 3
    assert (tmp_path / "f").read_bytes() == CONTENT


REST = CONTENT[5 * BLOCK :]


@pytest.mark.parametrize(
    "second",
    [
        part_of(CONTENT, shift=1),
        part_of(CONTENT, shift=-1),
        part_of(CONTENT, total=len(CONTENT) + 1),
        part_of(OTHER, etag='"v2"'),
        part_of(CONTENT, **{"content-encoding": "gzip"}),
        part_of(CONTENT, **{"content-range": "bytes */*"}),
        part_of(CONTENT, **{"content-range": f"bytes {5 * BLOCK}-{len(CONTENT) - 1}/*"}),
        lambda _: Response(REST, 206, {"content-type": "multipart/byteranges; boundary=x"}),
        lambda _: Response(REST, 206),
        lambda _: Response("", 416, {"content-range": f"bytes */{len(CONTENT)}"}),
        lambda _: Response("", 412),
    ],
)
def test_a_rest_that_does_not_fit_is_not_appended(
    server: Server, tmp_path: Path, second: Callable[[Request], Response]
) -> None:
    server.on("GET", "/f", broken(), second, pieces(OTHER, **{**WHOLE, "etag": '"v2"'}))
    got = download(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == OTHER
    assert (got.sha256, got.etag, got.requests) == (hashlib.sha256(OTHER).hexdigest(), '"v2"', 3)
    assert ["range" in each.headers for each in server.seen] == [False, True, False]


def test_a_server_that_ignores_the_range_and_sends_all_is_taken_from_the_start(
    server: Server, tmp_path: Path
) -> None:
    server.on("GET", "/f", broken(), pieces(OTHER, **{**WHOLE, "etag": '"v2"'}))
    got = download(server, tmp_path / "f")
    assert ((tmp_path / "f").read_bytes(), got.requests) == (OTHER, 2)


def test_a_rest_that_is_longer_than_it_says_is_not_taken(server: Server, tmp_path: Path) -> None:
    """A chunked 206 has no length of its own."""

    def too_long(request: Request) -> Response:
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        says = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        return pieces(
            CONTENT[start:] + b'{"resourceType":"Patient"}\n', 206, etag='"v1"', content_range=says
        )(request)

    server.on("GET", "/f", broken(), too_long, pieces(CONTENT, **WHOLE))
    got = download(server, tmp_path / "f")
    assert ((tmp_path / "f").read_bytes(), got.lines) == (CONTENT, 2500)


@pytest.mark.parametrize(
    "headers",
    [
        {"etag": 'W/"v1"'},
        {"etag": "v1"},
        {"etag": ""},
        {"accept-ranges": "none"},
        {"accept-ranges": ""},
        {"content-encoding": "gzip"},
    ],
)
def test_without_a_strong_version_ranges_or_plain_bytes_it_begins_anew(
    server: Server, tmp_path: Path, headers: dict[str, str]
) -> None:
    server.on("GET", "/f", broken(**headers), pieces(CONTENT, **WHOLE))
    assert download(server, tmp_path / "f").requests == 2
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert all("range" not in each.headers and "if-match" not in each.headers for each in server.seen)


def test_a_chunked_answer_without_a_length_begins_anew(server: Server, tmp_path: Path) -> None:
    """The end of a chunked body proves nothing: half a last line is fetched anew (protocol section 6)."""
    server.on(
        "GET", "/f", pieces(CONTENT[:CUT], etag='"v1"', accept_ranges="bytes"), pieces(CONTENT, **WHOLE)
    )
    assert download(server, tmp_path / "f").requests == 2
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert all("range" not in each.headers for each in server.seen)


def test_a_whole_file_that_is_damaged_begins_anew(server: Server, tmp_path: Path) -> None:
    """Nothing of it is kept: the damage may lie in what has arrived."""
    good = gzip.compress(CONTENT, 1, mtime=0)
    bad = good[:-8] + bytes(8)
    headers = {"etag": '"v1"', "accept-ranges": "bytes", "content-length": str(len(good))}
    server.on("GET", "/f", pieces(bad, **headers), pieces(good, **headers))
    assert download(server, tmp_path / "f").sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert [each.headers.get("range") for each in server.seen] == [None, None]


def test_a_passing_error_keeps_what_has_arrived(server: Server, tmp_path: Path) -> None:
    server.on("GET", "/f", broken(), Response("", 503), part_of(CONTENT))
    assert download(server, tmp_path / "f").requests == 3
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.seen[1].headers["range"] == server.seen[2].headers["range"]


def test_a_page_in_place_of_the_rest_is_never_appended(server: Server, tmp_path: Path) -> None:
    """Protocol fact 34: a login page."""
    server.on("GET", "/f", broken(), Response("<html>Sign in</html>", 200))
    with pytest.raises(VerificationFailed, match="HTML"):
        download(server, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
