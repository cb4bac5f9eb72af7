"""For all tests: the same examples every time, no deadline that a busy machine could miss, and a DuckDB
connection that no other test has left in the middle of a result."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _own_duckdb() -> Iterator[None]:
    yield
    duckdb.set_default_connection(duckdb.connect())
