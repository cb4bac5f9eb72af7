"""The command line as a user runs it: real processes, their output and their exit codes."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.auth.signers import PemSigner
from pipeline.sandbox.process import SandboxProcess, start_sandbox

COMMANDS = (
    *("demo", "check", "keys", "jwks", "run", "exports", "show", "cancel", "convert", "to-ndjson"),
    *("current", "rebuild", "as-of", "attachments", "maintain", "erase"),
)
PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("EXPORTS_CONFIG", "DAGSTER_HOME")
    }
    return {**kept, "COLUMNS": "120", **more}


def cli(*arguments: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
        env=environment(**more),
    )


def source(fhir_url: str, key: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "hosp_a",
        "fhir_url": fhir_url,
        "auth": {"client_id": "nightly", "private_key": f"file:{key}", "algorithm": "ES384"},
        "export": {"level": "group", "group": "demo", "types": ["Patient"]},
        **changes,
    }


def write_config(folder: Path, *sources: dict[str, Any]) -> Path:
    path = folder / "exports.yaml"
    path.write_text(yaml.safe_dump({"lake": "lake", "sources": list(sources)}))
    return path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "hosp_a.pem"
    write_private_key(path, generate_key("ES384"))
    return path


@pytest.fixture(scope="module")
def sandbox(key: Path) -> Iterator[SandboxProcess]:
    jwk = PemSigner.from_file(key, "ES384").public_jwk()
    with start_sandbox(patients=2, jwks={"keys": [jwk]}, export_seconds=600) as running:
        yield running


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


# --- help and usage ----------------------------------------------------------------------------------


def test_help_names_every_command_the_exit_codes_and_first_steps(tmp_path: Path) -> None:
    done = cli("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert not done.stderr
    for command in COMMANDS:
        assert f" {command} " in done.stdout
    for code in (
        "0 done",
        "2 usage or configuration",
        "3 refused",
        "4 verification",
        "5 still",
        "6 ",
        "7 lake",
    ):
        assert code in done.stdout
    assert "fhir-export keys new" in done.stdout
    assert "\x1b[" not in done.stdout, "no colour outside a terminal"


def test_help_is_quick_because_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['fhir-export', 'run', '--help']; import pipeline.cli\n"
        "try: pipeline.cli.main()\nexcept SystemExit as end: print('code', end.code)\n"
        "print([name for name in ('dagster', 'pyarrow', 'deltalake', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert "--wait" in done.stdout
    assert done.stdout.splitlines()[-2:] == ["code 0", "[]"]


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert cli("--version", cwd=tmp_path).stdout.startswith("fhir-export 0.")


def test_usage_errors_exit_with_2(tmp_path: Path) -> None:
    done = cli("run", cwd=tmp_path)
    assert done.returncode == 2
    assert not done.stdout
    assert "SOURCE" in done.stderr


# --- configuration -----------------------------------------------------------------------------------


def test_a_missing_configuration_is_one_clear_message(tmp_path: Path) -> None:
    done = cli("exports", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no configuration at" in done.stderr
    assert "EXPORTS_CONFIG" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_configuration_names_its_keys_and_never_a_secret(tmp_path: Path) -> None:
    secret = "hunter2-Tr0ub4dor"
    wrong = source("https://fhir.example.org", Path("x"), timezone="Mars")
    wrong["auth"]["private_key"] = secret
    done = cli("--config", write_config(tmp_path, wrong), "check", cwd=tmp_path)
    assert done.returncode == 2
    assert "sources[hosp_a].timezone: must be a time zone" in done.stderr
    assert "sources[hosp_a].auth.private_key: a secret must be a reference" in done.stderr
    assert secret not in done.stdout + done.stderr


# --- keys --------------------------------------------------------------------------------------------


def test_a_new_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    done = cli("keys", "new", "--algorithm", "ES384", "--out", "keys/a.pem", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pem = (tmp_path / "keys" / "a.pem").read_bytes()
    assert stat.S_IMODE((tmp_path / "keys" / "a.pem").stat().st_mode) == 0o600
    assert PemSigner.from_pem(pem, "ES384").kid in done.stderr
    assert "PRIVATE" not in done.stdout + done.stderr
    again = cli("keys", "new", "--algorithm", "ES384", "--out", "keys/a.pem", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists" in again.stderr
    assert (tmp_path / "keys" / "a.pem").read_bytes() == pem


def test_the_printed_jwk_set_has_public_members_only_and_every_key_once(tmp_path: Path, key: Path) -> None:
    rsa = tmp_path / "rsa.pem"
    write_private_key(rsa, generate_key("RS384"))
    second = source("https://b.example.org", key, name="hosp_b")
    third = source("https://c.example.org", rsa, name="hosp_c")
    third["auth"]["algorithm"] = "RS384"
    config = write_config(tmp_path, source("https://a.example.org", key), second, third)
    done = cli("--config", config, "jwks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    keys = json.loads(done.stdout)["keys"]
    assert sorted(each["alg"] for each in keys) == ["ES384", "RS384"]
    assert all(not PRIVATE_MEMBERS & each.keys() for each in keys)
    of_file = cli("jwks", "--key", rsa, cwd=tmp_path)
    assert json.loads(of_file.stdout)["keys"] == [each for each in keys if each["alg"] == "RS384"]


def test_one_missing_key_does_not_hide_the_others(tmp_path: Path, key: Path) -> None:
    broken = source("https://b.example.org", tmp_path / "nowhere.pem", name="hosp_b")
    config = write_config(tmp_path, broken, source("https://a.example.org", key))
    done = cli("--config", config, "jwks", cwd=tmp_path)
    assert done.returncode == 2
    assert len(json.loads(done.stdout)["keys"]) == 1
    assert "the key of hosp_b is missing" in done.stderr


def test_keys_that_are_missing_are_not_to_be_pasted_anywhere(tmp_path: Path, key: Path) -> None:
    url = "https://apim.example.org/smart"
    broken = source(url, tmp_path / "nowhere.pem", name="hosp_b", profile="apim-smart")
    whole = source(url, key, profile="apim-smart")
    done = cli("--config", write_config(tmp_path, broken, whole), "jwks", cwd=tmp_path)
    assert "the key of hosp_b is missing" in done.stderr
    assert "hosp_b: paste" not in done.stderr
    assert "hosp_a: paste" in done.stderr


def test_the_jwk_set_is_served_with_a_lifetime_until_ctrl_c(tmp_path: Path, key: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "jwks", "--key", str(key), "--serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    try:
        assert server.stderr is not None
        url = server.stderr.readline().split()[-1]
        assert url.endswith("/.well-known/jwks.json")
        with urllib.request.urlopen(url, timeout=10) as answer:
            keys = json.load(answer)["keys"]
            assert "max-age=300" in answer.headers["Cache-Control"]
            assert answer.headers["Content-Type"] == "application/json"
        assert keys == [PemSigner.from_file(key, "ES384").public_jwk()]
        server.send_signal(signal.SIGINT)
        assert server.wait(10) in (0, 130)  # asyncio may have ended its work before it takes the signal
        assert "Traceback" not in server.stderr.read()
    finally:
        server.kill()
        server.wait()
        if server.stderr:
            server.stderr.close()


# --- servers -----------------------------------------------------------------------------------------


def test_an_unreachable_server_is_exit_code_6_and_the_check_goes_on_to_the_lake(
    tmp_path: Path, key: Path
) -> None:
    config = write_config(tmp_path, source(f"http://127.0.0.1:{closed_port()}/fhir", key))
    done = cli("check", "--json", cwd=tmp_path, EXPORTS_CONFIG=str(config))
    assert done.returncode == 6, done.stderr
    verdicts = {each["name"]: each for each in json.loads(done.stdout)}
    assert verdicts["server"]["status"] == "bad"
    assert verdicts["token"]["status"] == "skipped"
    assert verdicts["lake"]["status"] == "ok"


def test_check_says_what_to_do(tmp_path: Path, key: Path, sandbox: SandboxProcess) -> None:
    wrong = source(sandbox.fhir_url, key)
    wrong["auth"]["client_id"] = "nobody"
    done = cli("--config", write_config(tmp_path, wrong), "check", "hosp_a", cwd=tmp_path)
    assert done.returncode == 3
    assert "bad     token: the server does not know client 'nobody'" in done.stdout
    assert "-> Set auth.client_id" in done.stdout


def test_a_refused_run_still_ends_with_its_result_as_json(
    tmp_path: Path, key: Path, sandbox: SandboxProcess
) -> None:
    wrong = source(sandbox.fhir_url, key)
    wrong["auth"]["client_id"] = "nobody"
    config = write_config(tmp_path, wrong)
    done = cli("--config", config, "run", "hosp_a", "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"export_id", "state", "tables", "quarantined"}
    assert (result["tables"], result["quarantined"]) == ({}, 0)
    assert result["state"] != "published"
    assert "nobody" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_accepted_run_can_be_listed_shown_and_cancelled(
    tmp_path: Path, key: Path, sandbox: SandboxProcess
) -> None:
    config = str(write_config(tmp_path, source(sandbox.fhir_url, key)))
    started = cli("run", "hosp_a", "--json", cwd=tmp_path, EXPORTS_CONFIG=config)
    assert started.returncode == 0, started.stderr
    result = json.loads(started.stdout.splitlines()[-1])
    assert result["state"] == "running"
    export_id = result["export_id"]

    listed = cli("exports", cwd=tmp_path, EXPORTS_CONFIG=config)
    assert listed.returncode == 0
    row = next(line for line in listed.stdout.splitlines() if export_id in line)
    assert row.split()[:3] == [f"hosp_a/{export_id}", "running", "-"]
    assert "ask the server how far it is" in row

    before = [entry for entry in sandbox.access_log() if entry["method"] == "DELETE"]
    cancelled = cli("cancel", export_id, cwd=tmp_path, EXPORTS_CONFIG=config)
    assert cancelled.returncode == 0, cancelled.stderr
    after = [entry for entry in sandbox.access_log() if entry["method"] == "DELETE"]
    assert len(after) == len(before) + 1

    shown = cli("show", f"hosp_a/{export_id}", "--json", cwd=tmp_path, EXPORTS_CONFIG=config)
    details = json.loads(shown.stdout)
    assert details["state"] == "cancelled"
    assert details["parameters"]["types"] == ["Patient"]
    assert any("accepted by the server" in event["what"] for event in details["history"])

    again = cli("cancel", export_id, cwd=tmp_path, EXPORTS_CONFIG=config)
    assert again.returncode == 2
    assert "is cancelled already" in again.stderr


# --- files and tables --------------------------------------------------------------------------------

PATIENTS = [
    {"resourceType": "Patient", "id": "p1", "name": [{"family": "Müller", "_family": {"id": "x"}}]},
    {"resourceType": "Patient", "id": "p2", "birthDate": "1970-02", "multipleBirthInteger": 2},
]
OBSERVATION = (
    '{"resourceType":"Observation","id":"o1","status":"final","code":{"text":"a"},'
    '"valueQuantity":{"value":1.100,"unit":"mg"}}'
)


def ndjson(*resources: dict[str, Any] | str) -> bytes:
    lines = (each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in resources)
    return "".join(f"{line}\n" for line in lines).encode()


def rows_of(text: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in text.splitlines()[1:] if line.strip()}


def test_files_become_tables_and_come_back_exact(tmp_path: Path) -> None:
    import polars as pl

    (tmp_path / "patients.ndjson.gz").write_bytes(gzip.compress(ndjson(PATIENTS[0])))
    (tmp_path / "mixed.ndjson").write_bytes(b"\xef\xbb\xbf" + ndjson(PATIENTS[1], "", OBSERVATION))
    done = cli("convert", "patients.ndjson.gz", "mixed.ndjson", "--out", "tables", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout) == {"observation": "1", "patient": "2"}

    back = cli("to-ndjson", "tables/patient", cwd=tmp_path)
    assert [json.loads(line) for line in back.stdout.splitlines()] == PATIENTS
    numbers = cli("to-ndjson", "tables/observation", "--out", "o.ndjson", cwd=tmp_path)
    assert numbers.returncode == 0, numbers.stderr
    assert not numbers.stdout
    assert '"value":1.100' in (tmp_path / "o.ndjson").read_text()
    first = partitions(tmp_path / "tables" / "patient")
    (tmp_path / "again.ndjson").write_bytes(ndjson(PATIENTS[0], OBSERVATION, "", PATIENTS[1]))
    again = cli("convert", "again.ndjson", "--out", "tables", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    both = partitions(tmp_path / "tables" / "patient")
    assert len(both) == 2
    assert both[: len(first)] == first
    one = cli("to-ndjson", "tables/patient", "--export", both[1], cwd=tmp_path)
    assert [json.loads(line) for line in one.stdout.splitlines()] == PATIENTS
    part = next((tmp_path / "tables" / "patient" / f"export_id={both[1]}").glob("*.parquet"))
    lines = pl.read_parquet(part).select("id", "_source_file", "_source_line").rows()
    assert lines == [("p1", "again.ndjson", 1), ("p2", "again.ndjson", 4)], "a line knows where it came from"


def partitions(table: Path) -> list[str]:
    return sorted(path.name.removeprefix("export_id=") for path in table.glob("export_id=*"))


def test_a_bad_line_is_named_without_its_content_and_the_others_are_converted(tmp_path: Path) -> None:
    (tmp_path / "good.ndjson").write_bytes(ndjson(PATIENTS[0]))
    (tmp_path / "bad.ndjson").write_bytes(
        ndjson(PATIENTS[1], '{"resourceType": "Patient", "id": "Wilhelmina"')
    )
    done = cli("convert", "good.ndjson", "bad.ndjson", "--out", "tables", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 bad lines became no row" in done.stdout + done.stderr
    (named,) = (tmp_path / "tables" / "quarantine").rglob("*.ndjson")
    assert '"line":2' in named.read_text().replace(" ", "")
    assert "Wilhelmina" not in done.stdout + done.stderr + named.read_text()
    back = cli("to-ndjson", "tables/patient", cwd=tmp_path)
    assert len(back.stdout.splitlines()) == 2


def test_a_file_cut_short_in_transfer_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(ndjson(*PATIENTS))
    (tmp_path / "cut.ndjson.gz").write_bytes(whole[: len(whole) // 2])
    done = cli("convert", "cut.ndjson.gz", "--out", "tables", cwd=tmp_path)
    assert done.returncode == 4
    assert "cut short" in done.stderr


def test_a_reader_that_goes_away_makes_no_noise(tmp_path: Path) -> None:
    many = [{"resourceType": "Patient", "id": f"p{n}", "gender": "other"} for n in range(5_000)]
    (tmp_path / "many.ndjson").write_bytes(ndjson(*many))
    assert cli("convert", "many.ndjson", "--out", "tables", cwd=tmp_path).returncode == 0
    reader = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "to-ndjson", "tables/patient"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(),
    )
    assert reader.stdout
    assert reader.stderr
    assert json.loads(reader.stdout.readline())["id"] == "p0"
    reader.stdout.close()
    with reader.stderr as words:
        assert words.read() == b""
    assert reader.wait(30) == 1
