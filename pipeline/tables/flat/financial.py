"""Hand-chosen columns of Claim, ExplanationOfBenefit and Coverage; the items are tables of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pipeline.tables.flat.clinical import chosen
from pipeline.tables.flat.column import (
    DOUBLE,
    ELEMENT,
    INDEX,
    INTEGER,
    INTEGERS,
    TEXT,
    TEXTS,
    Branch,
    ColumnType,
    FlatColumn,
    structs,
)
from pipeline.tables.flat.elements import by_type, of_structure
from pipeline.tables.flat.generic import RENAMED, framed, lineage, patient_columns
from pipeline.tables.flat.links import bare_id, bare_ids, refer
from pipeline.tables.flat.place import Place, quoted
from pipeline.tables.flat.spot import Spot, column, listed, numeric, spot
from pipeline.tables.flat.systems import picks

_BLUE_BUTTON = "https://bluebutton.cms.gov/resources/variables/"

AMOUNTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "submitted": ("Submitted", ("submitted", f"{_BLUE_BUTTON}line_sbmtd_chrg_amt")),
    "allowed": ("Allowed, eligible", ("eligible", "allowed", f"{_BLUE_BUTTON}line_alowd_chrg_amt")),
    "deductible": ("Deductible", ("deductible", f"{_BLUE_BUTTON}line_bene_ptb_ddctbl_amt")),
    "coinsurance": ("Coinsurance", ("coinsurance", f"{_BLUE_BUTTON}line_coinsrnc_amt")),
    "copay": ("Copay", ("copay",)),
    "noncovered": ("Not covered", ("noncovered",)),
    "benefit": ("Benefit, paid by the insurer", ("benefit", f"{_BLUE_BUTTON}line_nch_pmt_amt")),
    "paid_to_provider": ("Paid to the provider", ("paidtoprovider", f"{_BLUE_BUTTON}line_prvdr_pmt_amt")),
    "paid_to_patient": ("Paid to the patient", ("paidtopatient", f"{_BLUE_BUTTON}line_bene_pmt_amt")),
    "paid_by_patient": ("Paid by the patient", ("paidbypatient",)),
    "member_liability": ("Owed by the patient", ("memberliability",)),
    "discount": ("Discount", ("discount",)),
    "tax": ("Tax", ("tax",)),
}
"""Common amounts: column prefix, label, and the category codes (HL7, CARIN Blue Button, CMS Blue Button)."""

ADJUDICATIONS = structs(
    category=TEXT,
    category_codes=TEXTS,
    category_text=TEXT,
    reason=TEXT,
    amount=TEXT,
    amount_numeric=DOUBLE,
    currency=TEXT,
    value=TEXT,
    value_numeric=DOUBLE,
)
TOTALS = structs(
    category=TEXT, category_codes=TEXTS, category_text=TEXT, amount=TEXT, amount_numeric=DOUBLE, currency=TEXT
)
_AMOUNTS = "__flat_amounts"


# --- parents -------------------------------------------------------------------------------------------


def claim_columns() -> tuple[FlatColumn, ...]:
    return framed(
        "Claim",
        [
            *chosen(
                "Claim",
                "status", "use", "type", "subType", "patient", "billablePeriod", "created",
                "provider", "insurer", "enterer", "facility", "priority", "referral", "prescription",
                ("insurance.coverage", "coverage"),
            ),
            *_diagnoses("Claim"),
            *_care_team(),
            *_encounters(),
            *chosen("Claim", "total", "related.claim", "identifier"),
        ],
    )  # fmt: skip


def explanation_branches() -> tuple[Branch, ...]:
    totals = _amounts(spot("total"), TOTALS)
    columns = [
        *chosen(
            "ExplanationOfBenefit",
            "status", "use", "type", "subType", "outcome", "disposition", "patient", "billablePeriod",
            "created", "claim", "claimResponse", "provider", "insurer", "enterer", "facility", "referral",
            "prescription", ("insurance.coverage", "coverage"), ("payee.type", "payee_type"),
        ),
        *_diagnoses("ExplanationOfBenefit"),
        *_care_team(),
        *_encounters(),
        FlatColumn(
            "totals", TOTALS, "Totals by category", lambda place: place.member(_AMOUNTS).sql, (totals,)
        ),
        *_common_amounts("total_", "Total", totals),
        *by_type("Money", "payment_amount", spot("payment", "amount"), "Payment"),
        *by_type("date", "payment_date", spot("payment", "date"), "Payment made or expected"),
        *by_type("CodeableConcept", "payment_type", spot("payment", "type"), "Payment, partial or complete"),
        *chosen("ExplanationOfBenefit", "benefitPeriod", "identifier"),
    ]  # fmt: skip
    return (Branch(framed("ExplanationOfBenefit", columns)),)


def coverage_columns() -> tuple[FlatColumn, ...]:
    def class_value(code: str) -> Callable[[Place], Place]:
        def test(each: Place) -> str | None:
            codes = each.every("type", "coding", "code")
            return f"list_contains({codes.sql}, {quoted(code)})" if codes.exists else None

        return lambda place: place.member("class").where(test).first()

    by_class = [
        column(f"{code}_{part}", TEXT, Spot((part,), class_value(code)), f"Class {code}: {part}")
        for code in ("group", "plan")
        for part in ("value", "name")
    ]
    return framed(
        "Coverage",
        [
            *chosen(
                "Coverage",
                "status", "type", "beneficiary", "subscriber",
                ("subscriberId", RENAMED["Coverage", "subscriberId"]), "policyHolder",
                "relationship", "dependent", "period", "payor",
            ),
            *by_class,
            *chosen("Coverage", "order", "network", "subrogation", "contract", "identifier"),
        ],
    )  # fmt: skip


def _diagnoses(resource_type: str) -> list[FlatColumn]:
    where = spot("diagnosis")
    return [
        *of_structure(f"{resource_type}.diagnosis", "diagnosis[x]", where),
        *picks(where / "diagnosisCodeableConcept", "icd10", "snomed"),
        FlatColumn(
            "diagnosis_codes", TEXTS, "Diagnoses: all codes, in order",
            lambda place: (where / "diagnosisCodeableConcept" / "coding" / "code").all(place).sql,
        ),
        bare_ids("diagnosis_ids", where / "diagnosisReference", "Diagnoses: bare ids of all, in order"),
        FlatColumn(
            "procedure_codes", TEXTS, "Procedures: all codes, in order",
            lambda place: spot("procedure", "procedureCodeableConcept", "coding", "code").all(place).sql,
        ),
        bare_ids(
            "procedure_ids", spot("procedure", "procedureReference"),
            "Procedures: bare ids of all, in order",
        ),
    ]  # fmt: skip


def _care_team() -> list[FlatColumn]:
    return [
        *refer("care_team", spot("careTeam", "provider"), "Care team", many=True),
        *by_type("CodeableConcept", "care_team_role", spot("careTeam", "role"), "Role of the first"),
    ]


def _encounters() -> list[FlatColumn]:
    where = spot("item", "encounter")
    return [
        bare_id("encounter_id", where, "Bare id of the first item's first encounter"),
        bare_ids("encounter_ids", where, "Bare ids of the encounters of all items, in order"),
    ]


# --- amounts by category -------------------------------------------------------------------------------


def _amounts(where: Spot, kind: ColumnType) -> FlatColumn:
    """A list of totals or adjudications as structs that can be read without knowing FHIR's nesting."""

    def one(each: Place) -> dict[str, str]:
        here = Spot((), lambda _: each)
        return {
            "category": each.at("category", "coding", "code").sql,
            "category_codes": each.every("category", "coding", "code").sql,
            "category_text": each.at("category", "text").sql,
            "reason": each.at("reason", "coding", "code").sql,
            "amount": each.at("amount", "value").sql,
            "amount_numeric": numeric(here / "amount" / "value")(each),
            "currency": each.at("amount", "currency").sql,
            "value": each.member("value").sql,
            "value_numeric": numeric(here / "value")(each),
        }

    return FlatColumn(_AMOUNTS, kind, "", listed(where, kind, one))


def _common_amounts(prefix: str, label: str, amounts: FlatColumn) -> list[FlatColumn]:
    """The first amount of each common category, from the list that was prepared."""
    found: list[FlatColumn] = []
    for name, (what, codes) in AMOUNTS.items():
        hit = partial(_with_category, codes)
        meaning = f"{label}, {what}"
        digits = column(f"{prefix}{name}", TEXT, Spot(("amount",), hit), f"{meaning}: the digits as written")
        number = column(
            f"{prefix}{name}_numeric", DOUBLE, Spot(("amount_numeric",), hit), f"{meaning}: as a number"
        )
        found += [replace(each, needs=(amounts,)) for each in (digits, number)]
    return found


def _with_category(codes: tuple[str, ...], place: Place) -> Place:
    listed = ", ".join(map(quoted, codes))

    def has_one(each: Place) -> str:
        return f"list_has_any({each.member('category_codes').sql}, [{listed}])"

    return place.member(_AMOUNTS).where(has_one)


# --- items ---------------------------------------------------------------------------------------------


def item_branches(resource_type: str) -> tuple[Branch, ...]:
    """One row for each item of a Claim or ExplanationOfBenefit; details below it stay in the deep table."""
    own = spot(ELEMENT)
    structure = f"{resource_type}.item"
    parent = f"{resource_type.lower()}_id"

    def part(member: str, name: str = "") -> list[FlatColumn]:
        return of_structure(structure, member, own, name=name)

    def numbers(name: str, member: str, what: str) -> FlatColumn:
        return FlatColumn(name, INTEGERS, what, lambda place: (own / member).all(place).sql)

    columns = [
        column(parent, TEXT, spot("id"), f"Logical id of the {resource_type}: joins with the flat table"),
        FlatColumn(
            "item_index", INTEGER, "Position among the items, from 1", lambda place: place.member(INDEX).sql
        ),
        *part("sequence"),
        *patient_columns(resource_type),
        *part("revenue"),
        *part("category"),
        *part("productOrService"),
        *picks(own / "productOrService", "cpt", "hcpcs", "snomed", "ndc"),
        *part("modifier"),
        *part("serviced[x]"),
        *part("location[x]"),
        *part("quantity"),
        *part("unitPrice"),
        *part("factor"),
        *part("net"),
        *part("bodySite"),
        *part("encounter"),
        numbers("diagnosis_sequence", "diagnosisSequence", "Diagnoses that apply, by their sequence"),
        numbers("procedure_sequence", "procedureSequence", "Procedures that apply, by their sequence"),
        numbers("information_sequence", "informationSequence", "Supporting information, by its sequence"),
        numbers("care_team_sequence", "careTeamSequence", "Members of the care team, by their sequence"),
    ]  # fmt: skip
    if resource_type == "ExplanationOfBenefit":
        amounts = _amounts(own / "adjudication", ADJUDICATIONS)
        columns += [
            bare_id("claim_id", spot("claim"), "Bare id of the Claim"),
            FlatColumn(
                "adjudications", ADJUDICATIONS, "Adjudications of the item by category",
                lambda place: place.member(_AMOUNTS).sql, (amounts,),
            ),
            *_common_amounts("", "Adjudication", amounts),
        ]  # fmt: skip
    return (Branch((*columns, *lineage()), unnested="item"),)
