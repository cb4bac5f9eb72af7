"""The columns of references: as written, the type, the bare id, the logical identifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pipeline.tables.flat import reference
from pipeline.tables.flat.column import TEXT, TEXTS, FlatColumn, structs
from pipeline.tables.flat.place import Place
from pipeline.tables.flat.spot import Spot, column, listed

_LISTED = structs(found=reference.FOUND, type=TEXT)


def _apart(where: Spot) -> FlatColumn:
    """A Reference taken apart, once for all columns that are made of it."""
    name = "__reference_" + "_".join(where.path)
    return FlatColumn(
        name, reference.FOUND, "", lambda place: reference.found_sql(where.value(place).first())
    )


def _all_apart(where: Spot) -> FlatColumn:
    """All References of a list taken apart, each with the type that it states."""

    def one(each: Place) -> dict[str, str]:
        return {"found": reference.found_sql(each), "type": each.member("type").sql}

    name = "__references_" + "_".join(where.path)
    return FlatColumn(name, _LISTED, "", listed(where, _LISTED, one))


def reference_column(
    name: str, where: Spot, description: str, make: Callable[[str, Place], str]
) -> FlatColumn:
    """A column that `make` builds from a Reference taken apart and from the place of the Reference."""
    apart = _apart(where)
    return FlatColumn(
        name, TEXT, description,
        lambda place: make(place.member(apart.name).sql, where.value(place).first()),
        (apart,),
    )  # fmt: skip


def bare_id(name: str, where: Spot, description: str) -> FlatColumn:
    """The bare id of a Reference."""
    return reference_column(name, where, description, lambda found, _: f"fhir_reference_id({found})")


def _of_each(name: str, where: Spot, description: str, make: Callable[[Place], str]) -> FlatColumn:
    apart = _all_apart(where)

    def text(each: Place) -> Place:
        return Place(make(each), TEXT.arrow(), each.depth)

    return FlatColumn(
        name, TEXTS, description, lambda place: place.member(apart.name).every(make=text).sql, (apart,)
    )


def bare_ids(name: str, where: Spot, description: str) -> FlatColumn:
    """The bare ids of all References of a list, in order."""
    return _of_each(name, where, description, lambda each: f"fhir_reference_id({each.member('found').sql})")


def _types(name: str, where: Spot, description: str) -> FlatColumn:
    return _of_each(name, where, description, lambda each: reference.type_sql(each.member("found").sql, each))


def refer(name: str, where: Spot, description: str, *, many: bool = False) -> list[FlatColumn]:
    """A Reference: as written, its type, its bare id, its logical identifier; all ids, where it repeats."""
    written = name if name.endswith("reference") else f"{name}_reference"
    no_id = "NULL for #contained, conditional and merely logical references"
    logical = "of its logical identifier or conditional reference"
    found = [
        column(written, TEXT, where / "reference", f"{description}: the reference as written"),
        reference_column(f"{name}_type", where, f"{description}: resource type", reference.type_sql),
        bare_id(f"{name}_id", where, f"{description}: bare id; {no_id}"),
        column(f"{name}_display", TEXT, where / "display", f"{description}: display"),
        *(
            reference_column(
                f"{name}_identifier_{part}", where, f"{description}: {part} {logical}",
                partial(_logical, part),
            )
            for part in ("system", "value")
        ),
    ]  # fmt: skip
    if many:
        found += [
            bare_ids(
                f"{name}_ids", where, f"{description}: bare ids of all, in order; NULL where one has none"
            ),
            _types(f"{name}_types", where, f"{description}: resource types of all, in the same order"),
        ]
    return found


def _logical(part: str, found: str, place: Place) -> str:
    return reference.identifier_sql(found, place, part)


def patient_id(where: Spot, *, always: bool, description: str) -> FlatColumn:
    """The bare id of the Patient; `always` where the element can point to nothing else."""

    def make(found: str, place: Place) -> str:
        if always:
            return f"fhir_reference_id({found})"
        return f"CASE WHEN {reference.type_sql(found, place)} = 'Patient' THEN fhir_reference_id({found}) END"

    return reference_column("patient_id", where, description, make)
