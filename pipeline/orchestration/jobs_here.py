"""Jobs that run in this process, as a command wants them: their trouble as an error in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import dagster as dg
from dagster._core.execution.stats import StepEventStatus
from dagster._core.utils import make_new_run_id

from pipeline.errors import ExportError, LakeError
from pipeline.orchestration.heartbeat import BEATS_TAG, beating
from pipeline.orchestration.instance import DATABASE_ERRORS, unusable
from pipeline.orchestration.runs import announcement, process_tag


@dataclass(frozen=True)
class JobsHere:
    """The jobs of one source; what their steps log is said, too."""

    instance: dg.DagsterInstance
    source: str
    definitions: dg.Definitions
    tags: Mapping[str, str]
    say: Callable[[str], None]

    @property
    def names(self) -> set[str]:
        """Of the jobs that there are."""
        return {job.name for job in self.definitions.jobs or ()}

    def run(self, job: str, export_id: str | None) -> tuple[str, ExportError | None]:
        """Runs a job, for an export or (None) for all of them: the run's id, and what went wrong.

        Never raises for the job's sake.
        """
        run_id = make_new_run_id()
        listening = announcement.set(self.say)
        error: ExportError | None = None
        try:
            with beating(self.instance, self.source, run_id):
                self.definitions.resolve_job_def(job).execute_in_process(
                    instance=self.instance,
                    partition_key=export_id,
                    run_id=run_id,
                    tags={**self.tags, **process_tag(run_id), BEATS_TAG: "yes"},
                    # The event log has it all; the terminal belongs to `say`.
                    run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                    raise_on_error=True,
                )
        except Exception as problem:  # noqa: BLE001 - the event log has the traceback, the outcome must be told
            error = _in_words(problem, run_id)
            self.say(str(error))
        finally:
            announcement.reset(listening)
            self.end(run_id)
        return run_id, error

    def failed_in(self, run_id: str, step: str) -> bool:
        """Whether that step of a run has failed."""
        stats = self.instance.get_run_step_stats(run_id, [step])
        return any(each.status == StepEventStatus.FAILURE for each in stats)

    def end(self, run_id: str) -> None:
        """A run that is over, also where its end was not recorded: else we would wait for it."""
        run = self.instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            self.instance.report_run_failed(run, message="its end could not be recorded")
            self.instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def _in_words(problem: Exception, run_id: str) -> ExportError:
    if isinstance(problem, ExportError):
        return problem
    if isinstance(problem, DATABASE_ERRORS):
        return unusable(problem)
    if isinstance(problem, OSError):
        return LakeError(
            f"a file could not be read or written: {problem.strerror or type(problem).__name__}",
            "See that the disks of lake and temporary files have space, then run the command again",
        )
    return ExportError(f"unexpected {type(problem).__name__}", f"Run {run_id} shows where")
