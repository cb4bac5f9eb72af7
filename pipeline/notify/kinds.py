"""Every kind of notifier, and how the configuration becomes one.

Another kind is a function `(Config, settings) -> Notifier`, put into `KINDS`, or offered by an installed
package as an entry point of the group `fhir_export.notifiers`, named as the kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

from pipeline.config import Config
from pipeline.config import Notifier as Settings
from pipeline.errors import ConfigError, ExportError
from pipeline.notify.bodies import BODIES
from pipeline.notify.notice import Notice, Notifier
from pipeline.notify.webhook import Webhook

GROUP = "fhir_export.notifiers"

Build = Callable[[Config, Settings], Notifier]


def webhook(config: Config, settings: Settings) -> Notifier:
    """A POST to the URL that `settings.url` refers to."""

    def url() -> str:
        try:
            return config.secret(settings.url).decode()
        except UnicodeDecodeError:
            raise ConfigError(f"{settings.url} holds no URL") from None

    return Webhook(url, BODIES[settings.format], settings.url)


KINDS: dict[str, Build] = {"webhook": webhook}


@dataclass(frozen=True)
class Addressee:
    """Somebody who is told of some things."""

    settings: Settings
    notifier: Notifier

    @property
    def id(self) -> str:
        """Of the address as the configuration names it: no secret goes into it."""
        named = f"{self.settings.kind}\n{self.settings.url}"
        return hashlib.sha256(named.encode()).hexdigest()[:8]

    def wants(self, notice: Notice) -> bool:
        """Whether the configuration says that it is told this."""
        sources = self.settings.sources
        return notice.event in self.settings.events and (not sources or notice.source in sources)


def addressees(config: Config) -> list[Addressee]:
    """Everybody under `notify`. No secret is read yet. Raises `ConfigError` for an unknown kind."""
    return [Addressee(each, _kind(each.kind)(config, each)) for each in config.notify]


def _kind(name: str) -> Build:
    if name in KINDS:
        return KINDS[name]
    for point in entry_points(group=GROUP, name=name):
        build: Build = point.load()
        return build
    raise ConfigError(f"there is no notifier of kind {name!r}", f"There are: {', '.join(sorted(KINDS))}")


def tell_all(config: Config, notice: Notice) -> dict[str, ExportError | None]:
    """Tells everybody at once, whatever they want to hear of; what went wrong, by notifier."""
    verdicts: dict[str, ExportError | None] = {}
    for addressee in addressees(config):
        try:
            addressee.notifier.tell(notice)
            verdicts[addressee.notifier.name] = None
        except ExportError as error:
            verdicts[addressee.notifier.name] = error
        except Exception as error:  # noqa: BLE001 - one of others may raise anything: the rest is told
            verdicts[addressee.notifier.name] = ExportError(f"unexpected {type(error).__name__}")
    return verdicts
