"""`patient_flat`: one row a patient, with the columns of US Core that live in extensions."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.tables.flat.codes import concept
from pipeline.tables.flat.column import BOOLEAN, TEXT, TEXTS, FlatColumn
from pipeline.tables.flat.elements import element
from pipeline.tables.flat.generic import framed
from pipeline.tables.flat.place import NOWHERE, Place, coalesced, quoted
from pipeline.tables.flat.spot import Spot, column, spot
from pipeline.tables.flat.values import address, human_name

US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/"
CORE = "http://hl7.org/fhir/StructureDefinition/"


def patient_columns() -> tuple[FlatColumn, ...]:
    return framed(
        "Patient",
        [
            column("active", BOOLEAN, spot("active"), "Whether this record is in use"),
            *_identifiers(),
            *_name(),
            *_demographics(),
            *_us_core(),
            *_contact(),
            *element("Patient", "multipleBirth[x]"),
            *_language(),
            *element("Patient", "generalPractitioner"),
            *element("Patient", "managingOrganization"),
        ],
    )  # fmt: skip


def preferred(list_spot: Spot, *conditions: Callable[[Place], str | None]) -> Callable[[Place], Place]:
    """The first element that fulfils the first condition that any fulfils; else the first of all."""

    def find(place: Place) -> Place:
        everything = list_spot.value(place)
        if not everything.is_list:
            return everything
        hits = [hit.first() for test in conditions if (hit := everything.where(test)).exists]
        first = everything.first()
        return Place(f"({coalesced(*(hit.sql for hit in hits), first.sql)})", first.kind, place.depth)

    return find


def _is(member: str, value: str) -> Callable[[Place], str | None]:
    def test(each: Place) -> str | None:
        found = each.member(member)
        return f"{found.sql} = {quoted(value)}" if found.exists else None

    return test


def _is_true(member: str) -> Callable[[Place], str | None]:
    return lambda each: each.member(member).sql if each.member(member).exists else None


def _not_old(each: Place) -> str | None:
    use = each.member("use")
    return f"coalesce({use.sql}, '') <> 'old'" if use.exists else None


# --- identifiers, name, contact ------------------------------------------------------------------------


def _identifiers() -> list[FlatColumn]:
    def of_type(code: str) -> Callable[[Place], Place]:
        def test(each: Place) -> str | None:
            codes = each.every("type", "coding", "code")
            return f"list_contains({codes.sql}, '{code}')" if codes.exists else None

        return lambda place: place.member("identifier").where(test).first()

    mrn = of_type("MR")
    return [
        column("mrn", TEXT, Spot(("value",), mrn), "Medical record number: the first identifier of type MR"),
        column("mrn_system", TEXT, Spot(("system",), mrn), "System of the medical record number"),
        *element("Patient", "identifier"),
    ]


def _name() -> list[FlatColumn]:
    official = preferred(spot("name"), _is("use", "official"), _is("use", "usual"), _not_old)
    return human_name(
        "name", Spot((), official), "Name (official, else usual, else the first that is not old)"
    )


def _contact() -> list[FlatColumn]:
    home = preferred(spot("address"), _is("use", "home"), _not_old)
    return [
        *element("Patient", "telecom"),
        *address("address", Spot((), home), "Address (home, else the first that is not old)"),
    ]


def _language() -> list[FlatColumn]:
    chosen = preferred(spot("communication"), _is_true("preferred"))
    return concept("language", Spot(("language",), chosen), "Language (the preferred, else the first)")


# --- demographics --------------------------------------------------------------------------------------


def _demographics() -> list[FlatColumn]:
    def deceased(place: Place) -> str:
        said, when = place.member("deceasedBoolean"), place.member("deceasedDateTime")
        dead = f"CASE WHEN {when.sql} IS NOT NULL THEN true END" if when.exists else "NULL"
        return coalesced(said.sql, dead)

    return [
        *element("Patient", "gender"),
        *element("Patient", "birthDate"),
        FlatColumn(
            "deceased", BOOLEAN, "Deceased: as stated, or true where there is a date of death", deceased
        ),
        *element("Patient", "deceased[x]"),
        *element("Patient", "maritalStatus"),
    ]


def extension(url: str) -> Callable[[Place], Place]:
    """The first extension with this URL at a place."""

    def find(place: Place) -> Place:
        return place.member("extension").where(_is("url", url)).first()

    return find


def _values(base: Callable[[Place], Place], url: str, *path: str) -> Callable[[Place], str]:
    """A member of every inner extension with this URL, as a list; NULL for none."""

    def make(place: Place) -> str:
        inner = base(place).member("extension").where(_is("url", url))
        values = inner.every(*path) if inner.exists else NOWHERE
        return f"nullif({values.sql}, [])" if values.exists else "NULL"

    return make


def _first_value(base: Callable[[Place], Place], url: str, *path: str) -> Callable[[Place], str]:
    return lambda place: base(place).member("extension").where(_is("url", url)).at(*path).sql


def _us_core() -> list[FlatColumn]:
    found: list[FlatColumn] = []
    for name in ("race", "ethnicity"):
        base = extension(f"{US_CORE}us-core-{name}")
        for part, what in (("omb_category", "ombCategory"), ("detailed", "detailed")):
            prefix = name if part == "omb_category" else f"{name}_detailed"
            label = f"US Core {name}, {'OMB category' if what == 'ombCategory' else 'detailed'}"
            if part == "omb_category":
                found += [
                    FlatColumn(
                        f"{prefix}_code", TEXT, f"{label}: code of the first",
                        _first_value(base, what, "valueCoding", "code"),
                    ),
                    FlatColumn(
                        f"{prefix}_display", TEXT, f"{label}: display of the first",
                        _first_value(base, what, "valueCoding", "display"),
                    ),
                ]  # fmt: skip
            found += [
                FlatColumn(
                    f"{prefix}_codes", TEXTS, f"{label}: codes", _values(base, what, "valueCoding", "code")
                ),
                FlatColumn(
                    f"{prefix}_displays", TEXTS, f"{label}: all displays",
                    _values(base, what, "valueCoding", "display"),
                ),
            ]  # fmt: skip
        found.append(
            FlatColumn(
                f"{name}_text",
                TEXT,
                f"US Core {name}: as one text",
                _first_value(base, "text", "valueString"),
            )
        )
    return [*found, *_sex(), *_birth()]


def _sex() -> list[FlatColumn]:
    sex = extension(f"{US_CORE}us-core-sex")

    def us_core_sex(place: Place) -> str:
        here = sex(place)
        return coalesced(here.member("valueCode").sql, here.member("valueCoding").member("code").sql)

    def gender_identity(*path: str) -> Callable[[Place], str]:
        def make(place: Place) -> str:
            found = [extension(f"{US_CORE}us-core-genderIdentity")(place).member("valueCodeableConcept")]
            # FHIR's own extension nests the value, that of R4 times did not.
            own = extension(f"{CORE}patient-genderIdentity")(place).member("valueCodeableConcept")
            individual = extension(f"{CORE}individual-genderIdentity")(place)
            nested = individual.member("extension").where(_is("url", "value")).member("valueCodeableConcept")
            return coalesced(*(each.at(*path).sql for each in (*found, own, nested)))

        return make

    birth_sex = Spot(("valueCode",), extension(f"{US_CORE}us-core-birthsex"))
    return [
        column("birth_sex", TEXT, birth_sex, "US Core birth sex: F, M, UNK, ..."),
        FlatColumn("us_core_sex", TEXT, "US Core sex (the newer extension): a SNOMED CT code", us_core_sex),
        FlatColumn(
            "gender_identity_code", TEXT, "Gender identity (US Core or FHIR): code of the first coding",
            gender_identity("coding", "code"),
        ),
        FlatColumn(
            "gender_identity_display", TEXT, "Gender identity: display of the first coding",
            gender_identity("coding", "display"),
        ),
        FlatColumn("gender_identity_text", TEXT, "Gender identity: text", gender_identity("text")),
    ]  # fmt: skip


def _birth() -> list[FlatColumn]:
    place_of_birth = extension(f"{CORE}patient-birthPlace")
    maiden = extension(f"{CORE}patient-mothersMaidenName")
    return [
        *(
            column(
                f"birth_place_{part}",
                TEXT,
                Spot(("valueAddress", part), place_of_birth),
                f"Place of birth: {part}",
            )
            for part in ("city", "state", "country")
        ),
        column("mothers_maiden_name", TEXT, Spot(("valueString",), maiden), "The mother's maiden name"),
    ]
