"""Whose a row is: the patient that it is about, by the R4 Patient compartment's first reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_ABOUT = ("subject", "patient", "beneficiary", "candidate", "individual")
"""In which element a type names its patient; none has two of them."""
_PATIENT = r"^(?:.*/)?Patient/(?P<id>[^/#?]+)(?:/_history/[^/]*)?$"


def read_patients(part: Any, *, are_patients: bool) -> pa.StringArray | None:
    """Of each row of an open `pyarrow.parquet.ParquetFile` the id of its patient, null where it names none.

    `are_patients`: the rows are Patient resources. References may be relative or absolute (protocol fact
    32). None for a type that is about nobody.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = part.schema_arrow
    if are_patients:
        ids = part.read(columns=["id"], use_threads=False).column("id")
        return pa.concat_arrays([pa.array([], pa.string()), *(each.cast(pa.string()) for each in ids.chunks)])
    for name in _ABOUT:
        position = schema.get_field_index(name)
        kind = schema.field(position).type if position >= 0 else None
        if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("reference") >= 0:
            table = part.read(columns=[f"{name}.reference"], use_threads=False)
            column = pc.struct_field(table.column(name), "reference")
            texts = [each.cast(pa.string()) for each in column.chunks]
            found = pc.extract_regex(pa.concat_arrays([pa.array([], pa.string()), *texts]), _PATIENT)
            return pc.struct_field(found, "id")
    return None
