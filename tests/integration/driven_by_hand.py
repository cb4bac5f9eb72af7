"""An export from kick-off to end by the rules alone, without Dagster, on a clock that skips the waits.

Every step is a run of its own with nothing in memory, as after a crash.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from independent_reader import parse
from ingest_by_hand import ingest
from nightly_site import Site
from sandbox_as_caller import assertion, caller, export, token_form

from pipeline.errors import ExportError
from pipeline.exports.closing import hold, reject
from pipeline.exports.ledger import Facts
from pipeline.exports.owner import this_process
from pipeline.exports.request import request_export
from pipeline.exports.session import Session
from pipeline.exports.state import (
    AskAgain,
    Closed,
    Damaged,
    Hold,
    Ingest,
    KickOff,
    Poll,
    Reject,
    Tidy,
    describe,
)
from pipeline.exports.tidying import tidy
from pipeline.exports.watch import NotYet, look

EXPORT = "20260101T020000Z"
_STEPS = 80


@dataclass
class Drive:
    """One export of a site, on a clock of its own: what would be waited for is skipped."""

    site: Site
    export_id: str = EXPORT
    skipped: timedelta = timedelta()
    steps: int = 0

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skipped

    def session(self) -> Session:
        self.steps += 1
        owner = this_process(f"step-{self.steps}")
        return Session(self.site.config, self.site.source, owner, is_dead=lambda _: True, now=self.now)

    def to_the_end(self) -> Facts:
        """Does what is next until nothing is."""
        looks = 0
        for _ in range(_STEPS):
            session = self.session()
            facts = session.ledger.read(self.export_id)
            match session.next_step(facts):
                case KickOff(_, _, not_before) | Ingest(_, _, not_before) if self._is_ahead(not_before):
                    continue
                case KickOff():
                    self._tried(request_export, session, self.export_id, timedelta(0))
                case Poll(overdue=False):
                    seen = look(session, facts, looks)
                    looks += 1
                    if isinstance(seen, NotYet):
                        self.skipped += timedelta(seconds=max(seen.wait, 1))
                    else:
                        self._tried(ingest, session, self.export_id)
                case Ingest() | Poll():
                    self._tried(ingest, session, self.export_id)
                case Hold() as step:
                    hold(session, self.export_id, step)
                case Reject() as step:
                    reject(session, self.export_id, step)
                case Tidy():
                    tidy(session, self.export_id)
                    self.skipped += timedelta(minutes=10)
                case AskAgain() | Closed() | Damaged():
                    return facts
                case step:
                    raise AssertionError(step)
        raise AssertionError(f"no end after {_STEPS} steps: {self.words()}")

    def words(self) -> tuple[str, str]:
        """State and reason, as `fhir-export exports` has them."""
        session = self.session()
        facts = session.ledger.read(self.export_id)
        return describe(facts, session.next_step(facts), self.now())

    def _is_ahead(self, moment: datetime | None) -> bool:
        if moment is None or moment <= self.now():
            return False
        self.skipped += moment - self.now()
        return True

    @staticmethod
    def _tried(step: Any, *arguments: Any) -> None:
        with suppress(ExportError):  # the facts have it, or the next step shows that they do not
            step(*arguments)


def fresh(site: Site, folder: Path, **source: Any) -> Site:
    """An installation with an empty lake that asks the same sandbox."""
    home = folder / "home"
    home.mkdir(parents=True)
    config = yaml.safe_load(site.config_path.read_text())
    config["lake"] = str(folder / "lake")
    entry = config["sources"][0]
    entry["auth"]["private_key"] = f"file:{site.home / 'keys' / 'hosp.pem'}"
    entry.update(source)
    (home / "exports.yaml").write_text(yaml.safe_dump(config))
    (home / "dagster.yaml").write_text((site.home / "dagster.yaml").read_text())
    return Site(folder, site.sandbox, site.patients, site.seed)


def files_handed_out(site: Site, types: str) -> list[list[bytes]]:
    """What the sandbox gives a caller made of httpx and pyjwt: the lines of each file of a manifest."""
    pem = site.home / str(site.source.auth.private_key).removeprefix("file:")
    key = load_pem_private_key(pem.read_bytes(), None)
    kid = json.loads(site.sandbox.jwks_file.read_text())["keys"][0]["kid"]
    signed = assertion(site.sandbox.audience, key=key, kid=kid, alg="ES384")
    form = {**token_form(signed), "scope": "system/*.rs"}
    token = httpx.post(site.sandbox.token_url, data=form).json()["access_token"]
    with caller(site.sandbox.fhir_url, token) as http:
        output = export(http, query=f"_type={types}")["output"]
        return [http.get(entry["url"]).content.splitlines(keepends=True) for entry in output]


def handed_out(site: Site, types: str) -> dict[str, dict[str, Any]]:
    """Those resources by the type that they have and by id."""
    found: dict[str, dict[str, Any]] = {}
    for lines in files_handed_out(site, types):
        for line in lines:
            resource = parse(line)
            rows = found.setdefault(resource["resourceType"], {})
            assert resource["id"] not in rows
            rows[resource["id"]] = resource
    return found
