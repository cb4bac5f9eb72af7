"""What one run needs to work on one source: configuration, lake, facts, client, and who it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from pipeline.config import Config, Source
from pipeline.exports.facts import SUPPLEMENT
from pipeline.exports.ledger import Facts, Ledger
from pipeline.exports.owner import Owner
from pipeline.exports.state import AskAgain, Policy, Step, goes_on_from, next_step
from pipeline.lake.lake import Lake, open_lake

if TYPE_CHECKING:
    from pipeline.bulkdata.client import BulkClient
    from pipeline.bulkdata.profiles import Profile
    from pipeline.exports.connection import Connection


class Witness(Protocol):
    """A second place that remembers an accepted kick-off, should writing the fact fail (design, Facts)."""

    def accepted(self, export_id: str, intent: int, status_url: str, /) -> None:
        """Records the status URL at once."""

    def find_accepted(self, export_id: str, /) -> tuple[int, str] | None:
        """Intent number and status URL that were recorded for this export."""


class NoWitness:
    """For work outside an orchestrator: the fact is the only record."""

    def accepted(self, _export_id: str, _intent: int, _status_url: str, /) -> None:
        return None

    def find_accepted(self, _export_id: str, /) -> tuple[int, str] | None:
        return None


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Session:
    """One run's work on one source. Cheap to make: nothing is contacted or read before it is needed."""

    config: Config
    source: Source
    owner: Owner
    is_dead: Callable[[Owner], bool] = Owner.process_is_dead
    witness: Witness = field(default_factory=NoWitness)
    now: Callable[[], datetime] = utc_now
    attempt: int | None = None
    """The attempt that this run was started for; None when it may take whichever is next."""
    log: Callable[[str], None] = lambda _: None
    """Takes progress in words; never content, tokens or signed URLs."""

    @cached_property
    def lake(self) -> Lake:
        config = self.config
        return open_lake(config.lake, config.folder, config.lake_auth, config.secret, wipe=config.spool.wipe)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.lake, self.source.name)

    @cached_property
    def profile(self) -> Profile:
        """Raises `ConfigError` for a knob that does not fit."""
        from pipeline.exports.connection import profile_of

        return profile_of(self.source)

    @cached_property
    def connection(self) -> Connection:
        """Raises `ConfigError` when the key or another secret is missing."""
        from pipeline.exports.connection import connect

        return connect(self.config, self.source)

    @property
    def client(self) -> BulkClient:
        """Raises `ConfigError` when the key or another secret is missing."""
        return self.connection.client

    @property
    def policy(self) -> Policy:
        return Policy(
            max_attempts=self.source.max_attempts,
            deadline=timedelta(hours=self.source.deadline_hours),
            release=self.source.release,
            keep_raw=self.source.keep_raw,
            ask_again=self.source.ask_again.model_dump(),
        )

    def next_step(self, facts: Facts) -> Step:
        """What the rules say is next for an export, as seen by this run."""
        step = next_step(facts, self.now(), self.policy, self.is_dead)
        if isinstance(step, AskAgain) and step.cause == SUPPLEMENT and self._is_overtaken(facts):
            return next_step(facts, self.now(), self.policy, self.is_dead, overtaken=True)
        return step

    def _is_overtaken(self, facts: Facts) -> bool:
        """Whether a later export has found out itself what this one lacks, before anybody asked for it."""
        if facts.successor is not None or facts.supplement_of:
            return False
        later = (each for each in self.ledger.export_ids() if each > facts.export_id)
        return any(goes_on_from(facts, self.ledger.read(each)) for each in later)

    def table(self, table: str) -> str:
        """A table's folder, from the lake's root."""
        return f"{self.source.name}/tables/{table}"

    def table_place(self, table: str) -> str:
        """A table's folder or URL as people write it, with the storage account."""
        return f"{self.lake.place}/{self.table(table)}"

    def table_uri(self, table: str) -> str:
        return self.lake.table_uri(self.table(table))
