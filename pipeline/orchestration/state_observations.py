"""State, reason and next step of each export, as observations of `export_receipt`.

What the UI shows of an export that has no receipt yet, and why.
"""

from __future__ import annotations

import dagster as dg
from dagster import AssetRecordsFilter

from pipeline.exports.ledger import Facts
from pipeline.exports.overview import ExportSummary, summary
from pipeline.exports.session import Session
from pipeline.orchestration.names import Names

_STATE = "state"
_WORDS = (_STATE, "reason", "next_step")


class StateObservations:
    """Observes what has changed, and only that; the event log remembers what a code server told before."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._last: dict[str, tuple[str, ...]] = {}

    def observe(
        self, instance: dg.DagsterInstance, session: Session, facts: Facts
    ) -> list[dg.AssetObservation]:
        """One observation where state, reason or next step are others than last time; else none."""
        found = summary(session, facts)
        words = (found.state, found.reason, found.next_step)
        if words == (self._last.get(facts.export_id) or self._logged(instance, facts.export_id)):
            self._last[facts.export_id] = words
            return []
        self._last[facts.export_id] = words
        return [_observation(self._names, facts, found)]

    def _logged(self, instance: dg.DagsterInstance, export_id: str) -> tuple[str, ...] | None:
        key = self._names.key("export_receipt")
        wanted = AssetRecordsFilter(asset_key=key, asset_partitions=[export_id])
        for record in instance.fetch_observations(wanted, limit=1).records:
            observation = record.asset_observation
            if observation is not None and _STATE in observation.metadata:
                return tuple(str(observation.metadata[name].value) for name in _WORDS)
        return None


def _observation(names: Names, facts: Facts, found: ExportSummary) -> dg.AssetObservation:
    return dg.AssetObservation(
        names.key("export_receipt"),
        partition=facts.export_id,
        description=f"{found.state}: {found.reason}",
        metadata={
            _STATE: found.state,
            "reason": found.reason,
            "next_step": found.next_step,
            "attempts": len(facts.claims),
            "age": str(found.age).partition(".")[0],
        },
    )
