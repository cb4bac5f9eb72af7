"""Patient resources, with the extensions that US systems and Synthea put on them."""

from __future__ import annotations

from decimal import Decimal

from pipeline.sandbox.generator.chart import Chart
from pipeline.sandbox.generator.datatypes import TERMINOLOGY, Json, coding, iso_date, narrative, partial_date
from pipeline.sandbox.generator.draws import Draws, mix
from pipeline.sandbox.generator.envelope import US_CORE, envelope
from pipeline.sandbox.generator.people import STREETS, TOWNS, names
from pipeline.sandbox.generator.world import Life, Visit

_EXTENSION = "http://hl7.org/fhir/StructureDefinition/"
_RACES = (("2106-3", "White"), ("2054-5", "Black or African American"), ("2028-9", "Asian"))
_DETAILED = (("1586-7", "Shoshone"), ("2036-2", "Filipino"), ("1735-0", "Alaska Native"))
_ETHNICITIES = (("2135-2", "Hispanic or Latino"), ("2186-5", "Not Hispanic or Latino"))
_CDC_RACE = "urn:oid:2.16.840.1.113883.6.238"


def patient(chart: Chart, _visit: Visit | None, life: Life, draws: Draws) -> Json:
    """A Patient."""
    given, family = names(mix(chart.world.seed, 902, chart.number, 0))
    born = 20_000 - draws.between(400, 33_000)
    female = draws.one_in(2)
    resource = envelope("Patient", life, "us-core-patient")
    if draws.one_in(4):
        resource["text"] = narrative("Generated summary &#8212; see the structured data")
    resource["extension"] = _extensions(draws, female=female)
    resource["identifier"] = _identifiers(chart, draws)
    resource["active"] = True
    resource["name"] = [_name(given, family, draws)]
    if draws.one_in(6):
        resource["name"].append(
            {"use": "maiden", "family": "Ünal", "period": {"end": iso_date(born + 9000)[:4]}}
        )
    resource["telecom"] = [
        {"system": "phone", "value": f"+1 555-{draws.below(10000):04d}", "use": "home", "rank": 1},
        {"system": "email", "value": f"p{chart.number}@example.org"},
    ]
    resource["gender"] = "female" if female else "male"
    if draws.one_in(25):
        resource["_gender"] = {"extension": [{"url": _EXTENSION + "originalText", "valueString": "as told"}]}
    resource.update(_birth(born, draws))
    resource["address"] = [_address(draws)]
    if draws.one_in(9):
        resource["deceasedDateTime"] = partial_date(20_000 + draws.below(400), draws)
    elif draws.one_in(4):
        resource["deceasedBoolean"] = False
    resource["maritalStatus"] = {
        "coding": [coding(TERMINOLOGY + "v3-MaritalStatus", draws.pick(("M", "S", "D")))]
    }
    resource["generalPractitioner"] = [chart.practitioner(draws)]
    resource["managingOrganization"] = chart.organization(draws)
    if life.changed >= 2:
        resource["multipleBirthInteger"] = draws.between(1, 3)
        resource["communication"] = [
            {
                "language": {"coding": [coding("urn:ietf:bcp:47", draws.pick(("en", "es", "ja")))]},
                "preferred": True,
            }
        ]
    if life.version > 1:
        resource["telecom"].append(
            {"system": "phone", "value": f"+1 555-01{life.version:02d}", "use": "mobile"}
        )
    return resource


def _extensions(draws: Draws, *, female: bool) -> list[Json]:
    code, race = draws.pick(_RACES)
    parts: list[Json] = [{"url": "ombCategory", "valueCoding": coding(_CDC_RACE, code, race)}]
    if draws.one_in(3):
        parts.append({"url": "detailed", "valueCoding": coding(_CDC_RACE, *draws.pick(_DETAILED))})
    parts.append({"url": "text", "valueString": race})
    code, ethnicity = draws.pick(_ETHNICITIES)
    extensions: list[Json] = [
        {"url": US_CORE + "us-core-race", "extension": parts},
        {
            "url": US_CORE + "us-core-ethnicity",
            "extension": [
                {"url": "ombCategory", "valueCoding": coding(_CDC_RACE, code, ethnicity)},
                {"url": "text", "valueString": ethnicity},
            ],
        },
        {"url": US_CORE + "us-core-birthsex", "valueCode": "F" if female else "M"},
        {
            "url": "http://synthetichealth.github.io/synthea/disability-adjusted-life-years",
            "valueDecimal": Decimal(f"0.00{draws.below(2**31)}{draws.between(1000, 9_999_999)}"),
        },
        {
            "url": "http://synthetichealth.github.io/synthea/quality-adjusted-life-years",
            "valueDecimal": Decimal(f"{draws.between(1, 80)}.{draws.below(10)}0"),
        },
    ]
    if draws.one_in(10):
        extensions.append(
            {
                "url": "https://ehr.sandbox.example/consent",
                "extension": [
                    {
                        "url": "scope",
                        "extension": [
                            {
                                "url": "purpose",
                                "extension": [
                                    {"url": "code", "valueCode": "TREAT"},
                                    {"url": "until", "valueDateTime": "2030-12"},
                                ],
                            }
                        ],
                    },
                    {"url": "granted", "valueBoolean": True},
                ],
            }
        )
    return extensions


def _identifiers(chart: Chart, draws: Draws) -> list[Json]:
    identifiers: list[Json] = [
        {
            "use": "usual",
            "type": {"coding": [coding(TERMINOLOGY + "v2-0203", "MR", "Medical record number")]},
            "system": "https://ehr.sandbox.example/mrn",
            "value": f"MRN{chart.number:09d}",
            "assigner": chart.organization(draws),
        }
    ]
    if draws.one_in(2):
        identifiers.append(
            {
                "system": "http://hl7.org/fhir/sid/us-ssn",
                "_value": {"extension": [{"url": _EXTENSION + "data-absent-reason", "valueCode": "masked"}]},
            }
        )
    return identifiers


def _name(given: str, family: str, draws: Draws) -> Json:
    name: Json = {"use": "official", "family": family, "given": [given]}
    form = draws.below(6)
    if form == 0:
        name["given"] = [given, "Q."]
        name["_given"] = [
            None,
            {"extension": [{"url": _EXTENSION + "iso21090-EN-qualifier", "valueCode": "IN"}]},
        ]
    elif form == 1:
        name["given"] = [given, None]
        name["_given"] = [
            None,
            {"extension": [{"url": _EXTENSION + "data-absent-reason", "valueCode": "asked-declined"}]},
        ]
    elif form == 2:
        name["_family"] = {"extension": [{"url": _EXTENSION + "humanname-own-name", "valueString": family}]}
        name["prefix"] = ["Dr.", "Prof."]
    return name


def _birth(born: int, draws: Draws) -> Json:
    form = draws.below(8)
    if form == 0:
        return {
            "birthDate": iso_date(born),
            "_birthDate": {
                "extension": [
                    {
                        "url": _EXTENSION + "patient-birthTime",
                        "valueDateTime": iso_date(born) + "T14:35:45-05:00",
                    }
                ]
            },
        }
    if form == 1:
        return {
            "_birthDate": {"extension": [{"url": _EXTENSION + "data-absent-reason", "valueCode": "unknown"}]}
        }
    return {"birthDate": partial_date(born, draws)}


def _address(draws: Draws) -> Json:
    address: Json = {
        "use": "home",
        "line": [f"{draws.between(1, 2000)} {draws.pick(STREETS)}"],
        "city": draws.pick(TOWNS),
        "postalCode": f"{draws.below(100_000):05d}",
        "country": "US",
    }
    if draws.one_in(3):
        address["extension"] = [
            {
                "url": _EXTENSION + "geolocation",
                "extension": [
                    {
                        "url": "latitude",
                        "valueDecimal": Decimal(f"{draws.between(25, 48)}.{draws.below(10**9):09d}"),
                    },
                    {
                        "url": "longitude",
                        "valueDecimal": Decimal(f"-{draws.between(70, 120)}.{draws.below(100)}0"),
                    },
                ],
            }
        ]
    if draws.one_in(5):
        address["line"].append("Apt. 4½")
    return address
