"""Keys, names and tags that Dagster knows a source by."""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg

from pipeline.config import Source

SOURCE_TAG = "fhir-export/source"
WORK_TAG = "fhir-export/work"
"""What a requested run is for: `<source>:<export id>:<attempt>`."""
PROCESS_TAG = "fhir-export/process"
"""The process that a run lives in, where no launcher looks after it."""


@dataclass(frozen=True)
class Names:
    """The names of one source."""

    source: str
    origin_name: str = "group"

    @property
    def origin(self) -> dg.AssetKey:
        """What the server has, outside of Dagster: the group, the patients or the system."""
        return self.key(self.origin_name)

    @property
    def partitions(self) -> dg.DynamicPartitionsDefinition:
        """A partition is an export run (facts/dagster.md 10)."""
        return dg.DynamicPartitionsDefinition(name=f"{self.source}_exports")

    def key(self, name: str) -> dg.AssetKey:
        return dg.AssetKey([self.source, name])

    @property
    def kickoff_job(self) -> str:
        return f"{self.source}_kickoff"

    @property
    def ingest_job(self) -> str:
        return f"{self.source}_ingest"

    @property
    def flat_job(self) -> str:
        return f"{self.source}_flat"

    @property
    def current_job(self) -> str:
        return f"{self.source}_current"

    @property
    def current_sensor(self) -> str:
        return f"{self.source}_current_automation"

    @property
    def attachments_job(self) -> str:
        return f"{self.source}_attachments"

    @property
    def attachments_sensor(self) -> str:
        return f"{self.source}_attachments_automation"

    @property
    def tidy_job(self) -> str:
        return f"{self.source}_tidy"

    @property
    def retention_job(self) -> str:
        return f"{self.source}_retention"

    @property
    def retention_schedule(self) -> str:
        return f"{self.source}_retention_schedule"

    @property
    def maintenance_job(self) -> str:
        return f"{self.source}_maintenance"

    @property
    def maintenance_schedule(self) -> str:
        return f"{self.source}_maintenance_schedule"

    @property
    def schedule(self) -> str:
        return f"{self.source}_schedule"

    @property
    def resync_schedule(self) -> str:
        return f"{self.source}_full_resync"

    @property
    def sensor(self) -> str:
        return f"{self.source}_status"

    @property
    def flat_sensor(self) -> str:
        return f"{self.source}_flat_status"

    @property
    def tags(self) -> dict[str, str]:
        return {SOURCE_TAG: self.source}


def names_of(source: Source) -> Names:
    """The names of a source; where `group` is the table of the type Group, the origin is called otherwise."""
    origin = {"group": "group", "patient": "patients", "system": "system"}[source.export.level]
    if origin == "group" and "Group" in (source.export.types or ()):
        origin = "group_on_server"
    return Names(source.name, origin)
