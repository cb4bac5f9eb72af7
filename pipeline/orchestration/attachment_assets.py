"""Attachments: one unpartitioned asset, downstream of the tables that name them. Opt-in.

Declarative automation asks for it when such a table was published; `run --wait` has the same job run in its
own process. Nothing waits for it: what cannot be fetched leaves the export published.
"""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pipeline.config import Config, Source
from pipeline.exports.attachments.blobs import FOLDER
from pipeline.exports.attachments.links import LINKS
from pipeline.orchestration.current_assets import published_since
from pipeline.orchestration.known_types import static_types
from pipeline.orchestration.names import Names, names_of
from pipeline.orchestration.runs import session_in_step
from pipeline.tables.definitions import table_name
from pipeline.unexpected import contained

if TYPE_CHECKING:
    from pipeline.exports.attachments.linking import Linked

_SECONDS = 24 * 3600
_EVERY_SECONDS = 30
_NO_RETRIES = {"dagster/max_retries": "0"}  # the next publish asks again


def build_attachment_assets(config: Config, source: Source) -> list[dg.AssetsDefinition]:
    """The step that fetches and links attachments; none where the configuration wants none."""
    if source.attachments is None:
        return []
    names = names_of(source)

    @dg.asset(
        name="attachments",
        key_prefix=source.name,
        deps=_deps(source, names),
        group_name=f"{source.name}_attachments",
        kinds={"deltalake"},
        pool=f"{source.name}_attachments",
        automation_condition=published_since(),
        op_tags={"dagster/priority": "-1"},
        description="The documents that resources name, fetched and kept by their sha256, with their links.",
    )
    @contained
    def attachments(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        from pipeline.exports.attachments.run import link_attachments, require_all

        session = session_in_step(config, source, context.op_execution_context)
        found = list(link_attachments(session))
        require_all(found)
        return dg.MaterializeResult(
            metadata={
                **_counts(found),
                "dagster/table_name": f"{source.name}.{LINKS}",
                "dagster/uri": session.table_place(LINKS),
                "folder": f"{session.lake.place}/{source.name}/{FOLDER}",
            }
        )

    return [attachments]


def build_attachment_job(
    source: Source, attachments: list[dg.AssetsDefinition], executor: dg.ExecutorDefinition
) -> list[UnresolvedAssetJobDefinition]:
    """The job that the command line runs, and that anyone may start by hand."""
    names = names_of(source)
    return [
        dg.define_asset_job(
            names.attachments_job,
            selection=[step],
            description="Fetches the attachments of published exports, and links them.",
            run_tags={**names.tags, **_NO_RETRIES, "dagster/max_runtime": str(_SECONDS)},
            executor_def=executor,
        )
        for step in attachments
    ]


def build_attachment_automation(
    source: Source, attachments: list[dg.AssetsDefinition]
) -> list[dg.AutomationConditionSensorDefinition]:
    """Looks twice a minute whether a table that names attachments was published."""
    names = names_of(source)
    return [
        dg.AutomationConditionSensorDefinition(
            names.attachments_sensor,
            target=dg.AssetSelection.assets(*step.keys),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=_EVERY_SECONDS,
            run_tags={**names.tags, **_NO_RETRIES, "dagster/max_runtime": str(_SECONDS)},
            description=f"Has the attachments of {source.name} fetched after each export.",
        )
        for step in attachments
    ]


def _deps(source: Source, names: Names) -> list[dg.AssetDep]:
    """The tables that name attachments; of those that are no assets yet the receipt tells."""
    wanted = source.attachments.types if source.attachments else ()
    static = static_types(source)
    keys = [names.key(table_name(each)) for each in wanted if each in static]
    if len(keys) < len(wanted):
        keys = [names.key("export_receipt")]
    return [dg.AssetDep(key, partition_mapping=dg.AllPartitionMapping()) for key in keys]


def _counts(found: "list[Linked]") -> dict[str, Any]:
    states: dict[str, int] = {}
    for each in found:
        for state, count in each.states.items():
            states[state] = states.get(state, 0) + count
    return {
        "exports": ", ".join(each.export_id for each in found) or "none since the last time",
        "attachments": sum(states.values()),
        **{state.replace(" ", "_"): count for state, count in states.items()},
        "fetched": sum(each.fetched for each in found),
        "fetched_bytes": sum(each.fetched_bytes for each in found),
    }
