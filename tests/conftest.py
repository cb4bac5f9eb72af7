"""For all tests: the same examples every time, no deadline that a busy machine could miss, a DuckDB
connection that no other test has left in the middle of a result, a certificate authority that every client of
the process and of its children trusts, and Azurite for those who ask for it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from authority import Authority, make_authority

_FOLDER = Path(tempfile.mkdtemp(prefix="tests-authority-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_AUTHORITY = make_authority(_FOLDER)
# Before anything imports aiohttp or requests: they look once, when they are imported.
os.environ.update(_AUTHORITY.environment)

import duckdb
import pytest
from azure_storage import Azurite, start_azurite
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

LONGEST = ("test_current_month.py", "test_five_side_by_side.py", "test_demo_runs.py", "test_chaos_short.py")
"""Files that take minutes for a few tests: begun last, one of them would be waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order in which the workers take them: the longest, then by their number of tests."""
    sizes = Counter(item.path for item in items)
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (ranks.get(item.path.name, len(ranks)), -sizes[item.path], str(item.path)))


@pytest.fixture(autouse=True)
def _own_duckdb() -> Iterator[None]:
    yield
    duckdb.set_default_connection(duckdb.connect())


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The one that everything here trusts, by the environment."""
    return _AUTHORITY


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azurite over plain http with its account key; each test makes containers of its own."""
    with start_azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture(scope="session")
def azurite_tls(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Azurite]:
    """Azurite over TLS, where it takes bearer tokens too (`--oauth basic`)."""
    with start_azurite(tmp_path_factory.mktemp("azurite-tls"), authority) as running:
        yield running
