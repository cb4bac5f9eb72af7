"""Private keys in a folder, and their rotation without any process that must run.

Beside `hosp_a.pem` a rotation puts `hosp_a.next.pem`, the next private key, and `hosp_a.next.pem.json`, a
note without secrets that says from when on it signs. Everyone who has the folder reads the note and changes
keys by the clock. The rotation after that moves the next key to `hosp_a.pem`, and the one that was there to
`hosp_a.KID.pem`: no private key is ever deleted. The note changes in one step, always last, so a rotation
that dies anywhere leaves a ring that works, and is simply run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.auth.keys import (
    Algorithm,
    generate_key,
    make_readable_like,
    read_pem,
    replace_file,
    write_private_key,
)
from pipeline.auth.rotation import Rotation, instant, moment, require_own_kid, shown, under_way
from pipeline.auth.signers import PemSigner
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class _Note:
    """The sidecar: which key comes next, from when on it signs, until when the former one is published."""

    kid: str
    former: str
    signs_from: datetime
    former_until: datetime

    def speaks_of(self, base: PemSigner) -> bool:
        """False when somebody has put another key in the place of the former one: then that one counts."""
        return base.kid in (self.former, self.kid)

    def as_bytes(self) -> bytes:
        content = {
            "kid": self.kid,
            "former": self.former,
            "signs_from": instant(self.signs_from),
            "former_until": instant(self.former_until),
        }
        return json.dumps(content, indent=2).encode() + b"\n"


class PemRing:
    """The keys of `path`: itself, and what `rotate` has put beside it.

    `wait` is how long a key is published before it signs, and after it has signed. All methods raise
    `ConfigError` for what cannot be read, is no key, or does not fit the algorithm.
    """

    def __init__(self, path: Path, *, algorithm: Algorithm, kid: str | None, wait: timedelta) -> None:
        self._path = path
        self._algorithm: Algorithm = algorithm
        self._kid = kid
        self._wait = wait

    @property
    def _next(self) -> Path:
        return self._path.with_name(f"{self._path.stem}.next{self._path.suffix}")

    @property
    def _sidecar(self) -> Path:
        return self._next.with_name(f"{self._next.name}.json")

    def signer(self, now: datetime | None = None) -> PemSigner:
        return self._in_play(moment(now))[0]

    def public_jwks(self, now: datetime | None = None) -> list[dict[str, Any]]:
        return [signer.public_jwk() for signer in self._in_play(moment(now), published=True)]

    def rotate(self, now: datetime | None = None) -> Rotation:
        """Writes the next key and its note; first puts the keys of a finished rotation in their places."""
        require_own_kid(self._kid)
        if self._path.is_symlink():
            raise ConfigError(
                f"{self._path} is a link, and the next key would lie beside it, not beside the key",
                "Name the key file itself in auth.private_key",
            )
        try:
            with self._alone():
                return self._rotate(now)
        except OSError as error:
            raise ConfigError(
                f"the keys beside {self._path} cannot be rotated: {error.strerror}",
                "Run it where this folder can be written to, as the user who owns the key",
            ) from None

    # --- reading -------------------------------------------------------------------------------------

    def _in_play(self, now: datetime, published: bool = False) -> list[PemSigner]:
        """The signing key, and if `published` also the coming or former one."""
        found = self._look(now, published)
        if found is None:
            found = self._look(now, published)  # a rotation went on between two files
        if found is None:
            raise self._lost()
        return found

    def _lost(self) -> ConfigError:
        return ConfigError(
            f"{self._next} is missing or not the key that {self._sidecar.name} names",
            "Put both back from a backup; or remove the note, then the key before is used on",
        )

    def _look(self, now: datetime, published: bool) -> list[PemSigner] | None:
        # The note first: it is changed last, so the files are as it says, or further.
        note = self._read_note()
        base = _signer(read_pem(self._path), self._algorithm)
        if note is None or note.kid == base.kid or not note.speaks_of(base):
            return [self._named(base)]
        started = now >= note.signs_from
        if not started and not published:
            return [self._named(base)]
        try:
            coming = _signer(self._next.read_bytes(), self._algorithm)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(
                f"the private key {self._next} cannot be read: {error.strerror}",
                f"Give it the owner and mode of {self._path.name}",
            ) from None
        if coming.kid != note.kid:
            return None
        if not published or now >= note.former_until:
            return [self._named(coming)]
        require_own_kid(self._kid)
        return [coming, base] if started else [base, coming]

    def _named(self, signer: PemSigner) -> PemSigner:
        return signer if self._kid is None else signer.named(self._kid)

    def _read_note(self) -> _Note | None:
        try:
            content = json.loads(self._sidecar.read_bytes())
            return _Note(
                str(content["kid"]),
                str(content["former"]),
                datetime.fromisoformat(content["signs_from"]).astimezone(),
                datetime.fromisoformat(content["former_until"]).astimezone(),
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(
                f"{self._sidecar} cannot be read: {error.strerror}",
                f"Give it the owner and mode of {self._path.name}",
            ) from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self._sidecar} is damaged",
                "Put it back from a backup, or remove it to stay with the old key",
            ) from None

    # --- rotating, alone -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One rotation at a time; the kernel gives the lock back when its holder dies."""
        import fcntl

        place = self._path.with_name(f".{self._path.name}.lock")
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            make_readable_like(place, self._path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another rotation of {self._path} is under way", "Let it end, then look at its result"
                ) from None
            yield
        finally:
            os.close(lock)

    def _rotate(self, now: datetime | None) -> Rotation:
        at = moment(now)
        self._sweep()
        note = self._read_note()
        base = _signer(read_pem(self._path), self._algorithm)
        notes: list[str] = []
        if note is not None and not note.speaks_of(base):
            notes += self._set_aside(note)
        elif note is not None and note.kid != base.kid:
            if at < note.signs_from:
                raise under_way(note.kid, note.signs_from)
            if at < note.former_until:
                raise ConfigError(
                    f"the last rotation is not over: the former key is published until "
                    f"{shown(note.former_until)}",
                    "Rotate again after that",
                )
            notes.append(self._promote(base, note))
        coming = self._next_key()
        signs_from = moment(now) + self._wait  # asked again: making a key may take seconds
        # Last, in one step: from here on the key is published, and will sign.
        former = _signer(read_pem(self._path), self._algorithm).kid
        note = _Note(coming.kid, former, signs_from, signs_from + self._wait)
        replace_file(self._sidecar, note.as_bytes(), self._path)
        notes.append(
            f"{self._next} holds the new private key; keep it and {self._sidecar.name} beside the old one"
        )
        return Rotation(coming.kid, signs_from, tuple(notes))

    def _sweep(self) -> None:
        """Drafts of a rotation that died: what they hold was never published, or is elsewhere too."""
        stem, suffix = re.escape(self._path.stem), re.escape(self._path.suffix)
        draft = re.compile(rf"\.{stem}(\.next|\.[\w-]{{43}})?{suffix}(\.json)?\.[0-9a-f]{{12}}", re.ASCII)
        for path in self._path.parent.iterdir():
            if draft.fullmatch(path.name):
                path.unlink()

    def _set_aside(self, note: _Note) -> list[str]:
        """The next key of a rotation that somebody has ended by a new key in the first one's place."""
        if not self._next.exists() or _signer(self._next.read_bytes(), self._algorithm).kid != note.kid:
            return []
        kept = self._kept(note.kid)
        self._next.replace(kept)
        return [f"{kept} holds the key of the rotation before, which is published no more"]

    def _kept(self, kid: str) -> Path:
        return self._path.with_name(f"{self._path.stem}.{kid}{self._path.suffix}")

    def _promote(self, base: PemSigner, note: _Note) -> str:
        """The key that signs takes the place of the one before, which is kept under its kid."""
        if not self._next.exists() or _signer(read_pem(self._next), self._algorithm).kid != note.kid:
            raise self._lost()
        kept = self._kept(base.kid)
        if not kept.exists():
            replace_file(kept, read_pem(self._path), self._path)
        replace_file(self._path, read_pem(self._next), self._path)
        return f"{kept} holds the key before, which is published no more; delete it when you like"

    def _next_key(self) -> PemSigner:
        """A key at the next key's place: new, or what a rotation that died has left there unpublished."""
        promoted = _signer(read_pem(self._path), self._algorithm).kid
        if self._next.exists():
            left = _signer(read_pem(self._next), self._algorithm)
            if left.kid != promoted:
                make_readable_like(self._next, self._path)
                return left
            self._next.unlink()  # its other name is the key file itself now
        pem = generate_key(self._algorithm)
        write_private_key(self._next, pem)
        make_readable_like(self._next, self._path)
        return _signer(pem, self._algorithm)


_signers: dict[tuple[str, Algorithm], PemSigner] = {}


def _signer(pem: bytes, algorithm: Algorithm) -> PemSigner:
    """A signer under its thumbprint. Kept: checking an RSA key takes a sixth of a second."""
    key = (hashlib.sha256(pem).hexdigest(), algorithm)
    known = _signers.get(key)
    if known is None:
        known = _signers[key] = PemSigner.from_pem(pem, algorithm)
    return known
