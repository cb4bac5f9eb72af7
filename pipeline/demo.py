"""The demo: a whole night on this machine, with the real parts.

Sandbox FHIR server, Dagster daemon and schedule are processes of their own, as they would be in earnest; this
module starts them, watches the facts, and shows what came of it. It writes under the lake and DAGSTER_HOME of
the sandbox's configuration only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from pipeline.config import Config, Source, load_config, secret_path
from pipeline.errors import ConfigError, ExportError, StillRunning
from pipeline.exports.facts import Receipt
from pipeline.exports.owner import this_process
from pipeline.exports.session import Session
from pipeline.exports.state import Closed, Tidy, describe
from pipeline.exports.watermark import supplements

if TYPE_CHECKING:
    from pipeline.sandbox.process import SandboxProcess

PATIENTS = 100
_NIGHT_SECONDS = 600.0
_FLAT_SECONDS = 600.0
_CURRENT_SECONDS = 900
_CODE = ("-m", "pipeline.definitions")

Say = Callable[[str], None]


def run_demo(say: Say, config_path: Path | None = None) -> None:
    """One night: schedule, kick-off, sensor, ingest, tables; then everything is stopped.

    Raises `ConfigError` when the sandbox cannot be started, `StillRunning` when the night takes too long,
    and whatever the export ended with.
    """
    with ExitStack() as stack:
        demo = _Demo(config_path or Path("dagster_home") / "exports.yaml", say)
        night = demo.nights() + 1
        sandbox = stack.enter_context(demo.sandbox(night))
        say(f"the sandbox FHIR server answers at {sandbox.fhir_url}: {PATIENTS} patients, night {night}")
        # Before the daemon, so that no two processes make the instance's database at once.
        before = set(demo.session.ledger.export_ids())
        demo.schedule("start")
        stack.enter_context(demo.daemon())
        say("the Dagster daemon is started; the schedule opens an export run at the next full minute")
        try:
            export_id = demo.scheduled_export(before)
        finally:
            demo.schedule("stop")
        demo.follow(export_id)
        demo.follow_flat_tables(export_id)
        demo.follow_supplement(export_id)
        demo.follow_current_tables()
        receipt = demo.session.ledger.read(export_id).receipt
        assert receipt is not None  # noqa: S101 - for the type checker: follow() has waited for it
        demo.show(export_id, receipt)


def run_ui(say: Say, config_path: Path | None = None, port: int = 3000) -> None:
    """The Dagster UI and the sandbox behind it, until Ctrl-C."""
    demo = _Demo(config_path or Path("dagster_home") / "exports.yaml", say)
    night = max(demo.nights(), 1)
    with demo.sandbox(night):
        say(f"the Dagster UI comes up at http://127.0.0.1:{port} (Ctrl-C ends it)")
        command = demo.dagster("dagster", "dev", *_CODE, "-h", "127.0.0.1", "-p", str(port))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop is a stop, by Ctrl-C or by kill
        # A session of its own: the signal reaches the webserver, daemon and code server once, from here.
        process = subprocess.Popen(command, env=demo.environment, start_new_session=True)  # noqa: S603
        try:
            process.wait()
        except KeyboardInterrupt:
            say("stopping the Dagster UI and its daemon")
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Stops a process and all that it has started, politely first."""
    for number, seconds in ((signal.SIGINT, 12), (signal.SIGTERM, 8), (signal.SIGKILL, 10)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


class _Demo:
    def __init__(self, config_path: Path, say: Say) -> None:
        self.path = config_path.absolute()
        self.config: Config = load_config(self.path)
        self.source: Source = self.config.source(None)
        self.say = say
        self.home = self.path.parent
        self.session = Session(self.config, self.source, this_process("demo"))
        self.environment = {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "EXPORTS_CONFIG": str(self.path),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
        }
        # Not "logs": Dagster's own tools take a folder of that name for their telemetry, and move it.
        self.logs = self.home / "demo-logs"
        self.logs.mkdir(exist_ok=True)
        if (lake := self.session.lake.folder) is not None:
            lake.mkdir(mode=0o700, parents=True, exist_ok=True)  # `check` asks no less of patients' data

    def dagster(self, tool: str, *arguments: str) -> list[str]:
        """The command line of a Dagster tool of this very installation."""
        return [str(Path(sys.executable).with_name(tool)), *arguments]

    @contextmanager
    def sandbox(self, night: int) -> Iterator[SandboxProcess]:
        from pipeline.exports.connection import signer_for
        from pipeline.sandbox.process import start_sandbox

        self._ensure_key()
        url = urlsplit(self.source.fhir_url)
        if url.hostname not in ("127.0.0.1", "localhost"):
            raise ConfigError(
                f"{self.path} is not the sandbox's configuration", "The demo uses dagster_home/exports.yaml"
            )
        port = url.port or 80
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise ConfigError(
                    f"port {port} is taken", f"Stop what listens there, or change fhir_url in {self.path}"
                ) from None
        signer = signer_for(self.config, self.source)
        with start_sandbox(
            patients=PATIENTS, night=night, port=port, jwks={"keys": [signer.public_jwk()]}, file_lines=500
        ) as sandbox:
            yield sandbox

    def _ensure_key(self) -> None:
        from pipeline.auth.keys import generate_key, write_private_key

        reference = self.source.auth.private_key or ""
        path = secret_path(reference, self.config.folder)
        if path is None:
            raise ConfigError(f"{reference} is not a file: reference", "The demo makes its own key file")
        if not path.exists():
            write_private_key(path, generate_key(self.source.auth.algorithm))
            self.say(f"made a private key: {path.name} (mode 0600)")

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """The daemon, which runs schedules and sensors; stopped at the end, and waited for."""
        log = self.logs / "daemon.log"
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own command
                self.dagster("dagster-daemon", "run", *_CODE),
                env=self.environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=self.home.parent,
            )
            try:
                yield
            finally:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def nights(self) -> int:
        """How many there were: exports but for supplements, and for those that came to nothing."""
        every = (self.session.ledger.read(each) for each in self.session.ledger.export_ids())
        return sum(not each.supplement_of and not each.closings.keys() - {"held"} for each in every)

    def scheduled_export(self, before: set[str]) -> str:
        """Waits for the export run that the schedule opens."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            new = sorted(set(self.session.ledger.export_ids()) - before)
            if new:
                self.say(f"the schedule has opened export run {new[0]}")
                return new[0]
            time.sleep(0.3)
        raise StillRunning("the schedule has not opened an export run", f"See {self.logs / 'daemon.log'}")

    def schedule(self, verb: str) -> None:
        """Starts or stops the schedule as an operator would. Raises `ConfigError`."""
        done = subprocess.run(  # noqa: S603 - our own command
            self.dagster("dagster", "schedule", verb, f"{self.source.name}_schedule", *_CODE),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home.parent,
        )
        if done.returncode and "already" not in done.stderr + done.stdout:
            raise ConfigError(f"the schedule cannot be {verb}ed: {done.stderr.strip()[-400:]}")

    def follow(self, export_id: str) -> None:
        """Says what happens until the export is published. Raises what it ended with otherwise."""
        deadline = time.monotonic() + _NIGHT_SECONDS
        said = ""
        while time.monotonic() < deadline:
            facts = self.session.ledger.read(export_id)
            step = self.session.next_step(facts)
            state, reason = describe(facts, step, self.session.now())
            if state != said:
                self.say(f"{state}: {reason}")
                said = state
            if facts.receipt and isinstance(step, Closed | Tidy):
                return
            if isinstance(step, Closed):
                raise ExportError(f"the export is {state}: {reason}", f"See {self.logs}")
            time.sleep(0.3)
        raise StillRunning("the night takes too long", f"See {self.logs / 'daemon.log'}")

    def follow_flat_tables(self, export_id: str) -> None:
        """Waits for the flat tables, which the same run makes after the receipt: the daemon ends with us."""
        from pipeline.exports.flattening import published, standing, wanted_names

        wanted = wanted_names(self.source, published(self.session, export_id))
        deadline = time.monotonic() + _FLAT_SECONDS
        while None in (flat := standing(self.session, export_id, wanted)).values():
            if time.monotonic() > deadline:
                missing = ", ".join(name for name, rows in flat.items() if rows is None)
                self.say(f"flat tables are missing: {missing}; see {self.logs / 'daemon.log'}")
                return
            time.sleep(1)
        self.say(f"{len(flat)} flat tables are made from them")

    def follow_supplement(self, export_id: str) -> None:
        """What the export's `_since` leaves out comes in an export run of its own: the sensor opens it."""
        intent = self.session.ledger.read(export_id).asked
        if intent is None or not (intent.lacks.patients or intent.lacks.types):
            return
        if new := intent.lacks.patients:
            self.say(f"{new} patients are new in the group: a supplement brings all they have")
        if intent.lacks.types:
            self.say(f"{', '.join(intent.lacks.types)} is new: a supplement brings all there is of it")
        deadline = time.monotonic() + _NIGHT_SECONDS
        while not (found := list(supplements(self.session, self.session.ledger.read(export_id)))):
            if time.monotonic() > deadline:
                raise StillRunning("the supplement is not opened", f"See {self.logs / 'daemon.log'}")
            time.sleep(0.3)
        self.say(f"the sensor has opened export run {found[-1].export_id}")
        self.follow(found[-1].export_id)

    def follow_current_tables(self) -> None:
        """Waits for the run that automation starts for the current tables, and for its end."""
        from dagster import RunsFilter

        from pipeline.exports.current import current_types, is_current
        from pipeline.orchestration.instance import open_database
        from pipeline.orchestration.names import SOURCE_TAG

        deadline = time.monotonic() + _CURRENT_SECONDS
        ours = RunsFilter(tags={SOURCE_TAG: self.source.name})
        with open_database(self.config) as instance:
            while time.monotonic() < deadline:
                done = all(is_current(self.session, each) for each in current_types(self.session))
                if done and all(run.is_finished for run in instance.get_runs(ours)):
                    self.say("the current tables, with what is true now, are made and checked")
                    return
                time.sleep(1)
        self.say(f"current tables are missing; see {self.logs / 'daemon.log'}")

    def show(self, export_id: str, receipt: Receipt) -> None:
        """The tables with their rows, where one row came from, and how to go on."""
        console = Console()
        tables = Table(title=f"Export {export_id} of {self.source.name}", title_justify="left")
        for name in ("table", "rows", "files", "Parquet kB", "Delta version"):
            tables.add_column(name, justify="left" if name == "table" else "right")
        for table, counts in sorted(receipt.tables.items()):
            tables.add_row(
                table,
                f"{counts.rows:,}",
                str(counts.files),
                f"{counts.bytes / 1000:,.0f}",
                str(counts.version),
            )
        tables.add_section()
        tables.add_row("all", f"{receipt.rows:,}", str(receipt.files), "", "")
        console.print(tables)
        console.print(self._lineage(export_id))
        console.print(
            "Look at it:\n"
            "  make dev          the Dagster UI at http://127.0.0.1:3000, with this night in it\n"
            f"  .venv/bin/fhir-export show {self.source.name}/{export_id}\n"
            f"  .venv/bin/fhir-export to-ndjson {self.source.name}/patient | head -n 1\n"
            f"The tables lie in {self._shown(self.session.lake.full(self.source.name))}: what is true now in "
            "current/, each export in tables/; the README tells how to query them.",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )

    def _lineage(self, export_id: str) -> Table:
        """One row of `patient`, followed back: file and line, manifest entry, export, Dagster run."""
        row = _first_row(self.session, "patient", export_id, ["id", "_source_file", "_source_line"])
        origin = next(
            each
            for each in _rows(self.session, "_lineage", export_id)
            if each["source_file"] == row["_source_file"]
        )
        export = _first_row(self.session, "_exports", export_id, None)
        lines = Table(title="Where one row came from", title_justify="left", show_header=False)
        lines.add_column(no_wrap=True)
        lines.add_column(overflow="fold")
        for name, value in (
            ("row", f"patient, id {row['id']}"),
            ("file, line", f"{row['_source_file']}, line {row['_source_line']} of {origin['lines']}"),
            ("raw bytes", f"{origin['raw_path']} from {origin['raw_offset']}, {origin['raw_length']} bytes"),
            ("sha256", origin["sha256"]),
            ("manifest entry", f"output[{origin['manifest_index']}] {origin['url']}"),
            ("manifest count", f"{origin['manifest_count']} (transactionTime {origin['transaction_time']})"),
            ("export", f"{self.source.name}/{export_id}, {export['level']} {export['group_id']}"),
            ("Dagster run", str(export["dagster_run_id"])),
        ):
            lines.add_row(name, str(value))
        return lines

    def _shown(self, path: str) -> str:
        try:
            return str(Path(path).relative_to(Path.cwd()))
        except ValueError:
            return path


def _rows(session: Session, table: str, export_id: str) -> list[dict[str, object]]:
    from pipeline.tables.delta import live_parts
    from pipeline.tables.parts import open_part

    found: list[dict[str, object]] = []
    for part in live_parts(session.table_uri(table), export_id, session.lake.storage_options):
        with (
            session.lake.local_copy(f"{session.table(table)}/{part.path}") as path,
            open_part(path) as opened,
        ):
            found += opened.read().to_pylist()
    return found


def _first_row(session: Session, table: str, export_id: str, columns: list[str] | None) -> dict[str, object]:
    rows = _rows(session, table, export_id)
    if not rows:
        raise ExportError(f"{table} has no row of export {export_id}")
    return {name: rows[0][name] for name in columns or rows[0]}
