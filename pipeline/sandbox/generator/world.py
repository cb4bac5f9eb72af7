"""Which patients exist on which night, who visits when, and what happens to a resource over the nights.

Everything here is a pure function of (seed, patients, night) and the place of a resource (type, patient,
slot): nothing is stored, so any part of the data can be made alone and in any order.
Instants are integers, milliseconds since 1970-01-01T00:00:00Z.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.sandbox.generator.draws import Draws, mix

DAY = 86_400_000
FIRST_NIGHT = 1_767_232_800_417
"""2026-01-01T02:00:00.417Z: the fraction catches clients that round the watermark."""

FOLLOW_UPS = 0x80000
"""Slots from here on belong to visits that happened after the first night."""

FOLLOW_UP_WIDTH = 16
"""Slots of one type that a follow-up visit may use."""


def night_instant(night: int) -> int:
    """The instant up to which night `night` (1, 2, ...) knows the data: its transactionTime."""
    return FIRST_NIGHT + (night - 1) * DAY


@dataclass(frozen=True, slots=True)
class World:
    """What makes one data set: same values, same bytes.

    `patients` counts those of night 1; later nights add some. `observations_per_patient` replaces the usual
    number of observations from before the first night; `pad` adds that many characters of narrative to each
    observation, to make large volumes cheaply.
    """

    seed: int = 1
    patients: int = 100
    night: int = 1
    observations_per_patient: int | None = None
    pad: int = 0

    def admitted_per_night(self) -> int:
        """Patients that each night after the first adds."""
        return max(1, self.patients // 50) if self.patients else 0

    def patient_count(self) -> int:
        """Patient numbers in use up to this night, the deleted ones included."""
        return self.patients + (self.night - 1) * self.admitted_per_night()

    def admission(self, patient: int) -> int:
        """The night on which the patient first appears."""
        if patient < self.patients:
            return 1
        return 2 + (patient - self.patients) // self.admitted_per_night()

    def erasure(self, patient: int) -> int | None:
        """The night on which the patient and all that belongs to them is deleted, or None."""
        if patient % 40 == 7:
            return max(3, self.admission(patient) + 1) + (patient // 40) % 4
        return None


@dataclass(frozen=True, slots=True)
class Visit:
    """One encounter of a patient: `number` names its slots, `born` is the night from which it is known."""

    number: int
    born: int
    day: int
    """Days since 1970-01-01."""

    def slots(self, per_visit: int) -> range:
        """The slots of a type with `per_visit` resources a visit."""
        if self.number >= FOLLOW_UPS:
            return range(self.number, self.number + per_visit)
        return range(self.number * per_visit, (self.number + 1) * per_visit)


def visits(world: World, patient: int) -> Iterator[Visit]:
    """Visits known on this night: two to five from before, then one every ninth night."""
    admission = world.admission(patient)
    draws = Draws(mix(world.seed, 901, patient, 0))
    first_day = night_instant(admission) // DAY - 1
    for number in range(2 + draws.below(4)):
        yield Visit(number, admission, first_day - 20 - number * 160 - draws.below(150))
    for night in range(max(2, admission + 1), world.night + 1):
        if (patient + night) % 9 == 0:
            yield Visit(FOLLOW_UPS + night * FOLLOW_UP_WIDTH, night, night_instant(night) // DAY - 1)


@dataclass(frozen=True, slots=True)
class Life:
    """One resource as a night sees it.

    `bits` are its own 64 random bits; `version` counts from 1; `changed` is the night of that version;
    `updated` its instant; `deleted` the instant of its deletion where that is already past.
    """

    kind: int
    patient: int
    slot: int
    bits: int
    born: int
    version: int
    changed: int
    updated: int
    deleted: int | None

    @property
    def created(self) -> int:
        """The instant of its first version."""
        return _instant_in(self.born, self.bits)


def life_of(world: World, kind: int, patient: int, slot: int, born: int, *, mortal: bool) -> Life | None:
    """The resource at this place, or None when it is not born yet.

    Born on night `born`, one in eight changes every few nights; where `mortal`, one in sixty is deleted
    later, and the first slot of every tenth patient on the second night.
    """
    night = world.night
    if born > night:
        return None
    bits = mix(world.seed, kind, patient, slot)
    version, changed = 1, born
    if bits & 7 == 0:
        period = 2 + ((bits >> 8) & 7) % 5
        offset = (bits >> 16) % period
        version += (night - offset) // period - (born - offset) // period
        if version > 1:
            changed = night - (night - offset) % period
    death = world.erasure(patient) if patient >= 0 else None
    if mortal:
        if (bits >> 20) % 61 == 5:
            own = born + 1 + ((bits >> 30) & 7) % 6
            death = own if death is None else min(own, death)
        if slot == 0 and patient % 10 == 3:
            death = 2
    deleted = None
    if death is not None and max(death, born + 1) <= night:
        death = max(death, born + 1)
        deleted = night_instant(death) - 1000 - (bits >> 24) % 40_000_000
    return Life(kind, patient, slot, bits, born, version, changed, _instant_in(changed, bits), deleted)


def _instant_in(night: int, bits: int) -> int:
    """When in the window of `night` it happened; the first night's window is three years long."""
    window = 94_608_000_000 if night == 1 else DAY - 1000
    return night_instant(night) - 1 - (bits >> 13) % window
