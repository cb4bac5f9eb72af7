"""How the cloud starts, is set up from a file, and ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from authority import Authority

from pipeline.sandbox.cloud.process import CloudNotStarted, start_cloud


def test_a_setup_file_is_carried_out_before_the_first_request(authority: Authority, tmp_path: Path) -> None:
    setup = tmp_path / "setup.json"
    wanted = [
        {
            "do": "register_application",
            "client_id": "c",
            "secret": "s",
            "roles": {"https://fhir.example": ["r"]},
        },
        {"do": "vault_secret", "name": "a", "wanted": {"value": "v"}},
    ]
    setup.write_text(json.dumps(wanted))
    with start_cloud(certificate=authority.certificate, key=authority.key, setup=setup) as cloud:
        form = {"grant_type": "client_credentials", "client_id": "c", "client_secret": "s"}
        answer = httpx.post(cloud.token_url, data={**form, "scope": "https://fhir.example/.default"})
        assert answer.status_code == 200
        assert cloud.requests("entra")[-1]["principal"] == "c"


@pytest.mark.parametrize(
    "options",
    [
        {"tenant": "not-a-guid"},
        {"token_seconds": 0},
        {"certificate": Path("absent.pem")},
        {"vault_port": "taken"},
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(
    authority: Authority, options: dict[str, object]
) -> None:
    wanted: dict[str, Any] = {"certificate": authority.certificate, "key": authority.key, **options}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if options.get("vault_port"):
            wanted["vault_port"] = taken.getsockname()[1]
        with pytest.raises(CloudNotStarted, match="exit code 2"):
            start_cloud(**wanted)


def test_it_stops_at_once_though_clients_keep_their_connections(authority: Authority) -> None:
    with (
        start_cloud(certificate=authority.certificate, key=authority.key) as cloud,
        httpx.Client() as kept,
    ):
        assert kept.get(cloud.token_keys_url).status_code == 200
        assert kept.get(cloud.vault_url + "/keys").status_code == 401
        assert cloud.stop() == 0, "after ten seconds it is killed"


def test_it_ends_with_whoever_started_it(authority: Authority) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pipeline.sandbox.cloud.process import start_cloud\n"
        "cloud = start_cloud(certificate=Path(sys.argv[1]), key=Path(sys.argv[2]))\n"
        "print(cloud.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(authority.certificate), str(authority.key)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return "pipeline.sandbox.cloud" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
