"""A key that several sources share: a rotation for one of them must not break another's sign-in."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.terminal.key_rotation import rotate


def config_of(folder: Path, *auths: dict[str, Any]) -> Config:
    sources = [
        {
            "name": f"hosp_{number}",
            "fhir_url": "https://fhir.example.org/r4",
            "auth": {"client_id": "nightly", "algorithm": "ES384", **auth},
            "export": {"group": "g"},
        }
        for number, auth in enumerate(auths)
    ]
    return Config.model_validate({"lake": "lake", "sources": sources, "folder": folder})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_private_key(tmp_path / "keys" / "one.pem", generate_key("ES384"))
    return tmp_path


@pytest.mark.parametrize("written", ["file:keys/one.pem", "file:./keys/../keys/one.pem"])
def test_a_source_that_names_the_shared_key_by_a_kid_of_its_own_stops_the_rotation(
    folder: Path, written: str
) -> None:
    """It would sign with the next key under the former one's kid, and be refused from then on."""
    config = config_of(folder, {"private_key": "file:keys/one.pem"}, {"private_key": written, "kid": "ours"})
    with pytest.raises(ConfigError, match=r"hosp_1.*auth\.kid"):
        rotate(config, config.source("hosp_0"), timedelta(minutes=15))
    assert [each.name for each in (folder / "keys").iterdir()] == ["one.pem"]


@pytest.mark.parametrize(("profile", "form"), [("aidbox", ""), ("smartbox", " --tenant-form FORM")])
@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_a_box_that_holds_our_keys_itself_is_given_the_next_one_by_register(
    folder: Path, profile: str, form: str, algorithm: str
) -> None:
    """azure-and-aidbox B: a Client has `jwks_uri`, or RSA keys inline."""
    write_private_key(folder / "keys" / "box.pem", generate_key("RS384" if algorithm == "RS384" else "ES384"))
    config = config_of(folder, {"private_key": "file:keys/box.pem", "algorithm": algorithm})
    box = {"profile": profile, "tenant": "t" if profile == "smartbox" else None}
    source = config.source("hosp_0").model_copy(update=box)
    config = config.model_copy(update={"sources": [source]})
    said = "\n".join(rotate(config, source, timedelta(minutes=15)).lines)
    assert "from a URL (`fhir-export jwks --serve`): nothing to do" in said
    command = f"`fhir-export register hosp_0 --apply --admin-token file:PATH{form}`"
    assert (command in said) == (algorithm == "RS384")


def test_sources_that_write_the_same_key_differently_are_told_of_its_rotation(folder: Path) -> None:
    config = config_of(
        folder,
        {"private_key": "file:keys/one.pem"},
        {"private_key": f"file:{folder}/keys/one.pem"},
        {"kind": "none"},
    )
    done = rotate(config, config.source("hosp_0"), timedelta(minutes=15))
    assert any("the same key signs for hosp_1" in line for line in done.lines)
