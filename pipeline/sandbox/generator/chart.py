"""One patient's chart: the ids and references that the resources of this patient share."""

from __future__ import annotations

from pipeline.sandbox.generator.datatypes import BASE, Json
from pipeline.sandbox.generator.draws import Draws, mix
from pipeline.sandbox.generator.identity import id_at
from pipeline.sandbox.generator.kinds import KINDS
from pipeline.sandbox.generator.people import full_name
from pipeline.sandbox.generator.world import Visit, World, visits


def practitioner_count(world: World) -> int:
    """Practitioners on this night: a few for each hundred patients, and one more each night."""
    return 3 + world.patients // 50 + (world.night - 1)


def organization_count(world: World) -> int:
    """Organizations, the same on every night."""
    return 2 + world.patients // 200


def location_count(world: World) -> int:
    """Locations, the same on every night."""
    return 2 + world.patients // 100


class Chart:
    """What the builders need to know about one patient, worked out once."""

    __slots__ = ("_encounters", "_name", "_patient_id", "number", "visits", "world")

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.visits: list[Visit] = list(visits(world, number))
        self._patient_id = self._name = ""
        self._encounters: dict[int, str] = {}

    @property
    def patient_id(self) -> str:
        """The id of the Patient; worked out when first needed, since counting needs none."""
        if not self._patient_id:
            self._patient_id = id_at(self.world.seed, KINDS["Patient"], self.number, 0)
        return self._patient_id

    @property
    def name(self) -> str:
        """The full name of the Patient."""
        if not self._name:
            self._name = full_name(mix(self.world.seed, 902, self.number, 0))
        return self._name

    def id_of(self, resource_type: str, slot: int) -> str:
        """The id of another resource of this patient."""
        return id_at(self.world.seed, KINDS[resource_type], self.number, slot)

    def subject(self, draws: Draws) -> Json:
        """A reference to the patient: relative, absolute, with a version, with identifier or display."""
        form = draws.below(16)
        if form < 10:
            return {"reference": "Patient/" + self.patient_id}
        if form == 10:
            return {"reference": f"{BASE}/Patient/{self.patient_id}"}
        if form == 11:
            return {"reference": f"{BASE}/Patient/{self.patient_id}/_history/1"}
        if form == 12:
            return {"reference": f"Patient/{self.patient_id}/_history/1", "type": "Patient"}
        if form == 13:
            return {
                "reference": "Patient/" + self.patient_id,
                "identifier": {"system": "urn:oid:2.16.840.1.113883.4.1", "value": f"999-{self.number:08d}"},
                "display": self.name,
            }
        return {"reference": "Patient/" + self.patient_id, "display": self.name}

    def encounter(self, visit: Visit, draws: Draws) -> Json:
        """A reference to the encounter of that visit; `urn:uuid:` where its id is a UUID, now and then."""
        encounter_id = self._encounters.get(visit.number)
        if encounter_id is None:
            encounter_id = self._encounters[visit.number] = self.id_of("Encounter", visit.number)
        if len(encounter_id) == 36 and draws.one_in(24):
            return {"reference": "urn:uuid:" + encounter_id}
        return {"reference": "Encounter/" + encounter_id}

    def practitioner(self, draws: Draws) -> Json:
        """A reference to some practitioner: literal, conditional, or a logical identifier only."""
        world = self.world
        slot = draws.below(3 + world.patients // 50)
        form = draws.below(8)
        if form == 0:
            return {"reference": f"Practitioner?identifier=http://hl7.org/fhir/sid/us-npi|{npi(slot)}"}
        if form == 1:
            return {"identifier": {"system": "http://hl7.org/fhir/sid/us-npi", "value": npi(slot)}}
        reference = {"reference": "Practitioner/" + id_at(world.seed, KINDS["Practitioner"], -1, slot)}
        if form < 5:
            reference["display"] = "Dr. " + full_name(mix(world.seed, 903, -1, slot))
        return reference

    def organization(self, draws: Draws) -> Json:
        """A reference to some organization."""
        slot = draws.below(organization_count(self.world))
        return {"reference": "Organization/" + id_at(self.world.seed, KINDS["Organization"], -1, slot)}

    def location(self, draws: Draws) -> Json:
        """A reference to some location."""
        slot = draws.below(location_count(self.world))
        return {"reference": "Location/" + id_at(self.world.seed, KINDS["Location"], -1, slot)}


def npi(slot: int) -> str:
    """The provider number of the practitioner at that place."""
    return f"9{slot:09d}"
