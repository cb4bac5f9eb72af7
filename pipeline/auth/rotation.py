"""What all key rings share: what a rotation is, and the signer that follows one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from pipeline.auth.keys import Algorithm
from pipeline.auth.signers import Signer
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Rotation:
    """A next key: published from now on, signing from `signs_from` on (aware)."""

    kid: str
    signs_from: datetime
    notes: tuple[str, ...] = ()
    """What else was done, in words: which file holds which key."""


class KeyRing(Protocol):
    """The keys of one registration over time. `now` is aware; default: this moment.

    Everything may raise `ConfigError`, and where the keys are in a vault `AuthError` and `Unreachable`.
    """

    def signer(self, now: datetime | None = None) -> Signer:
        """The one that signs at this moment."""

    def public_jwks(self, now: datetime | None = None) -> list[dict[str, Any]]:
        """What to publish: the signing key first, a coming one, the former one for a while."""

    def rotate(self, now: datetime | None = None) -> Rotation:
        """Makes the next key, published at once. `ConfigError` while one is under way, or where none fits."""


class RotatingSigner:
    """A ring as one `Signer`, for clients that outlive a rotation: each assertion asks who signs now.

    `kid` and `algorithm` are those of the last `current()`; making one asks the ring. Raises as the ring.
    """

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._last = ring.signer()

    @property
    def algorithm(self) -> Algorithm:
        return self._last.algorithm

    @property
    def kid(self) -> str:
        return self._last.kid

    def current(self) -> Signer:
        self._last = signer = self._ring.signer()
        return signer

    def sign(self, message: bytes) -> bytes:
        """By the key that `kid` names; where they must be of one, ask `current()` for both."""
        return self._last.sign(message)

    def public_jwk(self) -> dict[str, Any]:
        return self._last.public_jwk()

    def __repr__(self) -> str:
        return f"RotatingSigner(kid={self.kid!r})"


def moment(now: datetime | None) -> datetime:
    """`now`, or this moment, in UTC."""
    return datetime.now(UTC) if now is None else now.astimezone(UTC)


def instant(when: datetime) -> str:
    """`2026-01-31T02:00:00Z`, with microseconds where there are some."""
    return when.astimezone(UTC).isoformat().replace("+00:00", "Z")


def shown(when: datetime) -> str:
    """The same for people: never earlier than `when`, without fractions."""
    rounded = when.astimezone(UTC)
    if rounded.microsecond:
        rounded = datetime.fromtimestamp(int(rounded.timestamp()) + 1, UTC)
    return instant(rounded)


def require_own_kid(kid: str | None) -> None:
    """Two keys cannot have one kid."""
    if kid is not None:
        raise ConfigError(
            f"keys with the configured auth.kid '{kid}' cannot be rotated: the next one would have the same",
            "Take auth.kid out once the server knows the key by its thumbprint, which `fhir-export jwks` "
            "prints then; then rotate",
        )


def under_way(kid: str, signs_from: datetime) -> ConfigError:
    """The refusal while a next key waits."""
    return ConfigError(
        f"a rotation is under way: the key '{kid}' is published and signs from {shown(signs_from)} on",
        "Wait until then; if the server has our keys pasted in, see that this one is among them "
        "(`fhir-export jwks`)",
    )
