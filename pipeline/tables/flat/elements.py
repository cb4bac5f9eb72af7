"""The columns that an element of FHIR gets in a flat table, by its data type.

Everything is told from the definitions: which columns there are, what they are called and of which type they
are never depends on data. `Spot` says where an element lies; the same rules serve top-level elements,
elements inside backbone elements, components, items, and members of extensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pipeline.tables import definitions
from pipeline.tables.definitions import Element
from pipeline.tables.flat import reference
from pipeline.tables.flat.column import (
    BOOLEAN,
    CODINGS,
    DOUBLE,
    IDENTIFIERS,
    INTEGER,
    TEXT,
    TEXTS,
    TIMESTAMP,
    ColumnType,
    FlatColumn,
    snake_case,
    structs,
)
from pipeline.tables.flat.place import Place, coalesced, one_of

QUANTITIES = frozenset(
    {"Quantity", "Age", "Count", "Distance", "Duration", "MoneyQuantity", "SimpleQuantity"}
)
DATES = frozenset({"date", "dateTime", "instant"})
INTEGERS = frozenset({"integer", "positiveInt", "unsignedInt"})


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


# --- one value -----------------------------------------------------------------------------------------


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


def _derived(where: Spot, suffix: str) -> Callable[[Place], str]:
    return lambda place: where.derived(place, suffix).first().sql


def decimal(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        column(name, TEXT, where, f"{description}: the digits as written"),
        FlatColumn(f"{name}_numeric", DOUBLE, f"{description}: as a number", numeric(where)),
    ]


def date(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        column(name, TEXT, where, f"{description}: as written"),
        FlatColumn(
            f"{name}_start", TIMESTAMP, f"{description}: the earliest instant it can mean, UTC",
            _derived(where, "start"),
        ),
        FlatColumn(
            f"{name}_end", TIMESTAMP, f"{description}: the latest instant it can mean, UTC",
            _derived(where, "end"),
        ),
    ]  # fmt: skip


def period(name: str, where: Spot, description: str) -> list[FlatColumn]:
    start, end = where / "start", where / "end"
    return [
        FlatColumn(
            f"{name}_start", TIMESTAMP, f"{description}: the earliest instant of its start, UTC",
            _derived(start, "start"),
        ),
        FlatColumn(
            f"{name}_end", TIMESTAMP, f"{description}: the latest instant of its end, UTC",
            _derived(end, "end"),
        ),
        column(f"{name}_start_text", TEXT, start, f"{description}: its start as written"),
        column(f"{name}_end_text", TEXT, end, f"{description}: its end as written"),
    ]  # fmt: skip


def quantity(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        *decimal(name, where / "value", description),
        column(f"{name}_unit", TEXT, where / "unit", f"{description}: unit as shown"),
        column(f"{name}_unit_code", TEXT, where / "code", f"{description}: unit as a code (UCUM)"),
        column(f"{name}_comparator", TEXT, where / "comparator", f"{description}: <, <=, >= or >"),
    ]


def money(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        *decimal(name, where / "value", description),
        column(f"{name}_currency", TEXT, where / "currency", f"{description}: currency (ISO 4217)"),
    ]


# --- codes ---------------------------------------------------------------------------------------------


def _narrow_codings(codings: Place) -> str:
    """All codings as list<struct<system, code, display>>, whatever members the Parquet has."""
    element = codings.first()
    if not any(element.member(name).exists for name in ("system", "code", "display")):
        return "NULL"
    # DuckDB casts structs by member name: no lambda, no copy.
    return f"CAST({codings.sql} AS {CODINGS.sql})"


def code_name(name: str) -> str:
    """The code's own column: `status_reason_code`; `code` and `vaccine_code` are not doubled."""
    return name if name == "code" or name.endswith("_code") else f"{name}_code"


def concept(name: str, where: Spot, description: str, *, many: bool = False) -> list[FlatColumn]:
    """A CodeableConcept: its first coding, its text, all codings (of all concepts, where it repeats)."""
    first = where / "coding"

    def codings(place: Place) -> str:
        found = first.all(place) if many else first.value(place)
        sql = _narrow_codings(found)
        return f"nullif({sql}, [])" if many and sql != "NULL" else sql

    return [
        column(code_name(name), TEXT, first / "code", f"{description}: code of the first coding"),
        column(f"{name}_system", TEXT, first / "system", f"{description}: system of the first coding"),
        column(f"{name}_display", TEXT, first / "display", f"{description}: display of the first coding"),
        column(f"{name}_text", TEXT, where / "text", f"{description}: text"),
        FlatColumn(f"{name}_codings", CODINGS, f"{description}: all codings", codings),
    ]


def coding(name: str, where: Spot, description: str, *, many: bool = False) -> list[FlatColumn]:
    """A Coding: code, system, display; all of them, where it repeats."""
    found = [
        column(code_name(name), TEXT, where / "code", f"{description}: code"),
        column(f"{name}_system", TEXT, where / "system", f"{description}: system"),
        column(f"{name}_display", TEXT, where / "display", f"{description}: display"),
    ]
    if many:
        found.append(
            FlatColumn(
                f"{name}_codings", CODINGS, f"{description}: all codings",
                lambda place: _narrow_codings(where.all(place)),
            )
        )  # fmt: skip
    return found


def picked(name: str, where: Spot, systems: tuple[str, ...], label: str, *, many: bool = False) -> FlatColumn:
    """The code that a concept has in one well-known system, wherever it stands among the codings."""
    codings = where / "coding"

    def make(place: Place) -> str:
        found = codings.all(place) if many else codings.value(place)
        system, code = found.first().member("system"), found.first().member("code")
        if not (found.is_list and system.exists and code.exists):
            return "NULL"
        hit = found.where(lambda each: one_of(each.member("system").sql, systems)).member("code")
        if many:
            return hit.sql
        # Nearly always it is the first: no list has to be filtered then.
        return f"CASE WHEN {one_of(system.sql, systems)} THEN {code.sql} ELSE {hit.sql} END"

    return FlatColumn(name, TEXT, f"{label}: the first coding of that system", make)


# --- references and identifiers ------------------------------------------------------------------------


def _apart(where: Spot) -> FlatColumn:
    """A Reference taken apart, once for all columns that are made of it."""
    name = "__reference_" + "_".join(where.path)
    return FlatColumn(
        name, reference.FOUND, "", lambda place: reference.found_sql(where.value(place).first())
    )


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


_LISTED = structs(found=reference.FOUND, type=TEXT)


def _all_apart(where: Spot) -> FlatColumn:
    """All References of a list taken apart, each with the type that it states."""

    def one(each: Place) -> dict[str, str]:
        return {"found": reference.found_sql(each), "type": each.member("type").sql}

    name = "__references_" + "_".join(where.path)
    return FlatColumn(name, _LISTED, "", listed(where, _LISTED, one))


def listed(where: Spot, kind: ColumnType, one: Callable[[Place], dict[str, str]]) -> Callable[[Place], str]:
    """A list of structs, one for each value at a spot; `one` gives the SQL of its members."""

    def make(each: Place) -> Place:
        return Place(struct_sql(kind, one(each)), kind.arrow().value_type, each.depth)

    return lambda place: where.all(place, make).sql


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


def struct_sql(kind: ColumnType, values: dict[str, str]) -> str:
    """A struct literal with the members of a list type, in its order."""
    members = [f"'{name}': CAST({values[name]} AS {inner.sql})" for name, inner in kind.members]
    return "{" + ", ".join(members) + "}"


def identifier(name: str, where: Spot, description: str, *, many: bool = False) -> list[FlatColumn]:
    """An Identifier: system and value; all of them with use and type, where it repeats."""
    found = [
        column(f"{name}_system", TEXT, where / "system", f"{description}: system"),
        column(f"{name}_value", TEXT, where / "value", f"{description}: value"),
    ]
    if not many:
        return found

    def one(each: Place) -> dict[str, str]:
        parts = {part: each.member(part).sql for part in ("use", "system", "value")}
        return {**parts, "type_code": each.at("type", "coding", "code").sql}

    every = FlatColumn(
        f"{name}s", IDENTIFIERS, f"{description}: all of them", listed(where, IDENTIFIERS, one)
    )
    return [*found, every]


# --- people and papers ---------------------------------------------------------------------------------


def joined(where: Spot, *path: str, by: str = " ") -> Callable[[Place], str]:
    """All texts at a path below a spot, joined; NULL where there are none."""

    def make(place: Place) -> str:
        texts = where.value(place).first().every(*path)
        if not texts.is_list:
            return texts.sql
        return f"nullif(array_to_string({texts.sql}, {by!r}), '')" if texts.exists else "NULL"

    return make


def human_name(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        column(f"{name}_family", TEXT, where / "family", f"{description}: family name"),
        FlatColumn(f"{name}_given", TEXT, f"{description}: given names, joined", joined(where, "given")),
        FlatColumn(f"{name}_prefix", TEXT, f"{description}: prefixes, joined", joined(where, "prefix")),
        FlatColumn(f"{name}_suffix", TEXT, f"{description}: suffixes, joined", joined(where, "suffix")),
        column(f"{name}_text", TEXT, where / "text", f"{description}: as one text"),
    ]


def address(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        FlatColumn(
            f"{name}_line", TEXT, f"{description}: street lines, joined by a comma",
            joined(where, "line", by=", "),
        ),
        column(f"{name}_city", TEXT, where / "city", f"{description}: city"),
        column(f"{name}_district", TEXT, where / "district", f"{description}: district or county"),
        column(f"{name}_state", TEXT, where / "state", f"{description}: state"),
        column(f"{name}_postal_code", TEXT, where / "postalCode", f"{description}: postal code"),
        column(f"{name}_country", TEXT, where / "country", f"{description}: country"),
    ]  # fmt: skip


def telecom(prefix: str, where: Spot, description: str) -> list[FlatColumn]:
    """The first phone number and e-mail address: `phone`, `email`."""

    def of_system(system: str) -> Callable[[Place], str]:
        def make(place: Place) -> str:
            points = where.all(place)

            def is_it(each: Place) -> str | None:
                kind = each.member("system")
                return f"{kind.sql} = '{system}'" if kind.exists else None

            return points.where(is_it).member("value").sql

        return make

    return [
        FlatColumn(f"{prefix}phone", TEXT, f"{description}: the first phone number", of_system("phone")),
        FlatColumn(f"{prefix}email", TEXT, f"{description}: the first e-mail address", of_system("email")),
    ]


def attachment(name: str, where: Spot, description: str) -> list[FlatColumn]:
    return [
        column(f"{name}_content_type", TEXT, where / "contentType", f"{description}: content type"),
        column(f"{name}_url", TEXT, where / "url", f"{description}: URL of the content"),
        column(f"{name}_title", TEXT, where / "title", f"{description}: title"),
        column(f"{name}_size", INTEGER, where / "size", f"{description}: bytes of the content"),
        *date(f"{name}_creation", where / "creation", f"{description}: created"),
    ]


def bounds(name: str, where: Spot, low: str, high: str, description: str) -> list[FlatColumn]:
    """A Range (`low`, `high`) or a Ratio (`numerator`, `denominator`)."""
    return [
        *decimal(f"{name}_{low}", where / low / "value", f"{description}, {low}"),
        column(f"{name}_{low}_unit", TEXT, where / low / "unit", f"{description}, {low}: unit"),
        *decimal(f"{name}_{high}", where / high / "value", f"{description}, {high}"),
        column(f"{name}_{high}_unit", TEXT, where / high / "unit", f"{description}, {high}: unit"),
    ]


# --- by data type --------------------------------------------------------------------------------------


def by_type(  # noqa: PLR0912 - a table of rules
    fhir_type: str, name: str, where: Spot, description: str, *, many: bool = False
) -> list[FlatColumn]:
    """The columns of an element of a data type; none for what stays in the deep table."""
    if fhir_type in DATES:
        return date(name, where, description)
    if fhir_type == "decimal":
        return decimal(name, where, description)
    if fhir_type in definitions.primitive_types():
        return _primitive(fhir_type, name, where, description, many=many)
    if fhir_type in QUANTITIES:
        return quantity(name, where, description)
    match fhir_type:
        case "CodeableConcept":
            return concept(name, where, description, many=many)
        case "Coding":
            return coding(name, where, description, many=many)
        case "Reference":
            return refer(name, where, description, many=many)
        case "Identifier":
            return identifier(name, where, description, many=many)
        case "Period":
            return period(name, where, description)
        case "Money":
            return money(name, where, description)
        case "Range":
            return bounds(name, where, "low", "high", description)
        case "Ratio":
            return bounds(name, where, "numerator", "denominator", description)
        case "HumanName":
            return human_name(name, where, description)
        case "Address":
            return address(name, where, description)
        case "ContactPoint":
            return telecom("" if name == "telecom" else f"{name}_", where, description)
        case "Attachment":
            return attachment(name, where, description)
        case "Annotation":
            texts = Spot((), where.base)
            notes = joined(texts, *where.path, "text", by="\n")
            return [FlatColumn(f"{name}_text", TEXT, f"{description}: all of them, a line each", notes)]
        case "Dosage":
            return [column(f"{name}_text", TEXT, where / "text", f"{description}: text of the first")]
    return []


def _primitive(fhir_type: str, name: str, where: Spot, description: str, *, many: bool) -> list[FlatColumn]:
    kind = BOOLEAN if fhir_type == "boolean" else INTEGER if fhir_type in INTEGERS else TEXT
    if not many:
        return [column(name, kind, where, description)]
    every = ColumnType(kind.scalar, many=True)
    return [
        column(name, kind, where, f"{description}: the first"),
        FlatColumn(f"{name}_all", every, f"{description}: all", lambda place: where.all(place).sql),
    ]


# --- choices -------------------------------------------------------------------------------------------


def choice(name: str, elements: Sequence[Element], parent: Spot, short: str = "") -> list[FlatColumn]:
    """The columns of a choice such as `value[x]`: which type it has, and its value by kind of value.

    One set of columns for all types: `_numeric` holds a Quantity's value as well as an integer, `_start`
    a dateTime as well as the start of a Period.
    """
    short = short or elements[0].short
    offered = {element.type: parent / element.name for element in elements}

    def which(place: Place) -> str:
        cases = [
            f"WHEN {found.sql} IS NOT NULL THEN '{fhir_type}'"
            for fhir_type, where in offered.items()
            if (found := where.value(place)).exists
        ]
        return f"CASE {' '.join(cases)} END" if cases else "NULL"

    found = [FlatColumn(f"{name}_type", TEXT, f"{short}: which type it is given as", which)]
    for make in (_choice_numbers, _choice_texts, _choice_codes, _choice_times, _choice_others):
        found += make(name, offered, short)
    return found


Offered = dict[str, Spot]


def _first_of(spots: Sequence[Spot]) -> Callable[[Place], str]:
    return lambda place: coalesced(*(where.value(place).first().sql for where in spots))


def _choice_numbers(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    quantities = [where for kind, where in offered.items() if kind in QUANTITIES]
    digits = [
        where if kind == "decimal" else where / "value"
        for kind, where in offered.items()
        if kind in QUANTITIES or kind in ("decimal", "Money")
    ]
    integers = [where for kind, where in offered.items() if kind in INTEGERS]
    found = []
    if digits or integers:

        def number(place: Place) -> str:
            return coalesced(
                *(numeric(where)(place) for where in digits),
                *(where.value(place).first().sql for where in integers),
            )

        found.append(FlatColumn(f"{name}_numeric", DOUBLE, f"{short}: the number", number))

        def written(place: Place) -> str:
            whole = [where.value(place).first() for where in integers]
            return coalesced(
                *(where.value(place).first().sql for where in digits),
                *(f"CAST({place.sql} AS VARCHAR)" for place in whole if place.exists),
            )

        found.append(FlatColumn(f"{name}_decimal", TEXT, f"{short}: the digits as written", written))
    for part, member, meaning in (
        ("unit", "unit", "unit as shown"),
        ("unit_code", "code", "unit as a code"),
        ("unit_system", "system", "system of the unit's code"),
        ("comparator", "comparator", "<, <=, >= or >"),
    ):
        if quantities:
            spots = [where / member for where in quantities]
            found.append(FlatColumn(f"{name}_{part}", TEXT, f"{short}: {meaning}", _first_of(spots)))
    if "Money" in offered:
        found.append(column(f"{name}_currency", TEXT, offered["Money"] / "currency", f"{short}: currency"))
    return found


def _choice_texts(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    others = DATES | INTEGERS | {"boolean", "decimal", "time"}
    texts = [
        where
        for kind, where in offered.items()
        if kind in definitions.primitive_types() and kind not in others
    ]
    found = []
    if texts:
        found.append(FlatColumn(f"{name}_string", TEXT, f"{short}: given as text", _first_of(texts)))
    if "boolean" in offered:
        found.append(column(f"{name}_boolean", BOOLEAN, offered["boolean"], f"{short}: given as yes or no"))
    if "time" in offered:
        found.append(column(f"{name}_time", TEXT, offered["time"], f"{short}: given as a time of day"))
    return found


def _choice_codes(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    if "CodeableConcept" in offered:
        return concept(name, offered["CodeableConcept"], short)
    return coding(name, offered["Coding"], short) if "Coding" in offered else []


def _choice_times(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    instants = [where for kind, where in offered.items() if kind in DATES]
    starts, ends, texts = list(instants), list(instants), list(instants)
    if "Period" in offered:
        span = offered["Period"]
        starts, ends, texts = [*starts, span / "start"], [*ends, span / "end"], [*texts, span / "start"]
    if not starts:
        return []

    def of(spots: list[Spot], suffix: str) -> Callable[[Place], str]:
        return lambda place: coalesced(*(_derived(where, suffix)(place) for where in spots))

    written = "as written (of a Period its start)" if "Period" in offered else "as written"
    return [
        FlatColumn(f"{name}_datetime", TEXT, f"{short}: {written}", _first_of(texts)),
        FlatColumn(f"{name}_start", TIMESTAMP, f"{short}: the earliest instant, UTC", of(starts, "start")),
        FlatColumn(f"{name}_end", TIMESTAMP, f"{short}: the latest instant, UTC", of(ends, "end")),
    ]


def _choice_others(name: str, offered: Offered, short: str) -> list[FlatColumn]:
    found: list[FlatColumn] = []
    if "Range" in offered:
        found += bounds(name, offered["Range"], "low", "high", short)
    if "Ratio" in offered:
        found += bounds(name, offered["Ratio"], "numerator", "denominator", short)
    if "Identifier" in offered:
        found += identifier(f"{name}_identifier", offered["Identifier"], short)
    if "Attachment" in offered:
        found += attachment(f"{name}_attachment", offered["Attachment"], short)
    if "Reference" in offered:
        # `_type` says which type of value it is; the type of resource needs another name.
        prefix = f"{name}_reference"
        for each in refer(name, offered["Reference"], short):
            new = f"{prefix}_type" if each.name == f"{name}_type" else each.name
            new = f"{prefix}_display" if each.name == f"{name}_display" else new
            if each.name.startswith(f"{name}_identifier"):
                new = each.name.replace(name, prefix, 1)
            found.append(replace(each, name=new))
    return found


# --- by element ----------------------------------------------------------------------------------------


def element(resource_type: str, path: str, name: str = "") -> list[FlatColumn]:
    """The columns of one element by its path: `code`, `value[x]`, `participant.individual`.

    Inside a repeating backbone element it is the first one's; references and codings list all. `name`
    replaces the name made from the last part of the path.
    """
    structure, many = resource_type, False
    *around, last = path.split(".")
    for step in around:
        inner = next(each for each in definitions.elements(structure) if each.name == step)
        structure, many = inner.type, many or inner.many
    return of_structure(structure, last, Spot(tuple(around)), many=many, name=name)


def of_structure(
    structure: str, member: str, parent: Spot, *, many: bool = False, name: str = ""
) -> list[FlatColumn]:
    """The columns of a member (or a choice, `value[x]`) of a structure that lies at `parent`."""
    found = [each for each in definitions.elements(structure) if member in (each.name, each.choice)]
    name = name or snake_case(member)
    if member.endswith("[x]"):
        return choice(name, found, parent)
    only = found[0]
    return by_type(only.type, name, parent / member, only.short, many=many or only.many)
