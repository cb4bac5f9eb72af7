"""What comes out of a step when something fails that nobody foresaw: where and what kind, and no content."""

# No `from __future__ import annotations`: Dagster reads the type of `context` from the function itself.

import pickle
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import httpx
import pytest

from pipeline.errors import ExportError, LakeError
from pipeline.exports.strays import StrayLines
from pipeline.unexpected import contained, place, told


def content() -> str:
    """Made at run time, so that no line of source holds it."""
    return "-".join(("Ann", "Miller"))


def read_it() -> None:
    next(StrayLines(Path()).take(content()))


def refuse_it() -> None:
    try:
        raise httpx.InvalidURL(f"https://h/{content()}")
    except httpx.InvalidURL:
        raise LakeError("the lake is away", "Wait")  # noqa: B904 - such a context is what is tried


def chain(error: BaseException) -> str:
    links = [error, error.__cause__, error.__context__]
    return " ".join(repr(each) for each in links if each is not None)


def test_a_foreign_error_comes_out_with_kind_and_place_and_without_its_text() -> None:
    with pytest.raises(ExportError) as failed:
        contained(read_it)()
    assert "strays.py, line " in failed.value.cause
    assert failed.value.cause.startswith("unexpected ")
    assert content() not in chain(failed.value)
    assert failed.value.__cause__ is None
    assert failed.value.__context__ is None
    names = [frame.name for frame in failed.traceback]
    assert "take" in names, "the frames are kept"
    assert pickle.loads(pickle.dumps(failed.value)).cause == failed.value.cause


def test_an_error_of_ours_comes_out_as_it_is_without_what_stands_behind_it() -> None:
    with pytest.raises(LakeError) as failed:
        contained(refuse_it)()
    assert failed.value.cause == "the lake is away"
    assert content() not in chain(failed.value)
    assert failed.value.__context__ is None


def test_interruptions_pass() -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        contained(stopped)()


def test_dagsters_event_log_gets_no_content_from_any_kind_of_step() -> None:
    @dg.op
    @contained
    def returning(context: dg.OpExecutionContext) -> None:
        read_it()

    @dg.op(out={"one": dg.Out(dg.Nothing)})
    @contained
    def yielding(context: dg.OpExecutionContext) -> Iterator[dg.Output[None]]:
        yield dg.Output(None, "one")
        refuse_it()

    @dg.asset
    @contained
    def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        raise ValueError(content())

    @dg.job
    def both() -> None:
        returning()
        yielding()

    with dg.DagsterInstance.ephemeral() as instance:
        runs = [
            both.execute_in_process(instance=instance, raise_on_error=False).run_id,
            dg.materialize([asset], instance=instance, raise_on_error=False).run_id,
        ]
        failures = 0
        for run in runs:
            for entry in instance.all_logs(run):
                assert content() not in repr(entry)
                failures += bool(entry.dagster_event and entry.dagster_event.is_step_failure)
    assert failures == 3


def test_a_sensor_looks_the_same_to_dagster() -> None:
    @dg.sensor(job_name="j")
    @contained
    def looking(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return dg.SkipReason(context.cursor)

    with dg.DagsterInstance.ephemeral() as instance:
        skipped = looking(dg.build_sensor_context(instance, cursor="seen"))
    assert isinstance(skipped, dg.SkipReason)


def test_frames_are_told_without_texts_and_texts_only_to_who_asks() -> None:
    try:
        read_it()
    except Exception as error:  # noqa: BLE001 - whichever it is
        assert content() not in told(error)
        assert "strays.py" in told(error)
        assert "strays.py" in place(error)
        assert "withheld" not in told(error, with_texts=True)
