"""Client assertions (SMART backend services): the one way to prove who asks for a token."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import msgspec

_ALGORITHMS = ("RS384", "ES384")
_LONGEST = 300
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class AssertionRefused(Exception):
    """The assertion does not prove anything; the text says why and is safe to send back."""


class AssertionVerifier:
    """Verifies assertions of one client against its JWK Set, which is read again each time.

    `source` is a file or an http(s) URL; `keys` gives the set in another way. A `jti` is good for one use.
    """

    def __init__(
        self,
        source: str | None,
        client_id: str,
        audience: str,
        *,
        algorithms: tuple[str, ...] = _ALGORITHMS,
        keys: Callable[[], list[dict[str, Any]]] | None = None,
    ) -> None:
        self._source = source
        self._client_id = client_id
        self._audience = audience
        self._algorithms = algorithms
        self._keys = keys or (lambda: read_keys(source))
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()

    def verify(self, assertion: str) -> None:
        """Raise AssertionRefused unless the assertion is good. May read a URL: not for the event loop."""
        try:
            header = jwt.get_unverified_header(assertion)
        except jwt.PyJWTError:
            raise AssertionRefused("The assertion is not a JWT") from None
        key = self._key_for(header)
        try:
            claims = jwt.decode(
                assertion,
                key,
                algorithms=[header["alg"]],
                audience=self._audience,
                issuer=self._client_id,
                subject=self._client_id,
                options={
                    "require": ["iss", "sub", "aud", "exp", "jti"],
                    "strict_aud": True,
                    "enforce_minimum_key_length": True,
                },
            )
        except jwt.InvalidSignatureError:
            raise AssertionRefused("The signature does not fit the registered key") from None
        except jwt.PyJWTError as error:
            raise AssertionRefused(f"Claims refused: {error}") from None
        self._use_once(claims)

    def _key_for(self, header: dict[str, Any]) -> jwt.PyJWK:
        algorithm = header.get("alg")
        if algorithm not in self._algorithms:
            raise AssertionRefused(f"alg must be {' or '.join(self._algorithms)}")
        if header.get("typ") != "JWT":
            raise AssertionRefused("typ must be JWT")
        if "jku" in header and header["jku"] != self._source:
            raise AssertionRefused("jku is not the registered URL")
        wanted = header.get("kid")
        if not isinstance(wanted, str):
            raise AssertionRefused("kid is missing")
        for jwk in self._keys():
            if jwk.get("kid") == wanted:
                return _usable(jwk, algorithm)
        raise AssertionRefused("No registered key has this kid")

    def _use_once(self, claims: dict[str, Any]) -> None:
        now = time.time()
        if claims["exp"] > now + _LONGEST:
            raise AssertionRefused("exp is more than five minutes ahead")
        jti = claims["jti"]
        if not isinstance(jti, str) or not jti:
            raise AssertionRefused("jti must be a string")
        with self._lock:
            self._seen = {seen: until for seen, until in self._seen.items() if until > now}
            if jti in self._seen:
                raise AssertionRefused("jti was used before")
            self._seen[jti] = claims["exp"] + 1


def _usable(jwk: dict[str, Any], algorithm: str) -> jwt.PyJWK:
    if _PRIVATE & jwk.keys():
        raise AssertionRefused("The registered JWK Set holds private members")
    if jwk.get("alg", algorithm) != algorithm:
        raise AssertionRefused("The registered key is for another alg")
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
        raise AssertionRefused("The registered key is not for signatures")
    if algorithm == "ES384" and jwk.get("crv") != "P-384":
        raise AssertionRefused("ES384 needs a key on P-384")
    try:
        return jwt.PyJWK(jwk, algorithm)
    except jwt.PyJWTError:
        raise AssertionRefused("The registered key is damaged") from None


def read_keys(source: str | None) -> list[dict[str, Any]]:
    """The keys of a JWK Set in a file or at an http(s) URL; AssertionRefused where it cannot be read."""
    if source is None:
        raise AssertionRefused("No JWK Set is registered")
    try:
        if source.startswith(("http://", "https://")):
            with urllib.request.urlopen(source, timeout=5) as answer:  # noqa: S310
                text = answer.read(1_000_000)
        else:
            text = Path(source).read_bytes()
    except (OSError, urllib.error.URLError):
        raise AssertionRefused("The registered JWK Set cannot be read") from None
    return decode_keys(text)


def decode_keys(text: bytes) -> list[dict[str, Any]]:
    """The keys of a JWK Set; AssertionRefused where it is none."""
    try:
        keys = msgspec.json.decode(text, type=dict[str, Any]).get("keys")
    except msgspec.DecodeError:
        raise AssertionRefused("The registered JWK Set cannot be read") from None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise AssertionRefused("The registered JWK Set has no keys")
    return keys
