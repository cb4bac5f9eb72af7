"""References: the type and the bare, joinable id in every form that a reference is written in.

| written | type | id |
| --- | --- | --- |
| `Patient/1`, `https://x/fhir/Patient/1`, `.../Patient/1/_history/2` | `Patient` | `1` |
| `urn:uuid:U`, `urn:oid:O` | that of `Reference.type` | `U`, `O` |
| `#p1` (contained) | that of `Reference.type` | NULL |
| `Practitioner?identifier=system\\|value` (conditional) | `Practitioner` | NULL |
| `1` (a bare id: not FHIR, but written) | that of `Reference.type` | `1` |
| any other URL or text | that of `Reference.type` | NULL |

A conditional reference gives its identifier instead; so does `Reference.identifier`. The SQL is a set of
DuckDB macros, made once for each connection.
"""

from __future__ import annotations

from pipeline.tables import definitions
from pipeline.tables.flat.column import TEXT, struct
from pipeline.tables.flat.place import NOWHERE, Place, quoted

TYPE = "fhir_resource_type"
FOUND = struct(urn=TEXT, type=TEXT, id=TEXT, conditional=TEXT, identifier=TEXT, bare=TEXT)
"""What the text of a reference says, by the form it has; the parts of other forms are empty."""

_PLAIN = "[A-Z][A-Za-z]+/[A-Za-z0-9.-]+"
_PATH = "()(?:^|/)([A-Z][A-Za-z]+)/([^/_][^/]*)()()()(?:/_history(?:/[^/]*)?)?/*$"
"""[base/]Type/id[/_history[/version]], with an empty group for each part that it does not have."""


def _form(**parts: str) -> str:
    """The struct of one form: SQL of its parts, the others empty."""
    return "{" + ", ".join(f"'{name}': {parts.get(name, quoted(''))}" for name, _ in FOUND.members) + "}"


def macros() -> tuple[str, ...]:
    """The statements that a connection needs before references can be read.

    `fhir_reference(r)` takes a reference apart (`FOUND`). Of that, `fhir_reference_id(f)` and
    `fhir_reference_type(f)` are the bare id and the type, `fhir_reference_system(f)` and
    `fhir_reference_value(f)` the identifier of a conditional reference; all NULL where there is none.
    """
    types = ", ".join(map(quoted, definitions.resource_types()))
    names = ", ".join(quoted(name) for name, _ in FOUND.members)
    before = "split_part(r, '#', 1)"
    urn = "CASE lower(split_part(r, ':', 2)) WHEN 'uuid' THEN r[10:] WHEN 'oid' THEN r[9:] ELSE '' END"
    conditional = "split_part(split_part(r, '?', 1), '/', -1)"
    # `&identifier=` right behind the question mark too, so that one search finds both.
    query = f"'&' || {before}[strpos(r, '?') + 1:]"
    identifier = f"split_part(split_part({query}, '&identifier=', 2), '&', 1)"
    of = {name: f"struct_extract(f, '{name}')" for name, _ in FOUND.members}
    pair = f"fhir_reference_pair({of['identifier']})"
    macros = {
        # The most frequent first: one expression for all forms takes ten times as long.
        "fhir_reference(r)": f"""CASE
            WHEN r IS NULL THEN NULL
            WHEN regexp_full_match(r, {quoted(_PLAIN)})
                THEN {_form(type="split_part(r, '/', 1)", id="split_part(r, '/', 2)")}
            WHEN r = '' OR r[1] = '#' THEN {_form()}
            WHEN lower(r[1:4]) = 'urn:' THEN {_form(urn=urn)}
            WHEN contains({before}, '?') THEN {_form(conditional=conditional, identifier=identifier)}
            WHEN NOT (contains(r, '/') OR contains(r, ':') OR contains(r, ' ') OR contains(r, '#'))
                THEN {_form(bare="r")}
            ELSE regexp_extract({before}, {quoted(_PATH)}, [{names}]) END""",
        # An enumeration looks names up quickest; a name that it has not takes long (an error is worded).
        "fhir_reference_known(t)": f"CASE WHEN t <> '' THEN TRY_CAST(t AS {TYPE}) END",
        "fhir_reference_type(f)": f"""CAST(
            fhir_reference_known({of["type"]} || {of["conditional"]}) AS VARCHAR)""",
        "fhir_reference_id(f)": f"""nullif({of["urn"]} || {of["bare"]}
            || CASE WHEN fhir_reference_known({of["type"]}) IS NULL THEN '' ELSE {of["id"]} END, '')""",
        # url_decode fails on bytes that are no UTF-8; then the text stays as it was written.
        "fhir_reference_pair(i)": """CASE WHEN contains(i, '%')
            THEN coalesce(TRY(url_decode(i)), i) ELSE i END""",
        "fhir_reference_system(f)": f"""CASE WHEN {of["identifier"]} <> '' THEN
            CASE WHEN contains({pair}, '|') THEN nullif(split_part({pair}, '|', 1), '') END END""",
        "fhir_reference_value(f)": f"""CASE WHEN {of["identifier"]} <> '' THEN
            nullif({pair}[strpos({pair}, '|') + 1:], '') END""",
    }
    return (
        f"CREATE TYPE {TYPE} AS ENUM ({types})",
        *(f"CREATE OR REPLACE TEMP MACRO {name} AS {body}" for name, body in macros.items()),
    )


def found_sql(reference: Place) -> str:
    """A Reference at a place taken apart (`FOUND`)."""
    text = reference.member("reference")
    return f"fhir_reference({text.sql})" if text.exists else "NULL"


def type_sql(found: str, reference: Place) -> str:
    """The resource type that a Reference points to: as its text says, else as `Reference.type` says."""
    stated = reference.member("type")
    if not stated.exists:
        return f"fhir_reference_type({found})"
    # A uri that is relative to http://hl7.org/fhir/StructureDefinition/, or whole.
    return f"coalesce(fhir_reference_type({found}), nullif(split_part({stated.sql}, '/', -1), ''))"


def identifier_sql(found: str, reference: Place, part: str) -> str:
    """`system` or `value` of the logical identifier: of `Reference.identifier`, else of a conditional one."""
    identifier = reference.member("identifier")
    conditional = f"fhir_reference_{part}({found})"
    system, value = identifier.member("system"), identifier.member("value")
    if system == NOWHERE and value == NOWHERE:
        return conditional
    stated = identifier.member(part).sql
    given = " OR ".join(f"{place.sql} IS NOT NULL" for place in (system, value) if place.exists)
    return f"CASE WHEN {given} THEN {stated} ELSE {conditional} END"
