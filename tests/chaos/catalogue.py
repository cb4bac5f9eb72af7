"""Every kind of fault that a plan may draw, as a script for the sandbox's control; and the kill points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Script = dict[str, Any]

TOKEN, KICKOFF, STATUS = r"/auth/token", r"\$export", r"/bulk/status/[^/]+$"
PAGE, FILE = r"/bulk/status/[^/]+/pages/", r"/bulk/files/.*\.ndjson"

LAKE_POINTS = {
    "intent": r"exports/[^/]+/intent(-\d+)?\.json",
    "request": r"exports/[^/]+/request\.json",
    "manifest": r"exports/[^/]+/manifest(-\d+)?\.json",
    "claim": r"exports/[^/]+/attempts/\d+\.json",
    "attempt error": r"exports/[^/]+/attempts/\d+\.error\.json",
    "raw": r"raw/.+",
    "landed": r"exports/[^/]+/landed/.+\.json",
    "part": r"tables/[a-z][^/]*/export_id=[^/]+/.+\.parquet",
    "staged": r"exports/[^/]+/staged/.+\.json",
    "commit": r"tables/[a-z][^/]*/_delta_log/.+\.json",
    "lineage": r"tables/_lineage/_delta_log/.+\.json",
    "exports row": r"tables/_exports/_delta_log/.+\.json",
    "published": r"exports/[^/]+/published/.+\.json",
    "receipt": r"exports/[^/]+/receipts/.+\.json",
    "released": r"exports/[^/]+/released\.json",
}
"""What appears in the lake of a source, and may be the last thing that a process does."""

REQUEST_POINTS = {
    "token request": ("POST", TOKEN),
    "kick-off request": (None, KICKOFF),
    "status request": ("GET", STATUS),
    "page request": ("GET", PAGE),
    "file request": ("GET", FILE),
    "delete request": ("DELETE", STATUS),
}
"""Method and path of the request that the server has just seen."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault. `weight`: how often it is drawn; `data_may_end`: it may end an export without data,
    with a reason (held, gone, rejected, cancelled), however short it lasts.
    """

    make: Callable[[Random], Script]
    weight: int = 2
    data_may_end: bool = False
    alters: bool = False
    """Lines arrive other than the server has them, in a way that no client can tell from bad data."""


def _status(
    path: str, *statuses: int, method: str | None = "GET", most: int = 2
) -> Callable[[Random], Script]:
    def make(random: Random) -> Script:
        status = random.choice(statuses)
        # A kick-off that is told 429 alone is asked again after five minutes: too long for a seed.
        told = status == 429 if path == KICKOFF else status in (429, 503) and random.random() < 0.7
        headers = {"Retry-After": "1"} if told else {}
        return {
            "path": path,
            "method": method,
            "status": status,
            "headers": headers,
            "body": random.choice(
                [
                    {
                        "resourceType": "OperationOutcome",
                        "issue": [{"severity": "error", "code": "transient"}],
                    },
                    {
                        "resourceType": "OperationOutcome",
                        "issue": [{"severity": "fatal", "code": "exception"}],
                    },
                    "<html><body>Bad gateway</body></html>",
                    "",
                ]
            ),
            "times": random.randint(1, most),
            "skip": random.choice([0, 0, 0, 1, 2]),
        }

    return make


def _nonsense(path: str, method: str | None) -> Callable[[Random], Script]:
    def make(random: Random) -> Script:
        said = random.choice(
            ["-5", "soon", "", "1e99", "99999999999999999999", "Thu, 01 Jan 1970 00:00:00 GMT", "0"]
        )
        return {
            "path": path,
            "method": method,
            "status": 503 if path == KICKOFF else random.choice([429, 503]),
            "headers": {"Retry-After": said},
            "times": 1,
        }

    return make


def _html(path: str, method: str | None = "GET") -> Callable[[Random], Script]:
    body = "<!DOCTYPE html><html><body>Please sign in</body></html>"
    return lambda random: {
        "path": path,
        "method": method,
        "status": 200,
        "body": body,
        "times": 1,
        "skip": random.choice([0, 0, 1]),
    }


def _redirect(path: str) -> Callable[[Random], Script]:
    where = "http://127.0.0.1:9/elsewhere"
    return lambda random: {
        "path": path,
        "method": "GET",
        "status": random.choice([302, 307]),
        "headers": {"Location": where},
        "times": 1,
        "skip": random.choice([0, 1]),
    }


def _body_cut(path: str, *, cut: bool, most: int) -> Callable[[Random], Script]:
    return lambda random: {
        "path": path,
        "method": "GET",
        "truncate_after": random.choice([0, 1, random.randint(2, 300), random.randint(300, most)]),
        "cut": cut,
        "times": random.randint(1, 2),
        "skip": random.choice([0, 0, 1, 3]),
    }


def _slow(path: str) -> Callable[[Random], Script]:
    return lambda random: {
        "path": path,
        "delay": random.choice([0.5, 1.5, 8.0]),
        "times": 1,
        "skip": random.choice([0, 1]),
    }


def _insert(*, ends_held: bool) -> Callable[[Random], Script]:
    def make(random: Random) -> Script:
        bad = random.choice(
            ["e25vdCBqc29uCg==", "eyJyZXNvdXJjZVR5cGUiOiJQYXRpZW50IgoK", "AP8K", "PGh0bWw+Cg=="]
        )
        return {
            "path": FILE,
            "method": "GET",
            "insert": [{"base64": bad, "after": random.choice([0, 1, 5, None])}],
            "times": None if ends_held else 1,
            "skip": random.choice([0, 1, 2]),
        }

    return make


def _manifest(**change: Any) -> Callable[[Random], Script]:
    return lambda random: {"path": STATUS, "method": "GET", "times": random.choice([1, 1, None]), **change}


CATALOGUE: dict[str, Kind] = {
    "token 5xx": Kind(_status(TOKEN, 500, 502, 503, method="POST", most=1)),
    "token 429": Kind(_status(TOKEN, 429, method="POST", most=1)),
    "token HTML": Kind(_html(TOKEN, "POST"), 1),
    "token cut": Kind(
        lambda random: {"path": TOKEN, "truncate_after": random.randint(0, 40), "cut": True}, 1
    ),
    "token short-lived": Kind(
        lambda random: {
            "path": TOKEN,
            "members": {"expires_in": random.choice([1, 0, -1, None, "1"])},
            "times": 2,
        }
    ),
    "tokens revoked": Kind(
        lambda random: {
            "path": random.choice([FILE, STATUS, KICKOFF]),
            "revoke_tokens": True,
            "times": random.randint(1, 2),
            "skip": random.randint(0, 3),
        }
    ),
    "token slow": Kind(_slow(TOKEN), 1),
    "kick-off 5xx": Kind(_status(KICKOFF, 500, 502, 503, 504, method=None, most=1)),
    "kick-off 429": Kind(_status(KICKOFF, 429, method=None, most=1)),
    "kick-off nonsense Retry-After": Kind(_nonsense(KICKOFF, None)),
    "kick-off HTML": Kind(_html(KICKOFF, None), 1, data_may_end=True),
    "kick-off refused": Kind(_status(KICKOFF, 400, 403, 422, method=None, most=1), 1, data_may_end=True),
    "kick-off answer lost": Kind(
        lambda random: {"path": KICKOFF, "truncate_after": 0, "cut": True, "times": 1}
    ),
    "kick-off done and 500": Kind(
        lambda random: {"path": KICKOFF, "answer": 202, "status": random.choice([500, 502, 504])}
    ),
    "kick-off without address": Kind(
        lambda random: {"path": KICKOFF, "headers": {"Content-Location": ""}, "times": 1},
        1,
        data_may_end=True,
    ),
    "status 5xx": Kind(_status(STATUS, 500, 502, 503, 504), 3, data_may_end=True),
    "status 429": Kind(_status(STATUS, 429, most=3)),
    "status nonsense Retry-After": Kind(_nonsense(STATUS, "GET")),
    "status HTML": Kind(_html(STATUS)),
    "status redirect": Kind(_redirect(STATUS), 1, data_may_end=True),
    "status cut": Kind(_body_cut(STATUS, cut=True, most=900)),
    "status truncated": Kind(_body_cut(STATUS, cut=False, most=900), 1),
    "status slow": Kind(_slow(STATUS), 1),
    "gone": Kind(
        lambda random: {
            "path": STATUS,
            "method": "GET",
            "gone": random.choice([404, 410]),
            "skip": random.randint(0, 2),
        },
        1,
        data_may_end=True,
    ),
    "stuck": Kind(lambda random: {"path": STATUS, "method": "GET", "stuck": True}, 1, data_may_end=True),
    "job failed": Kind(
        lambda random: {"path": STATUS, "method": "GET", "failed": random.choice([500, 422])},
        1,
        data_may_end=True,
    ),
    "manifest reordered": Kind(
        lambda random: {"path": STATUS, "answer": 200, "changes": ["reordered"], "times": 1, "skip": 1}
    ),
    "manifest with new URLs": Kind(
        lambda random: {"path": STATUS, "answer": 200, "changes": ["new_urls"], "times": None},
        data_may_end=True,
    ),
    "manifest with a file twice": Kind(
        lambda random: {
            "path": STATUS,
            "answer": 200,
            "changes": ["repeated"],
            "times": random.choice([1, None]),
        },
        1,
        data_may_end=True,
    ),
    "manifest with a file more": Kind(
        lambda random: {
            "path": STATUS,
            "answer": 200,
            "changes": ["appeared"],
            "times": random.choice([1, None]),
        },
        1,
        data_may_end=True,
    ),
    "page 5xx": Kind(_status(PAGE, 500, 503)),
    "page cut": Kind(_body_cut(PAGE, cut=True, most=900), 1),
    "page HTML": Kind(_html(PAGE), 1),
    "file 5xx": Kind(_status(FILE, 500, 502, 503, 504, most=3), 3),
    "file 429": Kind(_status(FILE, 429, most=4)),
    "file nonsense Retry-After": Kind(_nonsense(FILE, "GET")),
    "file 401": Kind(_status(FILE, 401, most=1)),
    "file expired 403": Kind(_status(FILE, 403, most=2), data_may_end=True),
    "file 404": Kind(_status(FILE, 404, most=1), data_may_end=True),
    "file dropped": Kind(_body_cut(FILE, cut=True, most=9000), 4),
    "file truncated": Kind(_body_cut(FILE, cut=False, most=9000), 4, data_may_end=True),
    "file lines missing": Kind(
        lambda random: {"path": FILE, "drop_lines": random.choice([1, 3]), "skip": random.choice([0, 2])},
        3,
        data_may_end=True,
    ),
    "file corrupt": Kind(
        lambda random: {
            "path": FILE,
            "corrupt": {"at": random.randint(0, 4000), "every": random.choice([None, 3000])},
            "times": random.choice([1, 2]),
            "skip": random.choice([0, 1, 3]),
        },
        3,
        data_may_end=True,
        alters=True,
    ),
    "file drips": Kind(lambda random: {"path": FILE, "slow": 9000, "times": 2}, 1),
    "file HTML": Kind(_html(FILE), 2, data_may_end=True),
    "file redirect": Kind(_redirect(FILE), 1, data_may_end=True),
    "file slow": Kind(_slow(FILE), 2),
    "file media type": Kind(
        lambda random: {"path": FILE, "headers": {"Content-Type": "text/html"}, "times": 1},
        1,
        data_may_end=True,
    ),
    "file bad line": Kind(_insert(ends_held=False), 2, data_may_end=True),
    "wrong count": Kind(_manifest(wrong_count=1), 2, data_may_end=True),
    "wrong type": Kind(_manifest(retype="Basic"), 1, data_may_end=True),
    "no type": Kind(_manifest(retype=""), 1, data_may_end=True),
    "delete 5xx": Kind(_status(STATUS, 500, 503, method="DELETE", most=1)),
    "delete 404": Kind(_status(STATUS, 404, method="DELETE", most=1), 1),
    "delete answer lost": Kind(
        lambda random: {"path": STATUS, "method": "DELETE", "truncate_after": 0, "cut": True, "times": 1}, 1
    ),
}

SERVER_EVENTS = ("restart", "pause", "revoke")
"""The server itself is killed and started again, stands still for a while, forgets every token."""
