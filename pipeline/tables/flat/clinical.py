"""Hand-chosen columns of the clinical types: what people ask for first, in the order they ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.tables.flat.column import ELEMENT, INDEX, INTEGER, TEXT, TEXTS, Branch, FlatColumn
from pipeline.tables.flat.elements import by_type, element, of_structure
from pipeline.tables.flat.generic import framed
from pipeline.tables.flat.place import Place
from pipeline.tables.flat.spot import Spot, column, spot
from pipeline.tables.flat.systems import picks

Chosen = Sequence[str | tuple[str, str] | FlatColumn]
"""Paths of elements, paths with a name of their own, and columns made elsewhere."""


def chosen(resource_type: str, *wanted: str | tuple[str, str] | FlatColumn) -> list[FlatColumn]:
    """The columns of elements by their paths, in this order."""
    found: list[FlatColumn] = []
    for each in wanted:
        if isinstance(each, FlatColumn):
            found.append(each)
        elif isinstance(each, str):
            found += element(resource_type, each)
        else:
            found += element(resource_type, *each)
    return found


def clinical_columns(resource_type: str) -> tuple[FlatColumn, ...] | None:
    """The hand-chosen columns of a clinical type (`observation_branches` has Observation); else None."""
    wanted = _CHOSEN.get(resource_type)
    if wanted is None:
        return None
    return framed(resource_type, chosen(resource_type, *wanted()))


# --- Observation ---------------------------------------------------------------------------------------

_VALUES = ("value[x]", "dataAbsentReason", "interpretation")
_RANGE = "referenceRange"


def observation_branches() -> tuple[Branch, ...]:
    """The Observations, and one row more for each of their components."""
    return Branch(_observation(None)), Branch(_observation(ELEMENT), unnested="component")


def _observation(unnested: str | None) -> tuple[FlatColumn, ...]:
    """The same columns for both kinds of rows; code and value come from the component where it is one."""
    own = Spot((unnested,) if unnested else ())
    structure = "Observation.component" if unnested else "Observation"
    code = own / "code"
    columns = [
        FlatColumn(
            "component_index", INTEGER,
            "NULL: the Observation itself; 1, 2, ...: its components, with its subject, times and status",
            lambda place: place.member(INDEX).sql if unnested else "NULL",
        ),
        *chosen("Observation", "status", "category"),
        *of_structure(structure, "code", own),
        *picks(code, "loinc", "snomed"),
        FlatColumn(
            "parent_code", TEXT, "Of a component: the first code of its Observation",
            lambda place: place.at("code", "coding", "code").sql if unnested else "NULL",
        ),
        *chosen("Observation", "subject", "encounter", "effective[x]", "issued"),
        *(each for member in _VALUES for each in of_structure(structure, member, own)),
        *_reference_range(own / _RANGE),
        *chosen(
            "Observation",
            "bodySite", "method", "performer", "device", "specimen",
            "identifier", "basedOn", "partOf", "focus", "hasMember", "derivedFrom", "note",
        ),
    ]  # fmt: skip
    return framed("Observation", columns)


def _reference_range(where: Spot) -> list[FlatColumn]:
    name = "reference_range"
    return [
        *by_type("Range", name, where, "Reference range (the first)"),
        column(f"{name}_text", TEXT, where / "text", "Reference range (the first): text"),
    ]


# --- the others ----------------------------------------------------------------------------------------


def _encounter() -> Chosen:
    return [
        "status", "class", "type", *picks(spot("type"), "snomed", "cpt", many=True),
        "serviceType", "priority", "subject", "period", "length",
        "reasonCode", "reasonReference",
        ("diagnosis.condition", "diagnosis"), ("diagnosis.use", "diagnosis_use"),
        ("participant.individual", "participant"), ("participant.type", "participant_role"),
        ("location.location", "location"), "serviceProvider",
        ("hospitalization.admitSource", "admit_source"),
        ("hospitalization.dischargeDisposition", "discharge_disposition"),
        ("hospitalization.reAdmission", "readmission"),
        "partOf", "episodeOfCare", "basedOn", "appointment", "account", "identifier",
    ]  # fmt: skip


def _condition() -> Chosen:
    return [
        "clinicalStatus", "verificationStatus", "category", "severity",
        "code", *picks(spot("code"), "snomed", "icd10", "icd9"),
        "bodySite", "subject", "encounter",
        "onset[x]", "abatement[x]", "recordedDate", "recorder", "asserter",
        ("stage.summary", "stage"), ("evidence.detail", "evidence"), "identifier", "note",
    ]  # fmt: skip


def _medication_request() -> Chosen:
    dosage, dose = spot("dosageInstruction"), spot("dosageInstruction", "doseAndRate")
    repeat = dosage / "timing" / "repeat"
    return [
        "status", "statusReason", "intent", "category", "priority", "doNotPerform", "reported[x]",
        "medication[x]", *picks(spot("medicationCodeableConcept"), "rxnorm", "ndc", "snomed"),
        "subject", "encounter", "authoredOn", "requester", "performer", "recorder",
        "reasonCode", "reasonReference", "courseOfTherapyType",
        ("dosageInstruction", "dosage"),
        column("dosage_patient_instruction", TEXT, dosage / "patientInstruction", "Told to the patient"),
        *of_structure("Dosage", "asNeeded[x]", dosage, name="dosage_as_needed"),
        *by_type("CodeableConcept", "dosage_route", dosage / "route", "Route"),
        *by_type("CodeableConcept", "dosage_timing", dosage / "timing" / "code", "Timing"),
        *by_type("integer", "dosage_frequency", repeat / "frequency", "Times a period"),
        *by_type("decimal", "dosage_period", repeat / "period", "Length of the period"),
        *by_type("code", "dosage_period_unit", repeat / "periodUnit", "Unit of the period"),
        *by_type("Quantity", "dose", dose / "doseQuantity", "Dose"),
        *by_type("Range", "dose_range", dose / "doseRange", "Dose as a range"),
        ("dispenseRequest.validityPeriod", "dispense_validity"),
        ("dispenseRequest.numberOfRepeatsAllowed", "dispense_repeats_allowed"),
        ("dispenseRequest.quantity", "dispense_quantity"),
        ("dispenseRequest.expectedSupplyDuration", "dispense_supply_duration"),
        "priorPrescription", "basedOn", "groupIdentifier", "identifier", "note",
    ]  # fmt: skip


def _procedure() -> Chosen:
    return [
        "status", "statusReason", "category",
        "code", *picks(spot("code"), "snomed", "cpt", "hcpcs", "icd10pcs", "loinc"),
        "subject", "encounter", "performed[x]",
        ("performer.actor", "performer"), ("performer.function", "performer_function"),
        "recorder", "asserter", "location", "reasonCode", "reasonReference", "bodySite", "outcome",
        "report", "complication", "usedReference", "basedOn", "partOf", "identifier", "note",
    ]  # fmt: skip


def _immunization() -> Chosen:
    return [
        "status", "statusReason", "vaccineCode", *picks(spot("vaccineCode"), "cvx", "ndc"),
        "patient", "encounter", "occurrence[x]", "recorded", "primarySource", "reportOrigin",
        "location", "manufacturer", "lotNumber", "expirationDate", "site", "route", "doseQuantity",
        ("performer.actor", "performer"), "reasonCode", "reasonReference", "isSubpotent", "fundingSource",
        ("protocolApplied.series", "series"), ("protocolApplied.targetDisease", "target_disease"),
        *of_structure(
            "Immunization.protocolApplied", "doseNumber[x]", spot("protocolApplied"), name="dose_number"
        ),
        *of_structure(
            "Immunization.protocolApplied", "seriesDoses[x]", spot("protocolApplied"), name="series_doses"
        ),
        "identifier", "note",
    ]  # fmt: skip


def _allergy() -> Chosen:
    def substances(place: Place) -> str:
        return spot("reaction", "manifestation", "text").all(place).sql

    return [
        "clinicalStatus", "verificationStatus", "type", "category", "criticality",
        "code", *picks(spot("code"), "snomed", "rxnorm"),
        "patient", "encounter", "onset[x]", "recordedDate", "recorder", "asserter", "lastOccurrence",
        ("reaction.substance", "reaction_substance"),
        ("reaction.manifestation", "reaction_manifestation"),
        FlatColumn("reaction_manifestation_texts", TEXTS, "Manifestations of all reactions", substances),
        ("reaction.severity", "reaction_severity"),
        ("reaction.onset", "reaction_onset"),
        "identifier", "note",
    ]  # fmt: skip


def _diagnostic_report() -> Chosen:
    return [
        "status", "category", "code", *picks(spot("code"), "loinc", "snomed"),
        "subject", "encounter", "effective[x]", "issued", "performer", "resultsInterpreter",
        "result", "specimen", "imagingStudy", "conclusion", "conclusionCode",
        ("presentedForm", "form"), "basedOn", "identifier",
    ]  # fmt: skip


def _document_reference() -> Chosen:
    return [
        "status", "docStatus", "type", *picks(spot("type"), "loinc"), "category",
        "subject", "date", "author", "authenticator", "custodian", "description", "securityLabel",
        ("content.attachment", "attachment"), ("content.format", "format"),
        ("context.encounter", "encounter"), ("context.event", "event"), ("context.period", "context_period"),
        ("context.facilityType", "facility_type"), ("context.practiceSetting", "practice_setting"),
        ("context.related", "related"),
        "masterIdentifier", "identifier",
    ]  # fmt: skip


_CHOSEN = {
    "Encounter": _encounter,
    "Condition": _condition,
    "MedicationRequest": _medication_request,
    "Procedure": _procedure,
    "Immunization": _immunization,
    "AllergyIntolerance": _allergy,
    "DiagnosticReport": _diagnostic_report,
    "DocumentReference": _document_reference,
}
