"""Practitioner, Organization, Location and Group: what patient data refers to."""

from __future__ import annotations

from decimal import Decimal

from pipeline.sandbox.generator.chart import Chart, npi, organization_count
from pipeline.sandbox.generator.datatypes import SNOMED, TERMINOLOGY, Json, coding, concept
from pipeline.sandbox.generator.draws import Draws, mix
from pipeline.sandbox.generator.envelope import envelope
from pipeline.sandbox.generator.identity import id_at
from pipeline.sandbox.generator.kinds import KINDS
from pipeline.sandbox.generator.people import STREETS, TOWNS, names
from pipeline.sandbox.generator.world import Life, Visit


def practitioner(chart: Chart, _visit: Visit | None, life: Life, draws: Draws) -> Json:
    """A Practitioner."""
    given, family = names(mix(chart.world.seed, 903, -1, life.slot))
    resource = envelope("Practitioner", life, "us-core-practitioner")
    resource["identifier"] = [{"system": "http://hl7.org/fhir/sid/us-npi", "value": npi(life.slot)}]
    resource["active"] = True
    resource["name"] = [{"family": family, "given": [given], "prefix": ["Dr."]}]
    resource["telecom"] = [{"system": "email", "value": f"npi{life.slot}@example.org", "use": "work"}]
    resource["gender"] = draws.pick(("male", "female", "other", "unknown"))
    if draws.one_in(2):
        resource["qualification"] = [
            {
                "code": concept(TERMINOLOGY + "v2-0360", "MD", "Doctor of Medicine"),
                "period": {"start": "1998-06"},
            }
        ]
    return resource


def organization(chart: Chart, _visit: Visit | None, life: Life, draws: Draws) -> Json:
    """An Organization; all but the first belong to another."""
    resource = envelope("Organization", life)
    resource["identifier"] = [
        {"system": "urn:oid:2.16.840.1.113883.4.4", "value": f"{life.slot:02d}-1234567"}
    ]
    resource["active"] = True
    resource["type"] = [concept(TERMINOLOGY + "organization-type", "prov", "Healthcare Provider")]
    resource["name"] = f"{draws.pick(TOWNS)} Health № {life.slot + 1}"
    resource["alias"] = ["Ősi Kórház", "The Clinic"]
    resource["contact"] = [
        {
            "purpose": {"coding": [coding(TERMINOLOGY + "contactentity-type", "BILL")]},
            "telecom": [{"system": "fax", "value": "+1 555-0199"}],
        }
    ]
    if life.slot:
        parent = id_at(chart.world.seed, KINDS["Organization"], -1, draws.below(life.slot))
        resource["partOf"] = {"reference": "Organization/" + parent}
    return resource


def location(chart: Chart, _visit: Visit | None, life: Life, draws: Draws) -> Json:
    """A Location; every second one has no `meta`, as real servers leave it out."""
    resource = envelope("Location", life)
    if life.slot % 2:
        del resource["meta"]
    resource["status"] = "active"
    resource["name"] = f"Ward {life.slot + 1} – Süd"
    resource["mode"] = "instance"
    resource["address"] = {"line": [draws.pick(STREETS)], "city": draws.pick(TOWNS)}
    resource["physicalType"] = concept(TERMINOLOGY + "location-physical-type", "wa", "Ward")
    resource["position"] = {
        "longitude": Decimal(f"-{draws.between(70, 120)}.{draws.below(2**31)}{draws.below(10**6):06d}"),
        "latitude": Decimal(f"{draws.between(25, 48)}.{draws.below(100)}00"),
        "altitude": Decimal("1E+2"),
    }
    resource["managingOrganization"] = {
        "reference": "Organization/"
        + id_at(chart.world.seed, KINDS["Organization"], -1, draws.below(organization_count(chart.world)))
    }
    resource["hoursOfOperation"] = [
        {"daysOfWeek": ["mon", "tue"], "allDay": False, "openingTime": "08:00:00", "closingTime": "17:30:00"}
    ]
    return resource


def specialty(draws: Draws) -> Json:
    """A clinical specialty."""
    return draws.pick(
        (
            concept(SNOMED, "394802001", "General medicine"),
            concept(SNOMED, "394579002", "Cardiology"),
            concept(SNOMED, "408443003", "General medical practice"),
        )
    )
