"""The versions of a key in Key Vault as a ring: what is known is in the vault, so all machines agree.

A rotation makes a version with the tag `signs-from`. A version without it (the first one, or one that a
rotation policy of the vault has made) signs when it has been there for as long as we wait; the first at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pipeline.auth.keys import Algorithm
from pipeline.auth.keyvault_signer import KeyVaultSigner
from pipeline.auth.rotation import Rotation, instant, moment, require_own_kid, under_way
from pipeline.azure.vault_keys import VERSIONS_SECONDS, KeyVersion, VaultKey
from pipeline.errors import ConfigError

SIGNS_FROM = "signs-from"
"""The tag. Not `nbf`: the vault refuses to sign before it, and its clock is not ours."""


_CLOCKS_DIFFER = timedelta(minutes=10)


@dataclass(frozen=True)
class Turn:
    """A version that can sign, and from when on it does."""

    version: KeyVersion
    signs_from: datetime


def turns(versions: tuple[KeyVersion, ...], now: datetime, wait: timedelta) -> list[Turn]:
    """The versions that are enabled and have not expired, oldest first."""
    ordered = sorted(versions, key=_age)
    return [
        Turn(each, _signs_from(each, wait, first=each is ordered[0]))
        for each in ordered
        if each.enabled and (each.expires is None or now < each.expires)
    ]


def signing(available: list[Turn], now: datetime) -> Turn | None:
    """The newest whose time has come; where none's has, the oldest, which is published longest."""
    come = [turn for turn in available if turn.signs_from <= now]
    return come[-1] if come else next(iter(available), None)


def published(available: list[Turn], now: datetime, wait: timedelta) -> list[Turn]:
    """The signing one, those that are to come, and those that a newer one replaced less than `wait` ago."""
    first = signing(available, now)
    if first is None:
        return []
    others = []
    for place, turn in enumerate(available):
        replaced = min((newer.signs_from for newer in available[place + 1 :]), default=None)
        if turn is not first and (replaced is None or now < replaced + wait):
            others.append(turn)
    return [first, *others]


class VaultRing:
    """The ring of a key; with a version in its address, of that version only.

    All methods raise `ConfigError`, `AuthError`, `Unreachable` as `VaultKey` does.
    """

    def __init__(self, key: VaultKey, *, algorithm: Algorithm, kid: str | None, wait: timedelta) -> None:
        self._key = key
        self._algorithm: Algorithm = algorithm
        self._kid = kid
        self._wait = wait

    def signer(self, now: datetime | None = None) -> KeyVaultSigner:
        if self._key.address.version is not None:
            return self._of(self._key.address.version, self._kid)
        return self._of(self._signing(moment(now)).version.version, self._kid)

    def public_jwks(self, now: datetime | None = None) -> list[dict[str, Any]]:
        if self._key.address.version is not None:
            return [self.signer().public_jwk()]
        at = moment(now)
        shown = published(self._turns(at), at, self._wait)
        if not shown:
            raise self._nothing_signs()
        if len(shown) > 1:
            require_own_kid(self._kid)
        return [self._of(turn.version.version, self._kid).public_jwk() for turn in shown]

    def rotate(self, now: datetime | None = None) -> Rotation:
        """Makes a version like the signing one, of which the vault says to everyone when it signs."""
        if self._key.address.version is not None:
            raise ConfigError(
                f"{self._key.address} names one version, which cannot be rotated",
                "Take the version off the end of auth.private_key: then the vault's newest signs in its time",
            )
        require_own_kid(self._kid)
        at = moment(now)
        before = self._turns(at, fresh=True)
        current = self._chosen(before, at)
        coming = _coming(before, current, at)
        if coming is not None:
            raise under_way(self._of(coming.version.version, None).kid, coming.signs_from)
        self._of(current.version.version, None)  # a key that does not fit is not made again
        signs_from = at + self._wait
        made = self._key.create_like(current.version.version, {SIGNS_FROM: instant(signs_from)})
        first = _coming(self._turns(at, fresh=True), current, at)
        if first is not None and first.version.version != made.version:
            self._key.disable(made.version)
            raise under_way(self._of(first.version.version, None).kid, first.signs_from)
        signer = self._of(made.version, None)
        return Rotation(signer.kid, signs_from, (f"{self._key.address} has the new version {made.version}",))

    def _signing(self, now: datetime) -> Turn:
        return self._chosen(self._turns(now), now)

    def _chosen(self, available: list[Turn], now: datetime) -> Turn:
        turn = signing(available, now)
        if turn is None:
            raise self._nothing_signs()
        return turn

    def _turns(self, now: datetime, fresh: bool = False) -> list[Turn]:
        # With a short wait, a long memory would miss the moment to publish.
        seconds = min(VERSIONS_SECONDS, self._wait.total_seconds() / 10)
        return turns(self._key.versions(fresh=fresh, seconds=seconds), now, self._wait)

    def _of(self, version: str, kid: str | None) -> KeyVaultSigner:
        return KeyVaultSigner(self._key, version, self._algorithm, kid)

    def _nothing_signs(self) -> ConfigError:
        return ConfigError(
            f"every version of {self._key.address} is disabled or has expired",
            "Enable one in the vault, or make a new version",
        )


def _coming(available: list[Turn], current: Turn, now: datetime) -> Turn | None:
    """The oldest that waits for its time."""
    for turn in available:
        if turn.signs_from > now and turn.version.version != current.version.version:
            return turn
    return None


def _age(each: KeyVersion) -> tuple[datetime, datetime, str]:
    # The vault counts in seconds: within one, a version that a rotation made is the newer one.
    return each.created, _instant(each.tag(SIGNS_FROM)) or each.created, each.version


def _signs_from(each: KeyVersion, wait: timedelta, first: bool) -> datetime:
    tagged = _instant(each.tag(SIGNS_FROM))
    if tagged is not None and tagged < each.created - _CLOCKS_DIFFER:
        tagged = None  # of an older version, copied when the vault's own policy made this one
    begins = tagged if tagged is not None else each.created if first else each.created + wait
    return begins if each.not_before is None else max(begins, each.not_before)


def _instant(tag: str | None) -> datetime | None:
    try:
        when = None if tag is None else datetime.fromisoformat(tag)
    except ValueError:
        return None
    return when if when is not None and when.tzinfo is not None else None
