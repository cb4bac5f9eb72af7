"""From a seed to its schedule: how the server is, what it does wrong, who is killed when. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from chaos.catalogue import CATALOGUE, LAKE_POINTS, REQUEST_POINTS, SERVER_EVENTS

TYPES = (
    "Patient",
    "Observation",
    "Encounter",
    "Condition",
    "Procedure",
    "MedicationRequest",
    "AllergyIntolerance",
)

LIVES = 3
"""Of the command line in a night, at most, as long as faults are on."""

STEP = "step process"
SERVICE_TARGETS = ("daemon", "run worker", STEP, "code server", "webserver")
IN_PROCESS = "in_process"


@dataclass(frozen=True)
class Moment:
    """When something happens: `after` seconds, or behind the `number`-th new thing at the kill point."""

    after: float = 0.0
    point: str = ""
    number: int = 1


@dataclass(frozen=True)
class Life:
    """One process, or one stretch of the services: who is killed, what the server goes through meanwhile."""

    kill: Moment | None = None
    target: str = "command"
    server: str = ""
    """One of `SERVER_EVENTS`, `server_after` seconds from the start and for `server_for` seconds."""
    server_after: float = 0.0
    server_for: float = 0.0
    file_limit: int = 0
    """Bytes that a file may have in this life, as on a full disk; 0: no limit."""


@dataclass(frozen=True)
class FaultPlan:
    """A fault by its kind, and its script for the control endpoint."""

    kind: str
    script: dict[str, Any]


@dataclass(frozen=True)
class Night:
    """The faults of a night, and the lives that meet them."""

    faults: tuple[FaultPlan, ...]
    lives: tuple[Life, ...]


@dataclass(frozen=True)
class Plan:
    """All of a seed. Times in seconds."""

    seed: int
    driver: str
    types: tuple[str, ...] | None
    sandbox: dict[str, Any]
    source: dict[str, Any]
    executor: str
    nights: tuple[Night, ...] = field(default=())

    @property
    def kinds(self) -> set[str]:
        """The kinds of its faults."""
        return {fault.kind for night in self.nights for fault in night.faults}

    @property
    def data_may_end(self) -> bool:
        """Whether an export of it may end without data, if it says why."""
        return any(CATALOGUE[kind].data_may_end for kind in self.kinds)

    def as_json(self) -> dict[str, Any]:
        """For the results."""
        return asdict(self)


def plan_of(seed: int) -> Plan:
    """The schedule of a seed; one of ten is for the services."""
    random = Random(f"chaos-{seed}")
    driver = "services" if seed % 10 == 9 else "command line"
    nights = random.choices([1, 2, 3], [6, 3, 1])[0] if driver == "command line" else 1
    executor = random.choice([IN_PROCESS, "multiprocess"]) if driver == "services" else IN_PROCESS
    planned = tuple(_night(random, driver, executor) for _ in range(nights))
    kinds = {fault.kind for night in planned for fault in night.faults}
    paged = any(kind.startswith("page") for kind in kinds)
    sandbox = {
        "patients": random.randint(5, 60),
        "seed": random.randint(1, 1000),
        "file_lines": random.choice([10, 40, 40, 200, 1000]),
        "gzip": random.choice(["accepted", "never", "never", "bare"]),
        "page_size": random.choice([1, 3, 5]) if paged else random.choice([0, 0, 0, 3]),
        "export_seconds": random.choice([0.2, 0.5, 1.0, 2.0]),
        "poll_seconds": random.choice([0, 1.0]),
        "one_at_a_time": random.random() < 0.3,
        "token_seconds": random.choice([None, None, None, 30]),
    }
    types = None if random.random() < 0.03 else tuple(random.sample(TYPES, random.choice([1, 2, 2, 3])))
    source = {
        "deadline_hours": (30 if "stuck" in kinds else 1800) / 3600,
        "max_attempts": 3,
        "keep_raw": random.random() < 0.8,
        "on_partial": random.choice(["publish", "hold"]),
    }
    if types and random.random() < 0.2:
        source["shards"] = {types[0]: 2}
    return Plan(seed, driver, types, sandbox, source, executor, planned)


def _night(random: Random, driver: str, executor: str) -> Night:
    count = random.choices([0, 1, 2, 3, 4, 6], [2, 3, 3, 2, 1, 1])[0]
    kinds = random.choices(list(CATALOGUE), [kind.weight for kind in CATALOGUE.values()], k=count)
    faults = tuple(FaultPlan(kind, CATALOGUE[kind].make(random)) for kind in dict.fromkeys(kinds))
    kills = random.choices([0, 1, 2, 3], [2, 4, 3, 1])[0]
    numbers = range(max(1, min(kills, LIVES)))
    lives = tuple(_life(random, driver, executor, kill=number < kills) for number in numbers)
    return Night(faults, lives)


def _service(random: Random, executor: str) -> str:
    """There are step processes with the multiprocess executor only."""
    return random.choice([each for each in SERVICE_TARGETS if executor != IN_PROCESS or each != STEP])


def _life(random: Random, driver: str, executor: str, *, kill: bool) -> Life:
    server = random.choices(["", *SERVER_EVENTS], [7, 1, 1, 1])[0]
    return Life(
        kill=_moment(random) if kill else None,
        target="command" if driver == "command line" else _service(random, executor),
        server=server,
        server_after=round(random.uniform(2, 8), 2),
        server_for=round(random.uniform(0.5, 4), 2),
        file_limit=random.choice([0] * 9 + [random.choice([50_000, 200_000, 600_000])])
        if driver != "services"
        else 0,
    )


def _moment(random: Random) -> Moment:
    if random.random() < 0.15:
        return Moment(after=round(random.uniform(1.0, 9.0), 2))
    points = [*LAKE_POINTS, *REQUEST_POINTS]
    several = random.choice([1, 1, 1, 2, 3])
    point = random.choice(points)
    once = point in (
        "intent",
        "request",
        "exports row",
        "lineage",
        "published",
        "receipt",
        "released",
        "claim",
    )
    return Moment(point=point, number=1 if once else several)
