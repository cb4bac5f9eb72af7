"""A request whose answer was lost is sent again by the SDK: our own file is recognised, another's is kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azure_storage import Azurite
from lake_on_azurite import lake_by_key, lake_url

from pipeline.config import LakeAuth
from pipeline.errors import LakeError
from pipeline.lake.lake import Lake, open_lake


class LosingProxy(ThreadingHTTPServer):
    """Hands requests on to Azurite; of the first one that holds `loses` the answer is dropped."""

    target, loses, lost = "", "", 0


class _Handler(BaseHTTPRequestHandler):
    server: LosingProxy
    protocol_version = "HTTP/1.1"

    def hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        onward = HTTPConnection(self.server.target, timeout=30)
        onward.request(self.command, self.path, body, dict(self.headers))
        answer = onward.getresponse()
        data = answer.read()
        onward.close()
        if self.server.loses in f"{self.command} {self.path}" and not self.server.lost:
            self.server.lost += 1
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = hand_on

    def log_message(self, *args: object) -> None:
        return


@contextmanager
def losing(azurite: Azurite, container: str, loses: str) -> Iterator[tuple[Lake, LosingProxy]]:
    parts = urlsplit(azurite.endpoint)
    with LosingProxy(("127.0.0.1", 0), _Handler) as server:
        server.target, server.loses = parts.netloc, loses
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        held = azurite.connection_string.replace(parts.netloc, f"127.0.0.1:{server.server_port}").encode()
        auth = LakeAuth(kind="connection-string", connection_string="env:HELD")
        try:
            yield open_lake(lake_url(container), Path("/"), auth, lambda _: held), server
        finally:
            server.shutdown()


@pytest.mark.parametrize(("size", "loses"), [(10, "PUT "), (20 << 20, "comp=blocklist")])
def test_a_put_whose_answer_was_lost_counts_as_ours(
    azurite: Azurite, tmp_path: Path, size: int, loses: str
) -> None:
    local = tmp_path / "part"
    local.write_bytes(os.urandom(size))
    container = azurite.new_container()
    with losing(azurite, container, loses) as (lake, proxy):
        lake.put_file(local, "tables/part")
        assert proxy.lost == 1
    assert lake_by_key(azurite, container).read("tables/part") == local.read_bytes()


@pytest.mark.parametrize(("size", "loses"), [(10, "PUT "), (20 << 20, "comp=blocklist")])
def test_another_writers_file_of_the_same_content_is_kept_though_an_answer_was_lost(
    azurite: Azurite, tmp_path: Path, size: int, loses: str
) -> None:
    """The lost answer was a refusal: only the mark of the upload tells, not the content."""
    local = tmp_path / "part"
    local.write_bytes(b"x" * size)
    container = azurite.new_container()
    lake_by_key(azurite, container).put_file(local, "tables/part")
    blob = azurite.container(container).get_blob_client("night/tables/part")
    before = blob.get_blob_properties().etag
    with losing(azurite, container, loses) as (lake, proxy):
        with pytest.raises(LakeError, match="File exists"):
            lake.put_file(local, "tables/part")
        assert proxy.lost == 1
    assert blob.get_blob_properties().etag == before


def test_a_fact_and_a_swap_whose_answers_were_lost_count_as_ours(azurite: Azurite) -> None:
    container = azurite.new_container()
    with losing(azurite, container, "PUT ") as (lake, proxy):
        assert lake.put_new("fact.json", b"1")
        assert proxy.lost == 1
        found = lake.read_version("fact.json")
        assert found is not None
        proxy.lost = 0
        assert lake.replace_if("fact.json", b"2", found.etag)
        assert proxy.lost == 1
    assert lake_by_key(azurite, container).read("fact.json") == b"2"
