"""SMART system scopes: what they cover, v1 and v2 spellings."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SCOPE = re.compile(r"system/(\*|[A-Z][A-Za-z]+)\.(read|\*|c?r?u?d?s?)")


@dataclass(frozen=True, slots=True)
class Scopes:
    """Resource types that may be read, `*` for all."""

    text: str
    types: frozenset[str]

    def covers(self, resource_type: str) -> bool:
        """Whether that type may be read."""
        return "*" in self.types or resource_type in self.types


def parse_scopes(text: str) -> Scopes | None:
    """The scopes of a space separated list; None where one is no system scope that reads and searches."""
    types = set()
    parts = text.split(" ")
    for part in parts:
        found = _SCOPE.fullmatch(part)
        if not found or not _reads(found[2]):
            return None
        types.add(found[1])
    return Scopes(text, frozenset(types))


def grant(requested: Scopes, registered: Scopes) -> Scopes | None:
    """What of the request the registration allows, or None for nothing.

    A wildcard is expanded where the registration is narrower, as real servers do (protocol fact 8).
    """
    if "*" in registered.types:
        return requested
    allowed = registered.types if "*" in requested.types else requested.types & registered.types
    if not allowed:
        return None
    if allowed == requested.types:
        return requested
    return Scopes(" ".join(f"system/{name}.rs" for name in sorted(allowed)), frozenset(allowed))


def _reads(access: str) -> bool:
    return access in ("read", "*") or ("r" in access and "s" in access)
