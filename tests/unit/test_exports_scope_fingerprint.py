"""Exports share a watermark only where the same was granted (azure-and-aidbox B: scopes decide on types)."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import Source
from pipeline.exports.connection import profile_of
from pipeline.exports.request import asked_for, fingerprint


def mark(**auth: Any) -> str:
    source = Source.model_validate(
        {
            "name": "box",
            "profile": "aidbox",
            "fhir_url": "https://box.example.org",
            "auth": {"client_id": "nightly", "private_key": "file:key.pem", **auth},
            "export": {"level": "system"},
        }
    )
    return fingerprint(source, asked_for(source, profile_of(source)))


@pytest.mark.parametrize(
    "changed", [{"scope": "system/*.read system/Claim.read"}, {"client_id": "another-client"}]
)
def test_a_wider_scope_or_another_client_begins_with_a_full_export(changed: dict[str, str]) -> None:
    """With `_since` the Claims that are older than the new scope would never come."""
    assert mark(**changed) != mark()


def test_the_default_scope_written_out_and_a_new_key_change_nothing() -> None:
    assert mark(scope="system/*.read") == mark(private_key="file:next.pem", kid="2027") == mark()
