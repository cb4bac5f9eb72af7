"""FHIR data types as plain objects: codings, references, periods, dates as real systems write them."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pipeline.sandbox.generator.draws import Draws

Json = dict[str, Any]

BASE = "https://ehr.sandbox.example/fhir"
"""The server base in absolute references; fixed, so that the data does not depend on a port."""

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
ICD10 = "http://hl7.org/fhir/sid/icd-10-cm"
CVX = "http://hl7.org/fhir/sid/cvx"
CPT = "http://www.ama-assn.org/go/cpt"
UCUM = "http://unitsofmeasure.org"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem/"

_ZONES = ((0, "Z"), (-18_000, "-05:00"), (3600, "+01:00"), (19_800, "+05:30"))
_EPOCH = date(1970, 1, 1)


def coding(system: str, code: str, display: str | None = None) -> Json:
    """A Coding."""
    if display is None:
        return {"system": system, "code": code}
    return {"system": system, "code": code, "display": display}


@lru_cache(maxsize=512)
def concept(system: str, code: str, display: str) -> Json:
    """A CodeableConcept of one coding and its text; shared, so nobody may change it."""
    return {"coding": [{"system": system, "code": code, "display": display}], "text": display}


def quantity(value: str, unit: str, code: str | None = None) -> Json:
    """A Quantity whose number keeps its digits."""
    return {"value": Decimal(value), "unit": unit, "system": UCUM, "code": code or unit}


def money(value: str) -> Json:
    """An amount in dollars whose number keeps its digits."""
    return {"value": Decimal(value), "currency": "USD"}


@lru_cache(maxsize=50_000)
def iso_date(day: int) -> str:
    """A day since the epoch as `YYYY-MM-DD`."""
    return (_EPOCH + timedelta(days=day)).isoformat()


def partial_date(day: int, draws: Draws) -> str:
    """A day as people remember it: mostly whole, sometimes only the month or the year."""
    text = iso_date(day)
    chance = draws.below(10)
    if chance == 0:
        return text[:4]
    return text[:7] if chance == 1 else text


def instant(milliseconds: int, zone: int = 0) -> str:
    """An instant with milliseconds; `zone` 0 writes Z, others an offset."""
    return _clock(milliseconds // 1000, zone, f".{milliseconds % 1000:03d}")


def _clock(seconds: int, zone: int, fraction: str) -> str:
    offset, suffix = _ZONES[zone]
    day, second = divmod(seconds + offset, 86_400)
    return f"{iso_date(day)}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}{fraction}{suffix}"


def date_time(day: int, draws: Draws) -> str:
    """A dateTime on that day with an offset, sometimes with a fraction of a second."""
    seconds = day * 86400 + draws.between(7 * 3600, 19 * 3600)
    zone = draws.below(4)
    form = draws.below(8)
    fraction = ""
    if form == 0:
        fraction = f".{draws.below(1000):03d}"
    elif form == 1:
        fraction = f".{draws.below(1_000_000):06d}"
    return _clock(seconds, zone, fraction)


def period(day: int, draws: Draws, days: int = 0) -> Json:
    """A Period from that day; open-ended one time in eight."""
    start = date_time(day, draws)
    if draws.one_in(8):
        return {"start": start}
    return {"start": start, "end": date_time(day + 1 + days, draws)}


def narrative(text: str) -> Json:
    """A generated Narrative around text that needs no escaping."""
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{text}</div>'}
