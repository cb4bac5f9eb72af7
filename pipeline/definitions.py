"""What Dagster loads: the sources of the configuration file (`EXPORTS_CONFIG`, see `pipeline.config`)."""

from __future__ import annotations

from pipeline.config import load_config
from pipeline.log_redaction import keep_logs_clean
from pipeline.orchestration.factory import build_definitions

keep_logs_clean()
defs = build_definitions(load_config())
