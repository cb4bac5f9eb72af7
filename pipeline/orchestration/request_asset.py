"""`group` (or `patients`, `system`) and `export_request`: what is asked for, and the kick-off."""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

from datetime import timedelta

import dagster as dg

from pipeline.config import Config, Source
from pipeline.exports.request import request_export
from pipeline.orchestration.asset_metadata import request_metadata
from pipeline.orchestration.names import names_of
from pipeline.orchestration.runs import session_in_step
from pipeline.unexpected import contained

KICKOFF_SECONDS = 600
"""A kick-off run that takes longer is ended by run monitoring: it never blocks the next night."""

_PATIENCE = timedelta(seconds=120)


def group_spec(source: Source) -> dg.AssetSpec:
    """What the server has: outside of Dagster, the origin of every column."""
    export = source.export
    what = {"group": f"Group/{export.group}", "patient": "all patients", "system": "the whole system"}
    return dg.AssetSpec(
        names_of(source).origin,
        group_name=source.name,
        description=f"{what[export.level]} at {source.fhir_url}",
        metadata={"fhir_url": dg.MetadataValue.url(source.fhir_url)},
        kinds={"fhir"},
    )


def build_request_asset(config: Config, source: Source) -> dg.AssetsDefinition:
    """The asset that signs in and kicks off `$export`."""
    names = names_of(source)

    @dg.asset(
        key=names.key("export_request"),
        deps=[names.origin],
        partitions_def=names.partitions,
        group_name=source.name,
        kinds={"fhir"},
        pool=f"{source.name}_kickoff",
        op_tags={"dagster/retry_on_asset_or_op_failure": "false"},
        description=(
            "Signs in as a backend service and kicks off $export, once per partition: materializing it again "
            "finds the request that was accepted and sends nothing."
        ),
    )
    @contained
    def export_request(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        session = session_in_step(config, source, context.op_execution_context)
        facts = request_export(session, context.partition_key, _PATIENCE)
        return dg.MaterializeResult(metadata=request_metadata(facts))

    return export_request
