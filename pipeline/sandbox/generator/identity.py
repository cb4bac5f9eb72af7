"""Resource ids: UUIDs, short ones and 64 character ones, each telling where to find its resource again."""

from __future__ import annotations

import re

from pipeline.sandbox.generator.draws import mix

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-([0-9a-f]{7})([0-9a-f]{5})")
_SHORT = re.compile(r"([0-9a-f]{1,7})\.([0-9a-f]{1,5})")
_LONG = re.compile(r"[0-9A-F]{48}\.([0-9a-f]{7})\.\.([0-9a-f]{5})-")


def resource_id(bits: int, patient: int, slot: int) -> str:
    """The id of the resource with these bits: six in eight a UUID, one short, one 64 characters long."""
    place = patient + 1
    form = (bits >> 40) & 7
    if form == 6:
        return f"{place:x}.{slot:x}"
    if form == 7:
        wide = bits * 0x9E3779B97F4A7C15F39CC0605CEDC834 & ((1 << 192) - 1)
        return f"{wide:048X}.{place:07x}..{slot:05x}-"
    digits = f"{bits:016x}"
    variant = "89ab"[bits & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-{variant}{digits[:3]}-{place:07x}{slot:05x}"


def place_of(identifier: str) -> tuple[int, int] | None:
    """(patient, slot) that an id of this generator names, or None. The caller compares the whole id."""
    for form in (_UUID, _SHORT, _LONG):
        found = form.fullmatch(identifier)
        if found:
            return int(found[1], 16) - 1, int(found[2], 16)
    return None
    return None


def id_at(seed: int, kind: int, patient: int, slot: int) -> str:
    """The id of the resource of type number `kind` at this place."""
    return resource_id(mix(seed, kind, patient, slot), patient, slot)
