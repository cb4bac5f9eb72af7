"""The columns of the flat tables: fixed by the definitions and our rules, named once, described, typed."""

from __future__ import annotations

import re
import subprocess
import sys

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError
from pipeline.tables import definitions
from pipeline.tables.flat import FLAT_SUFFIX, FlatTable, flat_tables
from pipeline.tables.flat.column import snake_case
from pipeline.tables.schema import LINEAGE_COLUMNS, plain

TABLES = [table for name in definitions.RESOURCE_TYPES for table in flat_tables(name)]
UTC_TIME = pa.timestamp("us", "UTC")


def test_every_type_has_one_flat_table_and_claims_have_their_items_too() -> None:
    names = [table.name for table in TABLES]
    items = ["claim_item_flat", "explanationofbenefit_item_flat"]
    assert sorted(names) == sorted(
        [name.lower() + FLAT_SUFFIX for name in definitions.RESOURCE_TYPES] + items
    )


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_columns_are_named_once_described_and_in_snake_case(table: FlatTable) -> None:
    names = [column.name.lower() for column in table.columns]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"_?[a-z][a-z0-9_]*", name) for name in names)
    assert list(table.column_descriptions) == table.schema.names
    assert all(table.column_descriptions.values())
    assert tuple(table.schema.names[-3:]) == LINEAGE_COLUMNS
    assert plain(table.schema) == table.schema


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_numbers_and_times_are_typed_and_all_rows_of_a_table_have_the_same_columns(table: FlatTable) -> None:
    for field in table.schema:
        if field.name.endswith("_numeric"):
            assert field.type == pa.float64()
        if field.name.endswith(("_ids", "_types")):
            assert field.type.value_type == pa.string()
        if field.name.endswith(("last_updated_start", "last_updated_end")):
            assert field.type == UTC_TIME
    for branch in table.branches:
        assert [(c.name, c.type) for c in branch.columns] == [(c.name, c.type) for c in table.columns]


PROMISED = {
    "patient_flat": {
        "id": pa.string(),
        "mrn": pa.string(),
        "birth_date": pa.string(),
        "birth_date_start": UTC_TIME,
        "deceased": pa.bool_(),
        "race_codes": pa.list_(pa.field("element", pa.string())),
        "ethnicity_text": pa.string(),
        "birth_sex": pa.string(),
        "gender_identity_code": pa.string(),
        "name_family": pa.string(),
        "phone": pa.string(),
        "address_postal_code": pa.string(),
    },
    "observation_flat": {
        "patient_id": pa.string(),
        "component_index": pa.int32(),
        "parent_code": pa.string(),
        "loinc_code": pa.string(),
        "value_type": pa.string(),
        "value_numeric": pa.float64(),
        "value_decimal": pa.string(),
        "value_unit_code": pa.string(),
        "value_comparator": pa.string(),
        "value_boolean": pa.bool_(),
        "value_code": pa.string(),
        "effective_start": UTC_TIME,
        "effective_end": UTC_TIME,
    },
    "condition_flat": {"snomed_code": pa.string(), "icd10_code": pa.string(), "onset_start": UTC_TIME},
    "medicationrequest_flat": {"rxnorm_code": pa.string(), "medication_id": pa.string()},
    "immunization_flat": {"cvx_code": pa.string(), "occurrence_start": UTC_TIME},
    "procedure_flat": {"snomed_code": pa.string(), "cpt_code": pa.string(), "performed_end": UTC_TIME},
    "claim_item_flat": {"claim_id": pa.string(), "sequence": pa.int32(), "net_numeric": pa.float64()},
    "explanationofbenefit_flat": {"total_submitted_numeric": pa.float64()},
    "explanationofbenefit_item_flat": {"deductible_numeric": pa.float64(), "benefit": pa.string()},
    "coverage_flat": {"patient_id": pa.string(), "subscriber_id": pa.string()},
    "documentreference_flat": {"encounter_id": pa.string(), "attachment_size": pa.int32()},
    "careplan_flat": {"addresses_ids": pa.list_(pa.field("element", pa.string()))},
}


@pytest.mark.parametrize("name", PROMISED)
def test_the_columns_that_analysts_are_promised_are_there(name: str) -> None:
    (table,) = (table for table in TABLES if table.name == name)
    assert {column: table.schema.field(column).type for column in PROMISED[name]} == PROMISED[name]


def test_an_element_name_becomes_snake_case() -> None:
    names = ("authoredOn", "value[x]", "id", "instantiatesURI", "URLName", "birthDate", "doseNumber[x]")
    assert [snake_case(name) for name in names] == [
        *("authored_on", "value", "id", "instantiates_uri", "url_name", "birth_date", "dose_number")
    ]


def test_what_is_no_resource_type_is_refused() -> None:
    with pytest.raises(ConfigError):
        flat_tables("Pateint")


def test_naming_the_flat_tables_loads_neither_pyarrow_nor_duckdb() -> None:
    """The definitions of the orchestration name them when they load, and must load quickly."""
    code = (
        "import sys; from pipeline.tables.flat import flat_tables;"
        "assert [t.name for t in flat_tables('Claim')] == ['claim_flat', 'claim_item_flat'];"
        "assert not {'pyarrow', 'duckdb'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
