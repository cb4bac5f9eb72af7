"""Every form of a reference gives the same type, id and identifier as an independent parser (rule 11)."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tables import definitions
from pipeline.tables.flat import reference


class Read(NamedTuple):
    type: str | None = None
    id: str | None = None
    system: str | None = None
    value: str | None = None


U = "6c5d9ca9-54d7-42f5-bfae-a7c19cd217f2"
LONG = "x" * 88

CASES: dict[str | None, Read] = {
    None: Read(),
    "": Read(),
    "Patient/1": Read("Patient", "1"),
    f"Patient/{U}": Read("Patient", U),
    f"Observation/{LONG}": Read("Observation", LONG),
    "Patient/a_b~ü": Read("Patient", "a_b~ü"),
    "/Patient/1": Read("Patient", "1"),
    "Patient/1/": Read("Patient", "1"),
    "Patient/1#name": Read("Patient", "1"),
    "Patient/1/_history/2": Read("Patient", "1"),
    "Patient/1/_history": Read("Patient", "1"),
    "https://x.org/fhir/Patient/1": Read("Patient", "1"),
    "http://x.org:8080/a/b/fhir/r4/Practitioner/1.2-3": Read("Practitioner", "1.2-3"),
    "https://x.org/fhir/Patient/1/_history/2": Read("Patient", "1"),
    "https://x.org/fhir/Patient/Observation/7": Read("Observation", "7"),
    # The id of this Observation is `Patient`.
    "Observation/Patient/_history": Read("Observation", "Patient"),
    f"urn:uuid:{U}": Read(None, U),
    f"URN:UUID:{U}": Read(None, U),
    "urn:oid:1.2.840.113619": Read(None, "1.2.840.113619"),
    "urn:ietf:rfc:3986": Read(),
    "urn:isbn:Patient/1": Read(),
    "urn:uuid:": Read(),
    "#p1": Read(),
    "#": Read(),
    "#Patient/1": Read(),
    "Practitioner?identifier=http://hl7.org/fhir/sid/us-npi|9999974592": Read(
        "Practitioner", None, "http://hl7.org/fhir/sid/us-npi", "9999974592"
    ),
    "https://x.org/fhir/Organization?identifier=https%3A%2F%2Fg.io%7C8a%2B1": Read(
        "Organization", None, "https://g.io", "8a+1"
    ),
    "Location?_type=x&identifier=s|v&active=true#f": Read("Location", None, "s", "v"),
    "Location?identifier=s|v&identifier=t|w": Read("Location", None, "s", "v"),
    "Patient?identifier=only-value": Read("Patient", None, None, "only-value"),
    "Patient?identifier=|v": Read("Patient", None, None, "v"),
    "Patient?identifier=s|": Read("Patient", None, "s", None),
    "Patient?identifier=s|a|b": Read("Patient", None, "s", "a|b"),
    "Patient?identifier=%FF|v": Read("Patient", None, "%FF", "v"),
    "Patient?name=x": Read("Patient"),
    "Patient?myidentifier=s|v": Read("Patient"),
    "1234": Read(None, "1234"),
    "two words": Read(),
    "http://example.org/StructureDefinition/x": Read("StructureDefinition", "x"),
    "http://example.org/things/1": Read(),
    "Thing/1": Read(),
    "patient/1": Read(),
    "Patient/": Read(),
    "Patient//1": Read(),
    "Patient/_history/1": Read(),
}


def oracle(text: str | None) -> Read:
    """No regular expression and no SQL: the rules of `reference`'s table, read from the front."""
    if not text or text.startswith("#"):
        return Read()
    if text.lower().startswith("urn:"):
        for prefix in ("urn:uuid:", "urn:oid:"):
            if text.lower().startswith(prefix):
                return Read(None, text[len(prefix) :] or None)
        return Read()
    known = set(definitions.resource_types())
    before, hashed, _ = text.partition("#")
    if "?" in before:
        head, _, query = before.partition("?")
        name = head.split("/")[-1]
        kind = name if name in known else None
        for pair in query.split("&"):
            if pair.startswith("identifier="):
                return Read(kind, None, *identifier(pair[len("identifier=") :]))
        return Read(kind)
    if not hashed and not any(mark in text for mark in "/: "):
        return Read(None, text)
    parts = before.rstrip("/").split("/")
    if parts[-1] == "_history":
        parts = parts[:-1]
    elif parts[-2:-1] == ["_history"]:
        parts = parts[:-2]
    if len(parts) < 2 or parts[-2] not in known or not parts[-1] or parts[-1].startswith("_"):
        return Read()
    return Read(parts[-2], parts[-1])


def identifier(raw: str) -> tuple[str | None, str | None]:
    try:
        pair = unquote(raw, errors="strict")
    except UnicodeDecodeError:
        pair = raw
    if "|" not in pair:
        return None, pair or None
    system, _, value = pair.partition("|")
    return system or None, value or None


@pytest.fixture(scope="module")
def connection() -> duckdb.DuckDBPyConnection:
    made = duckdb.connect()
    for statement in reference.macros():
        made.execute(statement)
    return made


def read(connection: duckdb.DuckDBPyConnection, texts: list[str | None]) -> list[Read]:
    rows = connection.execute(
        """SELECT fhir_reference_type(f), fhir_reference_id(f), fhir_reference_system(f),
                  fhir_reference_value(f)
           FROM (SELECT i, fhir_reference(r) AS f
                 FROM (SELECT unnest(?::VARCHAR[]) AS r, unnest(range(?)) AS i)) ORDER BY i""",
        [texts, len(texts)],
    ).fetchall()
    return [Read(*row) for row in rows]


def test_each_form_gives_what_the_table_says(connection: duckdb.DuckDBPyConnection) -> None:
    """tables fact 11: relative, absolute, history, urn:uuid, contained, conditional."""
    found = read(connection, list(CASES))
    assert dict(zip(CASES, found, strict=True)) == CASES


def test_the_oracle_says_what_the_table_says() -> None:
    assert {text: oracle(text) for text in CASES} == CASES


def test_every_resource_type_is_known(connection: duckdb.DuckDBPyConnection) -> None:
    types = definitions.resource_types()
    found = read(connection, [f"https://x/{name}/1/_history/2" for name in types])
    assert found == [Read(name, "1") for name in types]


PIECES = st.sampled_from(
    [
        *("Patient", "Observation", "Thing", "patient", "1", "a.b-C", "_history", "_x", "é", "x y"),
        *("/", "/", "/", "//", "?", "#", "&", "identifier=", "|", "%7C", "%FF", "%2", "+", ":", "\n"),
        *("urn:uuid:", "URN:OID:", "urn:", "https://x.org/fhir/", "Practitioner?identifier=s|v"),
    ]
)
TEXTS = st.one_of(st.none(), st.lists(PIECES, max_size=8).map("".join), st.text(max_size=12))


@given(st.lists(TEXTS, min_size=1, max_size=40))
def test_any_text_is_read_as_an_independent_parser_reads_it(
    connection: duckdb.DuckDBPyConnection, texts: list[str | None]
) -> None:
    clean = [None if text is None else text.replace("\0", "") for text in texts]
    assert read(connection, clean) == [oracle(text) for text in clean]
