"""Rotation of key files: by the clock, in every process that has the folder, and over any crash."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.auth.assertion import client_assertion
from pipeline.auth.keyring import key_ring
from pipeline.auth.keys import generate_key, write_private_key
from pipeline.auth.pem_ring import PemRing
from pipeline.auth.rotation import RotatingSigner
from pipeline.auth.signers import PemSigner
from pipeline.config import KeyVaultAuth
from pipeline.errors import ConfigError

WAIT = timedelta(minutes=15)
NOW = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_private_key(tmp_path / "keys" / "hosp_a.pem", generate_key("ES384"))
    return tmp_path / "keys" / "hosp_a.pem"


def ring(path: Path, wait: timedelta = WAIT, kid: str | None = None) -> PemRing:
    """A new one each time, as another process has it."""
    return PemRing(path, algorithm="ES384", kid=kid, wait=wait)


def kids(path: Path, now: datetime) -> list[str]:
    return [jwk["kid"] for jwk in ring(path).public_jwks(now)]


def kid_of(path: Path) -> str:
    return PemSigner.from_file(path, "ES384").kid


def private_numbers(path: Path) -> int:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers().private_value


def test_the_next_key_is_published_at_once_and_signs_when_its_time_has_come(path: Path) -> None:
    first = kid_of(path)
    assert kids(path, NOW) == [first]
    before = sorted(each.name for each in path.parent.iterdir())

    rotation = ring(path).rotate(NOW)
    assert rotation.kid != first
    assert rotation.signs_from == NOW + WAIT
    files = {each.name for each in path.parent.iterdir() if not each.name.startswith(".")}
    assert files == {*before, "hosp_a.next.pem", "hosp_a.next.pem.json"}
    assert private_numbers(path.parent / "hosp_a.next.pem") != private_numbers(path)

    course = {
        NOW: (first, [first, rotation.kid]),
        NOW + WAIT - SECOND: (first, [first, rotation.kid]),
        NOW + WAIT: (rotation.kid, [rotation.kid, first]),
        NOW + 2 * WAIT - SECOND: (rotation.kid, [rotation.kid, first]),
        NOW + 2 * WAIT: (rotation.kid, [rotation.kid]),
        NOW + timedelta(days=400): (rotation.kid, [rotation.kid]),
    }
    written = {each.name: each.stat().st_mtime_ns for each in path.parent.iterdir()}
    for moment, (signs, published) in course.items():
        assert ring(path).signer(moment).kid == signs, moment
        assert kids(path, moment) == published, moment
    assert {each.name: each.stat().st_mtime_ns for each in path.parent.iterdir()} == written, "only read"


def test_nothing_that_a_rotation_writes_beside_the_keys_is_secret_or_readable_for_others(path: Path) -> None:
    first = kid_of(path)
    rotation = ring(path).rotate(NOW)
    note = path.parent / "hosp_a.next.pem.json"
    assert json.loads(note.read_bytes()) == {
        "kid": rotation.kid,
        "former": first,
        "signs_from": "2026-01-31T02:15:00Z",
        "former_until": "2026-01-31T02:30:00Z",
    }
    for each in path.parent.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) == 0o600, each.name
    assert "PRIVATE" not in repr(rotation) + " ".join(rotation.notes)


def test_who_reads_the_key_of_today_can_read_the_next_one_when_its_time_comes(path: Path) -> None:
    owner = (12345, 23456) if os.geteuid() == 0 else (os.geteuid(), path.stat().st_gid)
    os.chown(path, *owner)
    path.chmod(0o640)
    ring(path).rotate(NOW)
    ring(path).rotate(NOW + 2 * WAIT)
    for each in path.parent.iterdir():
        seen = each.stat()
        assert (stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid) == (0o640, *owner), each.name


def test_a_rotation_is_refused_until_the_one_before_is_over_and_then_keeps_every_key(path: Path) -> None:
    first, first_key = kid_of(path), private_numbers(path)
    second = ring(path).rotate(NOW)
    second_key = private_numbers(path.parent / "hosp_a.next.pem")
    with pytest.raises(ConfigError, match=r"signs from 2026-01-31T02:15:00Z") as pending:
        ring(path).rotate(NOW + WAIT - SECOND)
    assert second.kid in pending.value.cause
    with pytest.raises(ConfigError, match=r"published until 2026-01-31T02:30:00Z"):
        ring(path).rotate(NOW + 2 * WAIT - SECOND)

    third = ring(path).rotate(NOW + 2 * WAIT)
    kept = path.parent / f"hosp_a.{first}.pem"
    assert any(str(kept) in line for line in third.notes), "the operator is told"
    assert private_numbers(kept) == first_key
    assert private_numbers(path) == second_key
    at = NOW + 2 * WAIT
    assert kids(path, at) == [second.kid, third.kid]
    assert ring(path).signer(at).kid == second.kid
    assert kids(path, at + WAIT) == [third.kid, second.kid]
    fourth = ring(path).rotate(at + 2 * WAIT)
    assert len({first, second.kid, third.kid, fourth.kid}) == 4
    assert private_numbers(path.parent / f"hosp_a.{second.kid}.pem") == second_key
    assert private_numbers(kept) == first_key


@pytest.fixture(scope="module")
def rotator() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("rotate_until_killed.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with process:
        yield process
        assert process.stdin
        process.stdin.close()


def rotate_and_die(rotator: subprocess.Popen[str], path: Path, steps: int, now: datetime) -> str:
    assert rotator.stdin
    assert rotator.stdout
    rotator.stdin.write(f"{path} {steps} {now.isoformat()}\n")
    rotator.stdin.flush()
    return rotator.stdout.readline().strip()


def assert_sound(path: Path, now: datetime, signing: str) -> None:
    """`signing` goes on for as long as its successor is not known, and nobody signs unpublished."""
    assert ring(path).signer(now).kid == signing
    known = set(kids(path, now))
    for minutes in (0, 14, 15, 29, 30, 60):
        moment = now + timedelta(minutes=minutes)
        signs = ring(path).signer(moment).kid
        assert signs in kids(path, moment)
        assert signs in known, "published from the beginning"
        if signs != signing:
            assert moment >= now + WAIT - SECOND


@pytest.mark.parametrize("rotations", [0, 1, 2], ids=["the first", "the second", "the third"])
def test_a_rotation_killed_before_any_of_its_steps_leaves_a_ring_that_works_and_can_be_run_again(
    path: Path, tmp_path: Path, rotator: subprocess.Popen[str], rotations: int
) -> None:
    now = NOW
    for _ in range(rotations):
        ring(path).rotate(now)
        now += 2 * WAIT
    signing = ring(path).signer(now).kid
    keys = {private_numbers(each) for each in path.parent.glob("*.pem")}
    steps, outcome = 0, ""
    while outcome != "done":
        copy = tmp_path / f"killed-{steps}" / "hosp_a.pem"
        shutil.copytree(path.parent, copy.parent)
        outcome = rotate_and_die(rotator, copy, steps, now)
        assert outcome in ("killed", "done"), outcome
        assert_sound(copy, now, signing)
        noted = [kid for kid in kids(copy, now) if kid != signing]
        again = now + SECOND
        try:
            rotation = ring(copy).rotate(again)
        except ConfigError as refused:
            assert noted, "only a rotation that was complete may refuse the next one"
            assert noted[0] in refused.cause
        else:
            assert not noted
            assert kids(copy, again) == [signing, rotation.kid]
        assert_sound(copy, again, signing)
        left = [each.name for each in copy.parent.iterdir() if each.name.startswith(".")]
        if not noted:
            assert left == [".hosp_a.pem.lock"], "drafts are swept away"
        assert keys <= {private_numbers(each) for each in copy.parent.glob("*.pem")}, "no key is lost"
        steps += 1
    assert steps > 8


def test_of_many_rotations_at_once_one_wins_and_the_others_say_so(path: Path) -> None:
    outcomes: list[str | None] = []
    barrier = threading.Barrier(8)

    def rotate() -> None:
        barrier.wait()
        try:
            outcomes.append(ring(path).rotate(NOW).kid)
        except ConfigError as refused:
            assert "under way" in refused.cause
            outcomes.append(None)

    threads = [threading.Thread(target=rotate) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [kid for kid in outcomes if kid is not None]
    assert len(outcomes) == 8
    assert kids(path, NOW) == [kid_of(path), winner]


def test_readers_never_stumble_over_rotations_that_go_on_beside_them(path: Path) -> None:
    """Thirty rotations one after the other, without a wait, and readers that have only the folder."""
    over = threading.Event()
    failures: list[BaseException] = []
    seen: set[str] = set()

    def read() -> None:
        while not over.is_set():
            try:
                seen.add(ring(path, timedelta(0)).signer().kid)
                ring(path, timedelta(0)).public_jwks()
            except BaseException as error:
                failures.append(error)
                raise

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    made = [ring(path, timedelta(0)).rotate().kid for _ in range(30)]
    over.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert len(seen & set(made)) > 1


def test_each_assertion_is_of_one_key_while_threads_sign_over_the_switch(path: Path) -> None:
    wait = timedelta(seconds=4)  # the first signature has to come before it is over
    signer = RotatingSigner(ring(path, wait))
    first = signer.kid
    rotation = ring(path, wait).rotate()
    public = {jwk["kid"]: jwt.PyJWK(jwk) for jwk in ring(path, wait).public_jwks()}
    used: list[tuple[datetime, str]] = []

    def sign() -> None:
        while datetime.now(UTC) < rotation.signs_from + timedelta(seconds=0.5):
            begun = datetime.now(UTC)
            token = client_assertion(signer, client_id="nightly", audience="https://as.example/token")
            kid = jwt.get_unverified_header(token)["kid"]
            jwt.decode(token, public[kid], algorithms=["ES384"], audience="https://as.example/token")
            used.append((begun, kid))

    threads = [threading.Thread(target=sign) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {kid for _, kid in used} == {first, rotation.kid}
    assert {kid for begun, kid in used if begun >= rotation.signs_from} == {rotation.kid}
    assert signer.kid == rotation.kid
    assert signer.public_jwk()["kid"] == rotation.kid


def test_two_keys_cannot_have_the_configured_kid(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"auth\.kid 'ours'") as refused:
        ring(path, kid="ours").rotate(NOW)
    assert "Take auth.kid out" in refused.value.advice
    assert ring(path, kid="ours").public_jwks(NOW)[0]["kid"] == "ours"
    rotation = ring(path).rotate(NOW)
    with pytest.raises(ConfigError, match=r"auth\.kid 'ours'"):
        ring(path, kid="ours").public_jwks(NOW)
    over = NOW + 2 * WAIT
    (jwk,) = ring(path, kid="ours").public_jwks(over)
    assert jwk["kid"] == ring(path, kid="ours").signer(over).kid == "ours"
    assert {**jwk, "kid": rotation.kid} == ring(path).public_jwks(over)[0]


def test_what_is_missing_or_damaged_is_named_and_today_s_key_signs_on(path: Path) -> None:
    ring(path).rotate(NOW)
    coming, note = path.parent / "hosp_a.next.pem", path.parent / "hosp_a.next.pem.json"
    first, aside = kid_of(path), coming.read_bytes()
    coming.unlink()
    assert ring(path).signer(NOW).kid == first, "the next key is not needed yet"
    for look in (ring(path).public_jwks, ring(path).rotate):
        with pytest.raises(ConfigError):
            look(NOW)
    with pytest.raises(ConfigError, match=r"hosp_a\.next\.pem is missing or not the key") as gone:
        ring(path).signer(NOW + WAIT)
    assert "backup" in gone.value.advice
    coming.write_bytes(generate_key("ES384"))
    with pytest.raises(ConfigError, match="missing or not the key"):
        ring(path).signer(NOW + WAIT)
    with pytest.raises(ConfigError, match="missing or not the key"):
        ring(path).rotate(NOW + 2 * WAIT)
    assert kid_of(path) == first, "a foreign key never takes its place"
    coming.write_bytes(aside)
    assert ring(path).signer(NOW + WAIT).kid != first
    for damage in (b"", b"{}", b"[]", b'{"kid": 1, "former": 2, "signs_from": "soon"}', b"\xff"):
        note.write_bytes(damage)
        with pytest.raises(ConfigError, match=r"hosp_a\.next\.pem\.json is damaged"):
            ring(path).signer(NOW)


def test_a_key_that_somebody_puts_in_place_by_hand_counts_and_nothing_is_lost(path: Path) -> None:
    second = ring(path).rotate(NOW)
    second_key = private_numbers(path.parent / "hosp_a.next.pem")
    path.write_bytes(generate_key("ES384"))
    by_hand = kid_of(path)
    for moment in (NOW, NOW + WAIT, NOW + 2 * WAIT):
        assert ring(path).signer(moment).kid == by_hand
        assert kids(path, moment) == [by_hand]
    third = ring(path).rotate(NOW + SECOND)
    assert third.kid != second.kid, "a key that may have signed elsewhere is not taken for a new one"
    assert kids(path, NOW + SECOND) == [by_hand, third.kid]
    assert private_numbers(path.parent / f"hosp_a.{second.kid}.pem") == second_key
    assert any(second.kid in line for line in third.notes)


def test_a_link_to_a_key_is_not_rotated(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.pem"
    link.symlink_to(path)
    assert ring(link).signer(NOW).kid == kid_of(path)
    with pytest.raises(ConfigError, match="is a link"):
        ring(link).rotate(NOW)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["keys", "link.pem"]


def test_a_folder_that_cannot_be_written_refuses_in_words(path: Path) -> None:
    beside = path.parent / ".hosp_a.pem.lock"
    beside.mkdir()
    with pytest.raises(ConfigError, match="cannot be rotated") as refused:
        ring(path).rotate(NOW)
    assert "can be written to" in refused.value.advice
    assert kids(path, NOW) == [kid_of(path)]


def test_a_key_in_the_environment_signs_and_is_rotated_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pem = generate_key("ES384")
    monkeypatch.setenv("HOSP_A_KEY", pem.decode())
    lone = key_ring(
        "env:HOSP_A_KEY", algorithm="ES384", kid=None, wait=WAIT, folder=Path(), vault=KeyVaultAuth()
    )
    assert lone.public_jwks() == [PemSigner.from_pem(pem, "ES384").public_jwk()]
    assert lone.signer().kid == PemSigner.from_pem(pem, "ES384").kid
    with pytest.raises(ConfigError, match="env:HOSP_A_KEY") as refused:
        lone.rotate()
    assert "keyvault:" in refused.value.advice
