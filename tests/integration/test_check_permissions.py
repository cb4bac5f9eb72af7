"""`check` says where other users of this machine can read keys, secrets or the lake."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.auth.keys import generate_key, write_private_key
from pipeline.config import Config, load_config
from pipeline.exports.file_modes import readers, require_private
from pipeline.exports.verdict import Doubtful

_CONFIG = """
lake: {lake}
sources:
  - name: hosp
    fhir_url: https://fhir.example/r4
    auth: {{client_id: me, private_key: "file:keys/hosp.pem", algorithm: ES384}}
    export: {{group: demo}}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may enter: pytest's own are private."""
    import shutil
    import tempfile

    found = Path(tempfile.mkdtemp(prefix="modes-", dir="/tmp"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found)


def site(place: Path, umask: int) -> Config:
    before = os.umask(umask)
    try:
        write_private_key(place / "keys" / "hosp.pem", generate_key("ES384"))
        (place / "lake").mkdir()
        (place / "exports.yaml").write_text(_CONFIG.format(lake=place / "lake"))
    finally:
        os.umask(before)
    return load_config(place / "exports.yaml")


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_keys_that_we_make_are_private_whatever_the_umask(place: Path, umask: int) -> None:
    config = site(place, umask)
    assert (place / "keys").stat().st_mode & 0o777 == 0o700
    assert (place / "keys" / "hosp.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(Doubtful) as doubt:  # the lake is the umask's
        require_private(config, config.source(None))
    assert "secrets" not in doubt.value.cause
    assert f"the lake's folder {place / 'lake'}" in doubt.value.cause
    assert "chmod 700" in doubt.value.advice
    (place / "lake").chmod(0o700)
    assert "alone" in require_private(config, config.source(None))


def test_a_key_that_others_can_read_is_named_and_so_is_a_retired_one(place: Path) -> None:
    config = site(place, 0o077)
    (place / "keys").chmod(0o755)
    key = place / "keys" / "hosp.pem"
    retired = place / "keys" / "hosp.OLDKID.pem"
    retired.write_bytes(key.read_bytes())
    retired.chmod(0o644)
    key.chmod(0o640)
    with pytest.raises(Doubtful) as doubt:
        require_private(config, config.source(None))
    assert f"{retired} by everybody" in doubt.value.cause
    assert f"{key} by its group" in doubt.value.cause
    (place / "keys").chmod(0o700)
    assert "alone" in require_private(config, config.source(None)), "nobody can enter the folder"


def test_what_is_not_there_is_no_matter_of_modes(place: Path) -> None:
    assert readers(place / "nothing") == ""


def test_the_check_warns_and_says_nothing_when_all_is_private(place: Path) -> None:
    from pipeline.exports.check import check_source, first_bad

    config = site(place, 0o022)
    source = config.source(None).model_copy(update={"fhir_url": "http://127.0.0.1:9/fhir"})
    verdicts = check_source(config, source)
    assert (verdicts[-1].name, verdicts[-1].status) == ("permissions", "warn")
    assert first_bad(verdicts) is not verdicts[-1]
    (place / "lake").chmod(0o700)
    assert "permissions" not in [each.name for each in check_source(config, source)]
