"""The control endpoint: set the night, script faults, see what was asked. From this machine only."""

from __future__ import annotations

from ipaddress import ip_address

from starlette.requests import Request
from starlette.responses import Response

from pipeline.sandbox.faults import Faults
from pipeline.sandbox.jobs import Jobs
from pipeline.sandbox.outcomes import Refusal, decoded, json_response
from pipeline.sandbox.tokens import Gate


class Control:
    """GET /control reports, POST /control changes: `night`, `faults` (a whole script), `revoke_tokens`."""

    def __init__(self, jobs: Jobs, tokens: Gate, faults: Faults) -> None:
        self._jobs = jobs
        self._tokens = tokens
        self._faults = faults

    async def endpoint(self, request: Request) -> Response:
        """Either method; the answer is the state afterwards."""
        host = request.client.host if request.client else ""
        if not host or not ip_address(host).is_loopback:
            raise Refusal(403, "forbidden", "Control is for this machine only")
        if request.method == "POST":
            self._change(decoded(await request.body()))
        return json_response(
            {
                "night": self._jobs.night,
                "kickoffs": self._jobs.kickoffs,
                "token_requests": self._tokens.requests,
                "jobs": self._jobs.describe(),
                "faults": self._faults.describe(),
            }
        )

    def _change(self, wanted: object) -> None:
        if not isinstance(wanted, dict) or set(wanted) - {"night", "faults", "revoke_tokens"}:
            raise Refusal(400, "value", "Control takes night, faults and revoke_tokens")
        night = wanted.get("night", self._jobs.night)
        if type(night) is not int or not 1 <= night <= 3650:
            raise Refusal(400, "value", "night must be a whole number, 1 or more")
        if "faults" in wanted:
            self._faults.replace(wanted["faults"])
        if night != self._jobs.night:
            self._jobs.set_night(night)
        if wanted.get("revoke_tokens"):
            self._tokens.revoke_all()
