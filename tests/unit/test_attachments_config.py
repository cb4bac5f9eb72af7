"""The configuration's `attachments`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Source, load_config
from pipeline.errors import ConfigError


def source(folder: Path, *attachments: Any) -> Source:
    entry = {
        "name": "hosp",
        "fhir_url": "https://fhir.example.org",
        "auth": {"kind": "none"},
        "export": {"level": "system"},
        **({"attachments": attachments[0]} if attachments else {}),
    }
    path = folder / "exports.yaml"
    path.write_text(json.dumps({"lake": "lake", "sources": [entry]}))
    return load_config(path).source(None)


def test_it_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert source(tmp_path).attachments is None
    assert source(tmp_path, False).attachments is None
    assert source(tmp_path, None).attachments is None
    for written in (True, {}):
        found = source(tmp_path, written).attachments
        assert found is not None
        assert found.types == ("DocumentReference", "DiagnosticReport")
        assert (found.content_types, found.bytes_limit, found.allow_hosts) == (None, 50_000_000, ())
    some = source(tmp_path, {"content_types": ["Text/*", "application/pdf"], "megabytes": 0.5}).attachments
    assert some is not None
    assert (some.content_types, some.bytes_limit) == (("text/*", "application/pdf"), 500_000)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("yes", "attachments: must be true, false, or {types"),
        ({"type": []}, "attachments.type: there is no such key"),
        (
            {"types": ["Patient"]},
            "attachments.types: must be a list of DocumentReference and",
        ),
        ({"types": []}, "attachments.types: must be a list of"),
        ({"content_types": ["pdf"]}, "attachments.content_types: must be a list of media types"),
        ({"content_types": []}, "attachments.content_types: must be a list of media types"),
        ({"megabytes": 0}, "attachments.megabytes: "),
        ({"allow_hosts": ["*.example.org"]}, "attachments.allow_hosts: "),
        ({"allow_hosts": ["http://docs.example.org"]}, "attachments.allow_hosts: holds no host"),
        ({"allow_hosts": ["docs.example.org/path"]}, "attachments.allow_hosts: must be hosts in full"),
        ({"allow_hosts": ["user:secret@docs.example.org"]}, "attachments.allow_hosts: holds no host"),
    ],
)
def test_mistakes_are_told_by_their_key(tmp_path: Path, written: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        source(tmp_path, written)
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)
