"""Nights at a careless server, with every kind of error text and all debug logs on: nothing gets out.

The server repeats the Authorization header, the assertion, signed URLs and patients' names in what it
answers; pages come in place of files; a table cannot be committed; the conversion fails unforeseen with an
error that quotes a resource. Terminal, logs of all processes, Dagster's database, compute logs, facts,
lineage, quarantine, GraphQL and the UI's pages are searched.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from echoing_proxy import Answer, Asked, EchoingProxy, Misdeed, outcome
from nightly_site import BIN, DAGSTER_YAML, Site, eventually, open_site
from own_ports import own_port
from test_night_keeps_secrets import content, everything

TYPES = ["Patient", "Observation", "Encounter", "Condition"]
NEEDLES = ["Quillfeather", "Ottoline-Birdwhistle", "999-45-6789"]
SIGNATURE = "Sg9Xq2mTz7LkPw4RvYb8Nc3Hd6Jf1Ae5"
SIGNED = f"sv=2024-08-04&se=2026-12-01T00%3A00%3A00Z&sig={SIGNATURE}%3D"
ABOUT = f"{NEEDLES[0]}, {NEEDLES[1]} ({NEEDLES[2]})"

_SHAPES = [
    re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ"),
    re.compile(rb"PRIVATE KEY|AccountKey=|[?&]sig=[A-Za-z0-9%]"),
    re.compile(rb"[Bb]earer [A-Za-z0-9._~+/-]{16,}"),
]

SABOTAGE = '''
"""All debug logs on; where the file named by SABOTAGE is, the next conversion meets an unforeseen error."""
import logging, os, sys
if "pytest" not in sys.modules and os.environ.get("SABOTAGE"):
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    import importlib.abc, importlib.util

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "pipeline.exports.conversion":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            execute = spec.loader.exec_module
            def exec_module(module):
                execute(module)
                convert = module.Conversion.convert
                def failing(self, batch, raw, spool):
                    flag = os.environ["SABOTAGE"]
                    if os.path.exists(flag):
                        os.unlink(flag)
                        import pyarrow, gzip
                        data = raw.read_bytes()
                        text = (gzip.decompress(data) if data[:2] == b"\\x1f\\x8b" else data).decode()[:5000]
                        logging.getLogger("pyarrow").debug("a library's own debug line")
                        try:
                            raise pyarrow.ArrowInvalid("line is " + text)
                        except pyarrow.ArrowInvalid:
                            pyarrow.array([text], pyarrow.int64())
                    return convert(self, batch, raw, spool)
                module.Conversion.convert = failing
            spec.loader.exec_module = exec_module
            return spec
    sys.meta_path.insert(0, Finder())
'''


def echo(asked: Asked) -> str:
    return (
        f"refused: Authorization: {asked.authorization} {asked.body} https://files.example/x?{SIGNED} "
        f"https://files.example{asked.target} -----BEGIN PRIVATE KEY-----"
    )


def in_outcome(status: int) -> Any:
    return lambda asked: Answer(status, outcome(echo(asked)))


def page(asked: Asked) -> Answer:
    text = f"<html><body>{ABOUT} signed in with {asked.authorization}</body></html>"
    return Answer(200, text, media_type="text/html")


def elsewhere(asked: Asked) -> Answer:
    return Answer(302, "", {"Location": f"https://files.example/{NEEDLES[0]}/x?{SIGNED}"})


def about_a_patient(status: int) -> Any:
    return lambda asked: Answer(
        status, f"<html>{ABOUT} {echo(asked)}</html>", {"X-Patient": ABOUT}, media_type="text/html"
    )


def with_bad_lines(data: bytes) -> bytes:
    bad = [
        f'{{"resourceType":"Patient","id":"bad-1","name":"{ABOUT}"',
        f'{{"resourceType":"Patient","id":"bad-2","birthDate":{{"value":"{NEEDLES[0]}"}}}}',
        f'["{ABOUT}"]',
        f'{{"resourceType":"{NEEDLES[0]}","id":"bad-3"}}',
    ]
    return data + "".join(f"{line}\n" for line in bad).encode()


def first_faults() -> list[Misdeed]:
    return [
        Misdeed("POST", "/auth/token", lambda asked: Answer(503, echo(asked), media_type="text/plain")),
        Misdeed("GET", r"/\$export", in_outcome(401)),
        Misdeed("GET", "/bulk/status/", about_a_patient(500), skip=1),
        Misdeed("GET", "/bulk/files/.*0.ndjson", in_outcome(403), times=2),
        Misdeed("GET", "/bulk/files/.*0.ndjson", page),
        Misdeed("GET", "/bulk/files/.*1.ndjson", elsewhere),
        Misdeed("GET", "/bulk/files/.*2.ndjson", about_a_patient(500)),
        Misdeed("DELETE", "/bulk/", in_outcome(500)),
    ]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("careless")
    with (
        open_site(folder, patients=5, export={"types": TYPES}) as site,
        EchoingProxy(site.sandbox.base_url) as proxy,
    ):
        nights = Nights(site, proxy)
        nights.prepare()
        nights.by_command()
        nights.by_daemon()
        yield nights


class Nights:
    """One installation through all of it; `shown` is what people and browsers saw."""

    def __init__(self, site: Site, proxy: EchoingProxy) -> None:
        self.site = site
        self.proxy = proxy
        self.shown: list[tuple[str, str]] = []
        self.flag = site.folder / "sabotage"
        self.meddled = 0
        self.published: list[str] = []

    def prepare(self) -> None:
        site = self.site
        config = yaml.safe_load(site.config_path.read_text())
        entry = config["sources"][0]
        entry["fhir_url"] = site.sandbox.fhir_url.replace(site.sandbox.base_url, self.proxy.origin)
        entry["auth"]["audience"] = site.sandbox.audience
        entry["max_attempts"] = 3
        site.config_path.write_text(yaml.safe_dump(config))
        dagster = yaml.safe_load(DAGSTER_YAML.read_text())
        dagster["python_logs"] = {
            "python_log_level": "DEBUG",
            # httpcore goes to the processes' output only: each line here is a commit in SQLite.
            "managed_python_loggers": ["httpx", "azure", "urllib3", "pipeline", "pyarrow"],
        }
        (site.home / "dagster.yaml").write_text(yaml.safe_dump(dagster))
        (site.folder / "path").mkdir()
        (site.folder / "path" / "sitecustomize.py").write_text(SABOTAGE)
        extra = {
            "PYTHONPATH": f"{site.folder / 'path'}:{Path(__file__).parents[2]}",
            "SABOTAGE": str(self.flag),
        }
        environment = {**site.environment, **extra}
        site.__class__ = type("CarelessSite", (Site,), {"environment": property(lambda _: environment)})

    def command(self, *arguments: str) -> None:
        done = self.site.cli(*arguments, check=False)
        self.shown.append((" ".join(arguments), done.stdout + done.stderr))

    def by_command(self) -> None:
        """Refused sign-in; then a night of faults with an unforeseen error; a commit that fails."""
        refused = Answer(400, json.dumps({"error": "invalid_client", "error_description": "?"}))
        self.proxy.misdeeds = [
            Misdeed(
                "POST",
                "/auth/token",
                lambda asked: Answer(
                    400,
                    refused.body.replace("?", json.dumps(echo(asked))[1:-1]),
                    media_type="application/json",
                ),
                times=3,
            )
        ]
        self.command("--debug", "check")
        self.command("--debug", "run", "hosp")
        self.proxy.misdeeds = first_faults()
        log = self.site.lake / "hosp" / "tables" / "encounter" / "_delta_log"
        log.mkdir(parents=True)
        (log / f"{0:020d}.json").write_text(f'{{"metaData": {{"name": "{NEEDLES[0]}"\n')
        self.flag.touch()
        self.command("--debug", "run", "hosp", "--wait", "--json")
        self.meddled += not self.flag.exists()
        (log / f"{0:020d}.json").unlink()
        self.proxy.misdeeds += [Misdeed("GET", "/bulk/files/.*Patient.*", bend=with_bad_lines, times=9)]
        self.command("--debug", "run", "hosp", "--new", "--wait", "--json")
        for export_id in self.site.export_ids():
            self.command("show", f"hosp/{export_id}")
        self.command("exports")
        self.command("--debug", "check")

    def by_daemon(self) -> None:
        """The same with daemon, webserver and code server, and what a browser is given."""
        site = self.site
        port = own_port()
        done = len([each for each in site.export_ids() if site.facts(each).receipt])
        self.proxy.misdeeds = [
            Misdeed("GET", "/bulk/status/", about_a_patient(500)),
            Misdeed("GET", "/bulk/files/.*0.ndjson", in_outcome(403), times=2),
            Misdeed("GET", "/bulk/files/.*1.ndjson", elsewhere),
            Misdeed("DELETE", "/bulk/", in_outcome(500)),
        ]
        self.flag.touch()
        web = site.spawn(
            str(BIN / "dagster-webserver"), "-m", "pipeline.definitions", "-h", "127.0.0.1", "-p", str(port)
        )
        self.command("run", "hosp", "--new")
        site.spawn_daemon_until(
            lambda: len([each for each in site.export_ids() if site.facts(each).receipt]) > done, 240
        )
        self.meddled += not self.flag.exists()
        self.published = [each for each in site.export_ids() if site.facts(each).receipt]
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(f"{url}/server_info"), 120)
        for name, query in QUERIES.items():
            self.shown.append((f"GraphQL {name}", ask(url, query)))
        for path in ("/", "/runs", "/assets", f"/runs/{self.a_failed_run()}"):
            self.shown.append((path, read(f"{url}{path}")))
        site.kill(web, 15)

    def a_failed_run(self) -> str:
        runs = self.site.instance().get_runs()
        return next(run.run_id for run in runs if run.is_failure)

    def everything(self) -> Iterator[tuple[str, bytes]]:
        for name, text in self.shown:
            yield name, text.encode()
        yield from everything(self.site, "")
        yield "event log, decoded", "\n".join(decoded(self.site)).encode()
        for path in sorted((self.site.lake / "hosp" / "quarantine").rglob("*")):
            if path.is_file():
                yield str(path), path.read_bytes()


ERROR = (
    "{ className message stack causes { className message stack } errorChain { error { message stack } } }"
)
QUERIES = {
    "events": """{ runsOrError { ... on Runs { results { runId status tags { key value }
      eventConnection { events { __typename ... on MessageEvent { message level }
        ... on ErrorEvent { error ERROR }
        ... on MaterializationEvent { metadataEntries { label description ... on TextMetadataEntry { text }
          ... on JsonMetadataEntry { jsonString } ... on UrlMetadataEntry { url } } }
        ... on ObservationEvent { metadataEntries { label description ... on TextMetadataEntry { text } } }
      } } } } } }""".replace("ERROR", ERROR),
    "assets": """{ assetNodes { assetKey { path } description assetMaterializations(limit: 20) {
      metadataEntries { label description ... on TextMetadataEntry { text }
        ... on JsonMetadataEntry { jsonString } ... on UrlMetadataEntry { url } } } } }""",
    "ticks": """{ repositoriesOrError { ... on RepositoryConnection { nodes { sensors { name sensorState {
      ticks(limit: 500) { status skipReason error ERROR
        logEvents { events { message } } } } } } } } }""".replace("ERROR", ERROR),
}


def ask(url: str, query: str) -> str:
    request = urllib.request.Request(
        f"{url}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    answer = read(request)
    assert '"errors"' not in answer[:200], answer[:2000]
    return answer


def read(request: Any) -> str:
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def answers(url: str) -> bool:
    try:
        return bool(read(url))
    except OSError:
        return False


def decoded(site: Site) -> Iterator[str]:
    instance = site.instance()
    for run in instance.get_runs():
        for entry in instance.all_logs(run.run_id):
            yield repr(entry)


def needles(nights: Nights) -> set[str]:
    secrets = {SIGNATURE}
    for secret in nights.proxy.secrets:
        secrets.update(piece for piece in (secret, *secret.split(".")) if len(piece) >= 16)
    pem = (nights.site.home / "keys" / "hosp.pem").read_text()
    return secrets | {line for line in pem.splitlines() if "-----" not in line}


def test_every_fault_was_met(nights: Nights) -> None:
    shown = "\n".join(text for _, text in nights.shown)
    assert nights.meddled == 2, shown
    assert len(nights.published) >= 2, shown
    assert all(each.done for each in nights.proxy.misdeeds), nights.proxy.misdeeds
    assert "unexpected ArrowInvalid" in "\n".join(decoded(nights.site))
    assert nights.proxy.secrets
    assert len(decoded_debug_lines(nights.site)) > 5, "libraries' logs are in Dagster's event log"


def decoded_debug_lines(site: Site) -> list[str]:
    return [line for line in decoded(site) if "HTTP Request" in line]


def test_no_secret_is_anywhere(nights: Nights) -> None:
    secrets = needles(nights)
    found = [
        (name, secret) for name, data in nights.everything() for secret in secrets if secret.encode() in data
    ]
    assert found == []


def test_nothing_that_looks_like_a_secret_is_anywhere(nights: Nights) -> None:
    found = [
        (name, match[0])
        for name, data in nights.everything()
        for each in _SHAPES
        if (match := each.search(data))
    ]
    assert found == []


def test_no_patient_is_anywhere_but_in_the_lake(nights: Nights) -> None:
    patients = content(nights.site) | set(NEEDLES)
    assert len(patients) > 20
    found = [
        (name, each, around(data, each.encode()))
        for name, data in nights.everything()
        for each in patients
        if each.encode() in data
    ]
    assert found == []


def around(data: bytes, what: bytes) -> bytes:
    at = data.index(what)
    return data[max(0, at - 200) : at + 60]


def test_the_search_finds_what_is_there(nights: Nights) -> None:
    """Against a search that cannot fail: the raw files hold the names."""
    raw = b"".join(
        path.read_bytes() for path in (nights.site.lake / "hosp" / "raw").rglob("*") if path.is_file()
    )
    assert any(each.encode() in raw for each in content(nights.site))
    assert NEEDLES[0].encode() in raw
