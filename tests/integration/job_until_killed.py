"""A Dagster job, killed with SIGKILL right behind a write to the lake: `... JOB EXPORT_ID PATTERN`.

`PATTERN`: a regular expression for the path, from the lake's root, of the write behind which it dies. Without
a match the job goes on to its end, and must succeed.
"""

from __future__ import annotations

import sys

import dagster as dg
from dagster._core.utils import make_new_run_id
from ingest_until_killed import deadly

from pipeline.definitions import defs
from pipeline.orchestration.runs import process_tag


def main(job: str, export_id: str, pattern: str) -> None:
    deadly("put_file", pattern, 1)
    deadly("put_new", pattern, 0)
    run_id = make_new_run_id()
    with dg.DagsterInstance.get() as instance:
        done = defs.resolve_job_def(job).execute_in_process(
            instance=instance, partition_key=export_id, run_id=run_id, tags=process_tag(run_id)
        )
    assert done.success


if __name__ == "__main__":
    main(*sys.argv[1:])
