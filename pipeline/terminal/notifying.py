"""A test of everybody who is to be told."""

from __future__ import annotations

from datetime import UTC, datetime

from pipeline.config import Config
from pipeline.errors import ConfigError, ExportError
from pipeline.notify.kinds import addressees, tell_all
from pipeline.notify.notice import Notice
from pipeline.terminal.screen import give


def send_test(config: Config) -> ExportError | None:
    """Sends a test notice to every notifier and prints how each took it; the first error there was.

    Raises `ConfigError` where nobody is to be told.
    """
    if not config.notify:
        raise ConfigError("the configuration tells nobody", "Add a webhook under notify")
    notice = Notice(
        event="test",
        source="fhir-export",
        state="test",
        reason="somebody ran `fhir-export notify --test`",
        next_step="nothing",
        at=datetime.now(UTC),
    )
    verdicts = tell_all(config, notice)
    for name, error in verdicts.items():
        give(f"  {'bad' if error else 'ok':<8}{name}: {error.cause if error else 'it was taken'}")
        if error is not None and error.advice:
            give(f"          -> {error.advice}")
    return next((error for error in verdicts.values() if error is not None), None)


def show_notifiers(config: Config) -> None:
    """Who is told what."""
    for each in addressees(config):
        whom = ", ".join(each.settings.sources) or "all sources"
        give(f"  {each.notifier.name} ({each.settings.format}): {', '.join(each.settings.events)} of {whom}")
    if not config.notify:
        give("nobody is told; docs/configuration.md says how (notify)")
