"""The doctor at the Dagster instance: where it, the lake and this machine contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter
from dagster._core.scheduler.instigation import InstigatorStatus
from dagster._daemon.types import DaemonHeartbeat

from pipeline.config import Config, Source
from pipeline.exports.doctor import examine_lake
from pipeline.exports.finding import Finding, Findings
from pipeline.exports.session import Session
from pipeline.orchestration.names import SOURCE_TAG, Names, names_of
from pipeline.orchestration.rebuilding import missing_materializations, missing_partitions, rebuild
from pipeline.orchestration.runs import dead_runs, reap_dead_runs, session_in_daemon

_SILENT_SECONDS = 300
_REPAIR = "`fhir-export doctor --repair`"
_START = "start the daemon: systemctl start fhir-export-daemon"


def examine(config: Config, source: Source, instance: dg.DagsterInstance) -> list[Finding]:
    """All that is wrong with a source, in the lake and in the instance, the worst first. Changes nothing."""
    session, names = session_in_daemon(config, source, instance), names_of(source)
    found = Findings(examine_lake(session))
    looks: dict[str, Callable[[], None]] = {
        "partitions": lambda: _partitions(session, instance, names, found),
        "materializations": lambda: _materializations(session, instance, names, found),
        "runs": lambda: _runs(session, instance, found),
        "pool": lambda: _pool(source, instance, found),
        "daemon": lambda: _daemon(source, instance, names, found),
    }
    for check, look in looks.items():
        found.look(check, f"the Dagster instance, {source.name}", look)
    return found.in_order()


def repair(
    config: Config, source: Source, instance: dg.DagsterInstance, say: Callable[[str], None]
) -> list[str]:
    """Mends what the instance has wrong; data and facts are never touched. What was done, in words.

    Raises `LakeError` when the source's exports cannot be read.
    """
    did = [f"run {run_id} was dead: failed, its slots freed" for run_id in reap_dead_runs(instance, source)]
    for run_id in _holders(source, instance):
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)
        did.append(f"the slot of run {run_id} was freed")
    session = session_in_daemon(config, source, instance)
    return did + rebuild(session, instance, names_of(source), say)


def _partitions(session: Session, instance: dg.DagsterInstance, names: Names, found: Findings) -> None:
    where = f"partitions {names.partitions.name}"
    missing = missing_partitions(session, instance, names)
    if missing:
        what = f"{len(missing)} exports of the lake are no partitions, {missing[0]} for one"
        found.add("warning", "partitions-missing", where, what, _REPAIR, repairable=True)
    known = set(session.ledger.export_ids())
    surplus = [
        each for each in instance.get_dynamic_partitions(names.partitions.name or "") if each not in known
    ]
    if surplus:
        what = f"{len(surplus)} partitions without any fact in the lake, {surplus[0]} for one"
        mend = (
            "nothing, where their kick-off failed before it was sent (its run says why); where the lake "
            "should have them: see that `lake` in the configuration is the right one"
        )
        found.add("note", "partitions-surplus", where, what, mend)


def _materializations(session: Session, instance: dg.DagsterInstance, names: Names, found: Findings) -> None:
    missing = missing_materializations(session, instance, names)
    if missing:
        export_id, keys = next(iter(missing.items()))
        example = f"{export_id} of {keys[0].to_user_string()}"
        what = f"{len(missing)} published exports are not shown as materialized, {example} for one"
        where = f"the Dagster instance, {names.source}"
        found.add("warning", "materializations-missing", where, what, _REPAIR, repairable=True)


def _runs(session: Session, instance: dg.DagsterInstance, found: Findings) -> None:
    for run in dead_runs(instance, session.source):
        what = f"{run.job_name} is {run.status.value}, and its process is gone"
        mend = f"nothing, the next tick or command fails it; or {_REPAIR}"
        found.add("warning", "run-dead", f"run {run.run_id}", what, mend, repairable=True)


def _pool(source: Source, instance: dg.DagsterInstance, found: Findings) -> None:
    for run_id in _holders(source, instance):
        what = f"run {run_id} holds a slot and is over: the next kick-off waits for it"
        mend = f"nothing where run monitoring is on (dagster.yaml); or {_REPAIR}"
        found.add("warning", "slot-held", f"pool {_pool_name(source)}", what, mend, repairable=True)


def _pool_name(source: Source) -> str:
    return f"{source.name}_kickoff"


def _holders(source: Source, instance: dg.DagsterInstance) -> list[str]:
    """Runs that are over, or unknown, and hold a slot of the source's pool."""
    info = instance.event_log_storage.get_concurrency_info(_pool_name(source))
    holders = []
    for run_id in sorted(info.active_run_ids):
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            holders.append(run_id)
    return holders


def _daemon(source: Source, instance: dg.DagsterInstance, names: Names, found: Findings) -> None:
    """Nothing is said where no daemon ever ran: the command line and cron need none."""
    beats: Iterable[DaemonHeartbeat] = list(instance.get_daemon_heartbeats().values())
    if not beats:
        return
    from pipeline.exports.session import utc_now

    now, where = utc_now().timestamp(), "the Dagster daemon"
    fresh = [each for each in beats if now - each.timestamp < _SILENT_SECONDS]
    if not fresh:
        last = max(each.timestamp for each in beats)
        what = f"it has not been heard of for {(now - last) / 60:.0f} minutes"
        found.add(
            "warning", "daemon-silent", where, what, f"{_START}. Until then nothing is polled or started"
        )
    elif len({each.daemon_id for each in fresh}) > 1:
        what = "its parts beat for two processes"
        mend = (
            "exactly one daemon may run: see which machines run `dagster-daemon`. Right after a restart this "
            "is normal: look again in five minutes"
        )
        found.add("warning", "daemons-two", where, what, mend)
    elif any(each.errors for each in fresh):
        names_of_failing = ", ".join(sorted(each.daemon_type.lower() for each in fresh if each.errors))
        what = f"errors of late in: {names_of_failing}"
        found.add(
            "warning", "daemon-failing", where, what, "read its log; Deployment > Daemons in the UI too"
        )
    _instigators(source, instance, names, found)
    queued = instance.get_runs(
        RunsFilter(statuses=[DagsterRunStatus.QUEUED], tags={SOURCE_TAG: source.name}), limit=20
    )
    if queued and not fresh:
        what = f"{len(queued)} runs are queued and nobody starts them"
        found.add("warning", "runs-queued", f"the Dagster instance, {source.name}", what, _START)


def _instigators(source: Source, instance: dg.DagsterInstance, names: Names, found: Findings) -> None:
    states = {each.instigator_name: each.status for each in instance.all_instigator_state()}
    for name in (names.sensor, names.flat_sensor, f"{source.name}_notices"):
        if states.get(name) == InstigatorStatus.STOPPED:
            mend = f"dagster sensor start {name} -m pipeline.definitions"
            found.add("warning", "sensor-stopped", f"sensor {name}", "it was stopped by hand", mend)
    if states.get(names.schedule) != InstigatorStatus.RUNNING:
        mend = f"dagster schedule start {names.schedule} -m pipeline.definitions, if nights are to start"
        what = "it is stopped: no export is opened by itself"
        found.add("note", "schedule-stopped", f"schedule {names.schedule}", what, mend)
