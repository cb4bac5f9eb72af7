"""Whose a resource is, by the paths of the Patient compartment.

Where several patients can be named, a resource is one patient's only when it names nobody else: erasing it
would take others' data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pipeline.tables.compartment import REFERENCE, URN, Paths, about, others

KEPT: Mapping[str, Paths] = {"Group": ("member.entity",), "Patient": ("link.other",)}
"""In the compartment, and never erased for a mention: a list of many, and another patient."""


class Standing(Enum):
    """Whose a resource is, from one patient's point of view."""

    OWN = "own"
    OTHERS = "others"
    """Somebody else's, or several patients'."""
    NOBODY = "nobody"
    """It names no patient."""


@dataclass(frozen=True)
class Patient:
    """The patient in question."""

    id: str

    def standing(self, resource: Mapping[str, Any]) -> Standing:
        """Whose the resource is."""
        kind = resource.get("resourceType")
        if kind == "Patient":
            return Standing.OWN if resource.get("id") == self.id else Standing.OTHERS
        if not isinstance(kind, str) or kind in KEPT:
            return Standing.OTHERS
        for paths in (about(kind), others(kind)):
            named = self._named(resource, paths)
            if named:
                return Standing.OWN if named == {self.id} else Standing.OTHERS
        return Standing.NOBODY

    def _named(self, resource: Mapping[str, Any], paths: Sequence[str]) -> set[str]:
        found = (self.of_reference(each, path) for path in paths for each in _at(resource, path.split(".")))
        return {each for each in found if each is not None}

    def of_reference(self, reference: object, path: str = "") -> str | None:
        """The id of the patient that a Reference names (protocol fact 32: relative, absolute, with a
        version); None where it names none."""
        if not isinstance(reference, dict) or not isinstance(text := reference.get("reference"), str):
            return None
        if match := REFERENCE.search(text):
            return match[1]
        if match := URN.match(text):
            return self.id if match[1] == self.id else None
        stated = str(reference.get("type", "Patient" if path == "patient" else "")).rpartition("/")[2]
        bare = stated == "Patient" and not set(text) & set("/#:? ")
        return text if bare and text else None


def _at(value: object, path: Sequence[str]) -> Iterator[object]:
    """The values at a path, of every element of lists on the way."""
    if isinstance(value, list):
        for each in value:
            yield from _at(each, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from _at(value[path[0]], path[1:])
