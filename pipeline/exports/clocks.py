"""How far the clocks of servers are from ours, by the `Date` of their answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.exports.verdict import Doubtful, NotNeeded
from pipeline.retry_after import http_date

if TYPE_CHECKING:
    import httpx

WORTH_TELLING = 60.0
"""Seconds; tokens and signatures begin to fail at some servers."""

GREATEST = 240.0
"""Seconds: as long as our assertions live. A server further ahead sees each of them expired."""

_SENT_AT = "fhir_export_sent_at"


@dataclass
class Clocks:
    """Listens to the answers that a client gets. `now` gives seconds of the epoch."""

    now: Callable[[], float] = time.time
    _ahead: dict[str, float] = field(default_factory=dict)
    """Origin -> seconds that its clock is ahead of ours (negative: behind), as close as could be told."""

    def listen(self, http: httpx.Client) -> None:
        """Note every answer that this client gets from now on."""
        http.event_hooks = {
            "request": [*http.event_hooks["request"], self._sent],
            "response": [*http.event_hooks["response"], self._answered],
        }

    def note(self, who: str, headers: Mapping[str, str], sent: float, received: float) -> None:
        """One answer of `who`; an answer out of a cache is older by its `Age`."""
        theirs = http_date(headers.get("date", ""))
        if theirs is None:
            return
        age = headers.get("age", "")
        moment = theirs.timestamp() + (int(age) if age.isascii() and age.isdigit() and len(age) < 9 else 0)
        # A Date is cut to its second, and was written at some time between sending and receiving.
        ahead = moment - received if moment > received else min(0.0, moment + 1 - sent)
        self._ahead[who] = min(self._ahead.get(who, ahead), ahead, key=abs)

    def verdict(self) -> str:
        """Words when all agree with ours. Raises `NotNeeded` where no answer told the time, `Doubtful` beyond
        WORTH_TELLING, `ConfigError` from GREATEST on.
        """
        if not self._ahead:
            raise NotNeeded("no server told its time")
        who, ahead = max(self._ahead.items(), key=lambda each: abs(each[1]))
        if abs(ahead) <= WORTH_TELLING:
            return f"within {max(1, round(abs(ahead)))} s of {', '.join(self._ahead)}"
        side = "behind" if ahead > 0 else "ahead of"
        cause = f"this machine's clock is {abs(ahead):.0f} s {side} that of {who}"
        agree = [each for each, other in self._ahead.items() if abs(other) <= WORTH_TELLING]
        advice = (
            f"{', '.join(agree)} agrees with this machine: tell the operator of {who}"
            if agree
            else "Set this machine's clock by NTP (`timedatectl` shows whether it is)"
        )
        if abs(ahead) < GREATEST:
            raise Doubtful(cause, advice)
        raise ConfigError(f"{cause}, and sign-ins and signatures live for minutes", advice)

    def _sent(self, request: httpx.Request) -> None:
        request.extensions[_SENT_AT] = self.now()

    def _answered(self, response: httpx.Response) -> None:
        from pipeline.auth.origins import origin

        received = self.now()
        sent = response.request.extensions.get(_SENT_AT, received)
        self.note(origin(response.request.url), response.headers, sent, received)
