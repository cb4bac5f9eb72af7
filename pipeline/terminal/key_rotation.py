"""`keys rotate`: the next key of a source, and what to do so that its server knows it in time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pipeline.auth.rotation import Rotation, shown
from pipeline.config import Config, Source, secret_path
from pipeline.errors import ConfigError
from pipeline.terminal.public_keys import CACHE_SECONDS

_SAFE_WAIT = timedelta(seconds=2 * CACHE_SECONDS)
"""Our JWK Set may be kept so long by what lies between, and once more by the server (azure-and-aidbox B)."""


@dataclass(frozen=True)
class Rotated:
    """What was done, and what is left to do, as lines for people."""

    rotation: Rotation
    lines: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {"kid": self.rotation.kid, "signs_from": shown(self.rotation.signs_from)}


def rotate(config: Config, source: Source, wait: timedelta) -> Rotated:
    """Makes the next key of `source`, published at once and signing after `wait`.

    Raises `ConfigError` where there is none to rotate, or a rotation is under way; for keys in a vault also
    `AuthError` and `Unreachable`.
    """
    from pipeline.exports.connection import ring_for

    if source.auth.kind != "smart":
        raise ConfigError(
            f"source {source.name} signs in with {source.auth.kind} and has no key of ours",
            "Its secret or certificate is rotated in Entra",
        )
    _require_no_kid_elsewhere(config, source)
    rotation = ring_for(config, source, wait).rotate()
    return Rotated(rotation, tuple(_lines(config, source, rotation, wait)))


def _require_no_kid_elsewhere(config: Config, source: Source) -> None:
    """A source with a kid of its own would sign with the next key under the name of the one before."""
    named = [each.name for each in _sharing(config, source) if each.auth.kid is not None]
    if named:
        raise ConfigError(
            f"the same key signs for {', '.join(named)} under a configured auth.kid, which the next key "
            "would have too",
            "Take auth.kid out there once that server knows the key by its thumbprint, or give that source a "
            "key of its own",
        )


def _sharing(config: Config, source: Source) -> list[Source]:
    """The other sources that sign with the same key, however their references write it."""
    ours = _same_key(config, source)
    return [each for each in config.sources if each.name != source.name and _same_key(config, each) == ours]


def _same_key(config: Config, source: Source) -> str | None:
    reference = source.auth.private_key
    if source.auth.kind != "smart" or reference is None:
        return None
    path = secret_path(reference, config.folder)
    return str(path.resolve()) if path is not None else reference.rstrip("/").lower()


def _lines(config: Config, source: Source, rotation: Rotation, wait: timedelta) -> list[str]:
    when = shown(rotation.signs_from)
    lines = [
        f"{source.name}: the new key {rotation.kid} ({source.auth.algorithm}) is published from now on "
        f"and signs from {when} on"
    ]
    lines += [f"  {note}" for note in rotation.notes]
    sharing = _sharing(config, source)
    if sharing:
        lines.append(f"  the same key signs for {', '.join(each.name for each in sharing)}")
    if source.profile == "apim-smart":
        lines.append(
            f"  -> before {when}: put the output of `fhir-export jwks {source.name}` into API Management's "
            f"named value JWKS (`fhir-export register {source.name}` prints the command)"
        )
    elif source.profile in ("aidbox", "smartbox"):
        lines += _lines_for_a_box(source, when)
    else:
        lines.append(
            "  -> if the server reads our JWK Set from a URL (`fhir-export jwks --serve`): nothing to do"
        )
        lines.append(
            f"  -> if it was pasted in: paste the output of `fhir-export jwks {source.name}` before {when}"
        )
    if wait < _SAFE_WAIT:
        lines.append(
            f"  ! servers keep keys for minutes (some for five): after {wait.total_seconds() / 60:g} minutes "
            "one that has not read the new key refuses the sign-in until it does"
        )
    return lines


def _lines_for_a_box(source: Source, when: str) -> list[str]:
    lines = ["  -> if the Client reads our JWK Set from a URL (`fhir-export jwks --serve`): nothing to do"]
    if source.auth.algorithm.startswith("RS"):  # a Client holds no other keys
        form = " --tenant-form FORM" if source.profile == "smartbox" else ""
        lines.append(
            f"  -> if our keys stand in the Client itself: before {when} `fhir-export register {source.name} "
            f"--apply --admin-token file:PATH{form}` puts the new one there too"
        )
    return lines
