"""What YAML can write and a URL or path cannot hold is refused when the file is read, by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import load_config, resolve_secret
from pipeline.errors import ConfigError


def complaint(folder: Path, **changes: Any) -> str:
    source = {
        "name": "hosp_a",
        "fhir_url": "https://fhir.example.org/r4",
        "auth": {"client_id": "nightly", "private_key": "file:key.pem"},
        "export": {"group": "g"},
    }
    whole = {"lake": "lake", "sources": [{**source, **changes}]}
    (folder / "exports.yaml").write_text(yaml.safe_dump(whole))
    with pytest.raises(ConfigError) as refused:
        load_config(folder / "exports.yaml")
    return str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://fhir.example.org/r4\n",
        "https://fhir.example.org/r\n4",
        "https://fhir example.org/r4",
        "https://fhir.example.org:99999/r4",
        "https://fhir.example.org:x/r4",
        "https://fhir.example.org/r4#top",
        "https://[::1",
    ],
)
def test_a_url_that_httpx_cannot_ask_is_named_by_its_key(tmp_path: Path, url: str) -> None:
    """urlsplit drops line ends in silence; httpx then fails in the middle of a night."""
    assert "sources[hosp_a].fhir_url" in complaint(tmp_path, fhir_url=url)
    storage = {"account": "exports", "kind": "none", "endpoint": url}
    assert "storage.endpoint" in complaint(tmp_path, downloads={"storage": storage})


def test_a_reference_with_a_null_in_it_is_named_by_its_key(tmp_path: Path) -> None:
    text = complaint(tmp_path, auth={"client_id": "c", "private_key": "file:\0key.pem"})
    assert "sources[hosp_a].auth.private_key" in text


def test_the_home_of_nobody_is_an_error_of_that_secret_alone(tmp_path: Path) -> None:
    """As any other error it would stop `jwks --serve` for all sources."""
    with pytest.raises(ConfigError, match="nobody-of-that-name"):
        resolve_secret("file:~nobody-of-that-name/key.pem", tmp_path)
