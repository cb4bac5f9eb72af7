"""Keys, JWK Sets and signatures, checked with cryptography and PyJWT on their own."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from pipeline.auth.jwk import PRIVATE_MEMBERS, jwk_set, public_jwk, thumbprint
from pipeline.auth.keys import Algorithm, generate_key, load_private_key, write_private_key
from pipeline.auth.signers import PemSigner
from pipeline.errors import ConfigError

ALGORITHMS: list[Algorithm] = ["RS384", "ES384"]


@pytest.fixture(scope="module")
def pems() -> dict[str, bytes]:
    return {algorithm: generate_key(algorithm) for algorithm in ALGORITHMS}


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_a_made_key_has_the_promised_strength(pems: dict[str, bytes]) -> None:
    rsa_key = load_private_key(pems["RS384"], "RS384")
    ec_key = load_private_key(pems["ES384"], "ES384")
    assert isinstance(rsa_key, rsa.RSAPrivateKey)
    assert rsa_key.key_size == 3072
    assert isinstance(ec_key, ec.EllipticCurvePrivateKey)
    assert isinstance(ec_key.curve, ec.SECP384R1)
    assert pems["RS384"].startswith(b"-----BEGIN PRIVATE KEY-----")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_of_the_other_kind_is_refused(algorithm: Algorithm, pems: dict[str, bytes]) -> None:
    other: Algorithm = "ES384" if algorithm == "RS384" else "RS384"
    with pytest.raises(ConfigError, match=algorithm):
        load_private_key(pems[other], algorithm)


def test_what_cannot_sign_is_refused_and_never_quoted(pems: dict[str, bytes]) -> None:
    private = load_private_key(pems["RS384"], "RS384")
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    encrypted = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"right"),
    )
    cut = pems["RS384"][:900] + b"\n-----END PRIVATE KEY-----\n"
    weak = _pem(rsa.generate_private_key(65537, 1024))
    p256 = _pem(ec.generate_private_key(ec.SECP256R1()))
    edwards = _pem(ed25519.Ed25519PrivateKey.generate())
    refused: list[tuple[bytes, Algorithm, bytes | None, str]] = [
        (b"", "RS384", None, "empty"),
        (b"S3CRET-not-a-key", "RS384", None, "no PEM"),
        (public, "RS384", None, "public key"),
        (b"-----BEGIN CERTIFICATE-----\nS3CRET\n-----END CERTIFICATE-----", "RS384", None, "certificate"),
        (cut, "RS384", None, "cannot be decoded"),
        (encrypted, "RS384", None, "encrypted"),
        (encrypted, "RS384", b"wrong-S3CRET", "password is wrong"),
        (pems["RS384"], "RS384", b"needless-S3CRET", "not encrypted"),
        (weak, "RS384", None, "1024 bits"),
        (p256, "ES384", None, "P-384"),
        (edwards, "ES384", None, "neither"),
    ]
    for pem, algorithm, password, words in refused:
        with pytest.raises(ConfigError, match=words) as caught:
            load_private_key(pem, algorithm, password)
        assert caught.value.advice
        assert "S3CRET" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert not any(line in str(caught.value) for line in pem.decode().splitlines() if len(line) > 30)
    assert load_private_key(encrypted, "RS384", b"right").private_numbers() == private.private_numbers()


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path, pems: dict[str, bytes]) -> None:
    path = tmp_path / "keys" / "deep" / "hosp_a.pem"
    write_private_key(path, pems["ES384"])
    assert path.read_bytes() == pems["ES384"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["hosp_a.pem"]
    with pytest.raises(ConfigError, match="exists"):
        write_private_key(path, pems["RS384"])
    assert path.read_bytes() == pems["ES384"]
    dangling = tmp_path / "link.pem"
    dangling.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(ConfigError, match="exists"):
        write_private_key(dangling, pems["RS384"])
    assert not (tmp_path / "elsewhere.pem").exists()


def test_of_many_writers_of_one_key_file_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "race.pem"
    outcomes: list[bytes | None] = []
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        content = f"key {number}".encode() * 1000
        barrier.wait()
        try:
            write_private_key(path, content)
        except ConfigError:
            outcomes.append(None)
        else:
            outcomes.append(content)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [content for content in outcomes if content is not None]
    assert winners == [path.read_bytes()]
    assert [entry.name for entry in tmp_path.iterdir()] == ["race.pem"]


def test_a_file_system_without_hard_links_still_gets_whole_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure Files and some container mounts refuse link(2); no such mount can be made in a test."""

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "k.pem"
    write_private_key(path, b"content")
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="exists"):
        write_private_key(path, b"other")
    assert [entry.name for entry in tmp_path.iterdir()] == ["k.pem"]


def test_a_key_file_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(ConfigError, match=r"file/k\.pem"):
        write_private_key(blocker / "k.pem", b"x")
    with pytest.raises(ConfigError, match=r"missing\.pem"):
        PemSigner.from_file(tmp_path / "missing.pem", "RS384")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_jwk_has_public_members_only(algorithm: Algorithm, pems: dict[str, bytes]) -> None:
    """Protocol fact 3: PyJWT's to_jwk(private_key) leaks the private members."""
    key = load_private_key(pems[algorithm], algorithm)
    trap = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    assert "d" in trap, "the trap is gone: fact 3 is out of date"
    jwk = public_jwk(key, algorithm)
    own = {"kty", "n", "e"} if algorithm == "RS384" else {"kty", "crv", "x", "y"}
    assert set(jwk) == own | {"kid", "alg", "use", "key_ops"}
    assert (jwk["alg"], jwk["use"], jwk["key_ops"]) == (algorithm, "sig", ["verify"])
    assert jwk["kid"] == thumbprint(jwk)
    assert public_jwk(key.public_key(), algorithm) == jwk
    assert public_jwk(key, algorithm, kid="mine")["kid"] == "mine"
    published = json.dumps(jwk_set(jwk))
    assert trap["d"] not in published
    loaded = jwt.PyJWKSet.from_json(published).keys[0].key
    assert loaded.public_numbers() == key.public_key().public_numbers()


def test_coordinates_keep_their_leading_zeros() -> None:
    """RFC 7518 section 6.2.1.2: always 48 bytes for P-384, also where the number is short."""
    for scalar in range(1, 4000):
        numbers = ec.derive_private_key(scalar, ec.SECP384R1()).public_key().public_numbers()
        if numbers.x >> 376 == 0:
            break
    else:
        pytest.fail("no point with a short x among the first multiples")
    jwk = public_jwk(ec.derive_private_key(scalar, ec.SECP384R1()), "ES384")
    assert len(base64.urlsafe_b64decode(jwk["x"] + "==")) == 48


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    """The example of RFC 7638 section 3.1; members beside the required ones do not count."""
    example = {
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_B"
        "JECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_F"
        "DW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4"
        "vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        "e": "AQAB",
        "alg": "RS256",
        "kid": "2011-04-29",
    }
    assert thumbprint(example) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_an_ec_thumbprint_hashes_the_required_members_in_order() -> None:
    jwk = {"y": "Yy", "x": "Xx", "kty": "EC", "crv": "P-384", "d": "never", "kid": "k"}
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b'{"crv":"P-384","kty":"EC","x":"Xx","y":"Yy"}')
    assert thumbprint(jwk) == base64.urlsafe_b64encode(digest.finalize()).decode().rstrip("=")


@pytest.mark.parametrize(
    "jwk", [{}, {"kty": "oct", "k": "x"}, {"kty": "RSA", "n": "x"}, {"kty": "EC", "x": 1}]
)
def test_a_thumbprint_needs_its_members(jwk: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        thumbprint(jwk)


def test_a_jwk_set_refuses_private_members_and_ambiguous_kids(pems: dict[str, bytes]) -> None:
    one = public_jwk(load_private_key(pems["RS384"], "RS384"), "RS384")
    two = public_jwk(load_private_key(pems["ES384"], "ES384"), "ES384")
    assert jwk_set(one, two) == {"keys": [one, two]}
    for member in sorted(PRIVATE_MEMBERS):
        with pytest.raises(ConfigError, match="private") as caught:
            jwk_set(one, {**two, member: "S3CRET"})
        assert "S3CRET" not in str(caught.value)
    with pytest.raises(ConfigError, match="same kid"):
        jwk_set(one, {**two, "kid": one["kid"]})
    with pytest.raises(ConfigError, match="no kid"):
        jwk_set({**two, "kid": ""})


def test_signatures_are_in_jose_form(tmp_path: Path, pems: dict[str, bytes]) -> None:
    """RFC 7518 sections 3.3 and 3.4; verified by cryptography directly."""
    message = "grüße".encode()
    rsa_signer = PemSigner.from_pem(pems["RS384"], "RS384")
    rsa_public = load_private_key(pems["RS384"], "RS384").public_key()
    assert isinstance(rsa_public, rsa.RSAPublicKey)
    rsa_public.verify(rsa_signer.sign(message), message, padding.PKCS1v15(), hashes.SHA384())
    write_private_key(tmp_path / "k.pem", pems["ES384"])
    ec_signer = PemSigner.from_file(tmp_path / "k.pem", "ES384", kid="named")
    ec_public = load_private_key(pems["ES384"], "ES384").public_key()
    assert isinstance(ec_public, ec.EllipticCurvePublicKey)
    for _ in range(300):  # r or s has a leading zero byte in one of 128 signatures
        signature = ec_signer.sign(message)
        assert len(signature) == 96
        r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
        ec_public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA384()))
    assert ec_signer.kid == ec_signer.public_jwk()["kid"] == "named"


def test_a_signer_shows_its_kid_and_nothing_else(pems: dict[str, bytes]) -> None:
    signer = PemSigner.from_pem(pems["ES384"], "ES384")
    assert repr(signer) == f"PemSigner(algorithm='ES384', kid='{signer.kid}')"
    with pytest.raises(ConfigError, match="blank"):
        PemSigner.from_pem(pems["ES384"], "ES384", kid=" ")
