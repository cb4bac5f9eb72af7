"""The judge: the server's own lines against raw files and tables, the facts as plain JSON, the server's log.

No code of ours: tables by delta-rs' list of files and DuckDB, facts by `json`, resources by the tests' own
comparison (`independent_reader`).
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from deltalake import DeltaTable
from independent_reader import differences, parse, rows

from chaos.export_facts import WITHOUT_DATA, Facts, moment
from chaos.server_truth import ServerTruth

OVER = ("published", "held", "gone", "rejected", "cancelled", "withdrawn")
"""States that an export may be left in."""

_SMALL = "_"


@dataclass
class Verdict:
    """What the oracle found; every list is empty when all is well."""

    published: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    """Exports by the state that they are left in."""
    resources: int = 0
    """Compared."""
    lost: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    """Sightings of part of an export, and exports listed that are not whole."""
    server: list[str] = field(default_factory=list)
    """What was done to the server and should not have been."""
    quarantined: int = 0
    scans: int = 0

    @property
    def problems(self) -> dict[str, list[str]]:
        """By kind, without the empty ones."""
        kinds = ("lost", "altered", "duplicated", "stuck", "partial", "server")
        return {kind: getattr(self, kind) for kind in kinds if getattr(self, kind)}


class Oracle:
    """Judges the lake of one source (its folder), the server and its log."""

    def __init__(self, source: Path, truth: ServerTruth, log: list[dict[str, Any]]) -> None:
        self._source = source
        self._tables = source / "tables"
        self._truth = truth
        self._log = log
        self.verdict = Verdict()
        self._files = {
            table.name: _files_by_export(table) for table in self._tables.glob("*") if table.is_dir()
        }
        for name, files in self._files.items():
            self._require_files(name, files)
        self._jobs = {job["id"]: job for job in truth.control()["jobs"]}
        self._lines_altered = False
        self._excused: Counter[str] = Counter()

    def judge(
        self,
        listed: list[dict[str, Any]],
        sightings: dict[str, Any],
        *,
        data_may_end: bool = False,
        lines_altered: bool = False,
        answers_lost: int = 0,
    ) -> Verdict:
        """`listed`: what `fhir-export exports --json` says. What the plan excuses: `data_may_end`, an export
        may end without data; `lines_altered`, as many lines may be missing as the receipt names in
        quarantine; `answers_lost`, so many kick-offs may have made a job behind an error.
        """
        self._lines_altered = lines_altered
        facts = {folder.name: Facts(folder) for folder in sorted((self._source / "exports").glob("*"))}
        whole = set(self._files.get("_exports", {}))
        for export, known in facts.items():
            if export in whole or known.receipts:
                self._judge_data(export, known)
            elif any(export in files for name, files in self._files.items() if not name.startswith(_SMALL)):
                self._judge_unlisted(export, known)
        for export in whole - facts.keys():
            self.verdict.partial.append(f"{export} is in _exports and has no facts")
        self._judge_states(facts, listed, data_may_end=data_may_end)
        self._judge_server(facts, answers_lost)
        self._judge_sightings(sightings)
        return self.verdict

    def _require_files(self, table: str, files: dict[str, list[str]]) -> None:
        for export, paths in files.items():
            missing = [path for path in paths if not Path(path).exists()]
            self.verdict.lost += [f"{export} {table}: a file that the table names is not there"] * len(
                missing
            )
            files[export] = [path for path in paths if path not in missing]

    def truth_of(self, known: Facts) -> dict[str, Counter[bytes]] | None:
        """The lines that the server has for an export; None where it never took the request."""
        job = self._jobs.get(known.job or "")
        return None if job is None else self._truth.of_job(job)

    # --- data -----------------------------------------------------------------------------------------

    def _judge_data(self, export: str, known: Facts) -> None:
        self.verdict.published += 1
        if export not in self._files.get("_exports", {}):
            self.verdict.partial.append(f"{export} has a receipt and is not in _exports")
        if not known.receipts:
            self.verdict.partial.append(f"{export} is in _exports and has no receipt")
        truth = self.truth_of(known)
        if truth is None:
            self.verdict.altered.append(f"{export}: the server has no job for it")
            return
        self._excused = self._quarantined(export, known)
        bent = self._excused.total() if self._lines_altered else 0
        for kind in sorted({*truth, *self._tables_of(export)} - {"deleted", "error"}):
            lines = truth.get(kind, Counter())
            self._compare_table(export, kind, lines)
        self._compare_raw(export, known, truth, bent)

    def _tables_of(self, export: str) -> set[str]:
        """Tables that have files of an export, by a name as resource types are written or as they are."""
        names = {kind.lower(): kind for kind in self._truth.types()}
        return {
            names.get(name, name)
            for name, files in self._files.items()
            if export in files and not name.startswith(_SMALL)
        }

    def _compare_table(self, export: str, kind: str, lines: Counter[bytes]) -> None:
        table = rows(self._files.get(kind.lower(), {}).get(export, []))
        self.verdict.resources += lines.total()
        by_id: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in table:
            by_id[row.get("id")].append(row)
        unmatched = []
        for line in lines.elements():
            resource = parse(line)
            same = by_id.get(resource.get("id"), [])
            match = next((row for row in same if not differences(row, resource)), None)
            if match is None:
                unmatched.append((resource, line))
            else:
                same.remove(match)
        for resource, line in unmatched:
            left = by_id.get(resource.get("id"), [])
            where = f"{export} {kind}"
            if left:
                elements = differences(left.pop(), resource)
                self.verdict.altered.append(f"{where}: {', '.join(elements)}")
            elif self._is_excused(line):
                self.verdict.quarantined += 1
            else:
                self.verdict.lost.append(where)
        spare = sum(len(left) for left in by_id.values())
        self.verdict.duplicated += [f"{export} {kind}: a row that the server has not, or has once"] * spare

    def _compare_raw(self, export: str, known: Facts, truth: dict[str, Counter[bytes]], bent: int) -> None:
        """Byte for byte; what a fault put into a file besides may be there too. `bent`: lines excused."""
        if known.has("raw-dropped.json") or not (self._source / "raw" / export).exists():
            return
        kept: Counter[bytes] = Counter()
        for data in self._raw_files(known):
            kept.update(line for line in data.split(b"\n") if line.strip())
        sent: Counter[bytes] = Counter()
        for lines in truth.values():
            sent.update(lines)
        missing = (sent - kept).total() - bent
        self.verdict.lost += [f"{export}: a line is not among the raw bytes"] * missing
        twice = sum(number > sent[line] for line, number in kept.items() if line in sent)
        self.verdict.duplicated += [f"{export}: a raw line twice"] * twice

    def _raw_files(self, known: Facts) -> Iterator[bytes]:
        for batch in known.below("landed"):
            packed = (self._source.parent / batch["raw"]).read_bytes()
            for file in batch["files"]:
                data = packed[file["offset"] : file["offset"] + file["length"]]
                yield gzip.decompress(data) if file["encoding"] == "gzip" else data

    def _quarantined(self, export: str, known: Facts) -> Counter[str]:
        """Digests of the lines that the receipt names as bad; with any it must not move the watermark."""
        if not known.receipts or not known.receipts[-1].get("quarantine"):
            return Counter()
        if known.receipts[-1].get("watermark"):
            self.verdict.lost.append(f"{export}: lines in quarantine, and the watermark moved")
        entries = [
            json.loads(line)
            for path in known.receipts[-1]["quarantine"]
            for line in (self._source.parent / path).read_bytes().splitlines()
        ]
        return Counter(entry["sha256"] for entry in entries)

    def _is_excused(self, line: bytes) -> bool:
        """Whether a line that is missing is in quarantine: itself, or what became of it on its way."""
        digest = sha256(line).hexdigest()
        if digest not in self._excused:
            others = [each for each, number in self._excused.items() if number]
            if not (self._lines_altered and others):
                return False
            digest = others[0]
        self._excused[digest] -= 1
        return True

    def _judge_unlisted(self, export: str, known: Facts) -> None:
        if not any(known.has(f"{state}.json") for state in WITHOUT_DATA):
            self.verdict.partial.append(
                f"{export}: rows in tables, neither in _exports nor ended with a reason"
            )

    # --- states ---------------------------------------------------------------------------------------

    def _judge_states(
        self, facts: dict[str, Facts], listed: list[dict[str, Any]], *, data_may_end: bool
    ) -> None:
        told = {each["export_id"]: each for each in listed}
        for export, known in facts.items():
            state, reason = told.get(export, {}).get("state"), told.get(export, {}).get("reason")
            self.verdict.ended[str(state)] = self.verdict.ended.get(str(state), 0) + 1
            if state not in OVER:
                self.verdict.stuck.append(f"{export} is left {state}: {reason}")
            elif not reason:
                self.verdict.stuck.append(f"{export} is {state} and does not say why")
            if state in WITHOUT_DATA and not data_may_end:
                self.verdict.stuck.append(
                    f"{export} is {state} although no fault of the plan is a cause: {reason}"
                )
            if (state == "published") != bool(known.receipts) and state != "withdrawn":
                self.verdict.stuck.append(f"{export} is {state}, and its receipts are {len(known.receipts)}")

    def _judge_server(self, facts: dict[str, Facts], answers_lost: int) -> None:
        """One job for each export, none that nobody knows of unless an answer was lost; DELETE last."""
        ours = self._jobs.keys() - self._truth.jobs
        known = Counter(each.job for each in facts.values() if each.job)
        self.verdict.server += [
            f"job {job} belongs to {number} exports" for job, number in known.items() if number > 1
        ]
        unsure = answers_lost + sum(each.uncertain for each in facts.values())
        orphans = ours - known.keys()
        if len(orphans) > unsure:
            self.verdict.server.append(f"{len(orphans)} jobs that no export knows, {unsure} lost answers")
        receipts = {each.job: each for each in facts.values()}
        for entry in self._log:
            job = re.fullmatch(r"/bulk/status/([^/]+)", entry["path"])
            if entry["method"] != "DELETE" or job is None or job[1] in self._truth.jobs:
                continue
            export = receipts.get(job[1])
            if export is None:
                if job[1] in ours:
                    continue  # an orphan that was found and cancelled
                self.verdict.server.append(f"DELETE of job {job[1]}, which nobody knows")
            elif not export.may_be_deleted(moment(entry["time"])):
                self.verdict.server.append(f"DELETE of job {job[1]} at {entry['time']}, before its receipt")
        for each in facts.values():
            if (
                each.receipts
                and not each.has("released.json")
                and not self._jobs.get(each.job or "", {}).get("deleted")
            ):
                self.verdict.server.append(f"{each.folder.name}: published, and its job was never released")

    # --- sightings ------------------------------------------------------------------------------------

    def _judge_sightings(self, sightings: dict[str, Any]) -> None:
        self.verdict.scans = sightings["scans"]
        self.verdict.partial += sightings["broken"]
        final = {
            (export, name): _rows_of(files[export])
            for name, files in self._files.items()
            for export in files
            if not name.startswith(_SMALL)
        }
        for export, table, seen in sightings["seen"]:
            if seen not in (0, final.get((export, table), 0)):
                self.verdict.partial.append(f"{seen} rows of {export} seen in {table}")
        for export, table, seen in sightings["whole"]:
            if seen != final.get((export, table), 0):
                self.verdict.partial.append(f"{export} was in _exports with {seen} rows in {table}")


def _files_by_export(table: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    if any((table / "_delta_log").glob("*.json")):
        for uri in DeltaTable(str(table)).file_uris():
            path = uri.removeprefix("file://")
            found[path.rpartition("export_id=")[2].partition("/")[0]].append(path)
    return found


def _rows_of(files: list[str]) -> int:
    return sum(pq.read_metadata(path).num_rows for path in files)
