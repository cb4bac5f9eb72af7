"""Where an element of FHIR lies below a resource, component or item, and the plainest columns of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.tables.flat.column import ColumnType, FlatColumn
from pipeline.tables.flat.place import Place


@dataclass(frozen=True)
class Spot:
    """Where an element lies: a path of member names from a base place. Lists on the way give their first."""

    path: tuple[str, ...]
    base: Callable[[Place], Place] = lambda place: place

    def value(self, place: Place) -> Place:
        return self.base(place).at(*self.path)

    def derived(self, place: Place, suffix: str) -> Place:
        """The derived column beside the element: `__value_numeric`, `__birthDate_start`."""
        *around, name = self.path
        return self.base(place).at(*around).member(f"__{name}_{suffix}")

    def all(self, place: Place, make: Callable[[Place], Place] | None = None) -> Place:
        """All values, through every list on the way, as one list; `make` is applied to each."""
        return self.base(place).every(*self.path, make=make)

    def __truediv__(self, name: str) -> Spot:
        return Spot((*self.path, name), self.base)


def spot(*path: str) -> Spot:
    return Spot(path)


def column(name: str, kind: ColumnType, where: Spot, description: str) -> FlatColumn:
    """One column that is the value at a spot, the first where it repeats."""
    return FlatColumn(name, kind, description, lambda place: where.value(place).first().sql)


def numeric(where: Spot) -> Callable[[Place], str]:
    """A decimal as DOUBLE: the derived column, or from the digits in Parquet that lacks it."""

    def make(place: Place) -> str:
        derived, digits = where.derived(place, "numeric").first(), where.value(place).first()
        if derived.exists or not digits.exists:
            return derived.sql
        return f"TRY_CAST({digits.sql} AS DOUBLE)"

    return make


def derived(where: Spot, suffix: str) -> Callable[[Place], str]:
    return lambda place: where.derived(place, suffix).first().sql


def joined(where: Spot, *path: str, by: str = " ") -> Callable[[Place], str]:
    """All texts at a path below a spot, joined; NULL where there are none."""

    def make(place: Place) -> str:
        texts = where.value(place).first().every(*path)
        if not texts.is_list:
            return texts.sql
        return f"nullif(array_to_string({texts.sql}, {by!r}), '')" if texts.exists else "NULL"

    return make


def struct_sql(kind: ColumnType, values: dict[str, str]) -> str:
    """A struct literal with the members of a list type, in its order."""
    members = [f"'{name}': CAST({values[name]} AS {inner.sql})" for name, inner in kind.members]
    return "{" + ", ".join(members) + "}"


def listed(where: Spot, kind: ColumnType, one: Callable[[Place], dict[str, str]]) -> Callable[[Place], str]:
    """A list of structs, one for each value at a spot; `one` gives the SQL of its members."""

    def make(each: Place) -> Place:
        return Place(struct_sql(kind, one(each)), kind.arrow().value_type, each.depth)

    return lambda place: where.all(place, make).sql
