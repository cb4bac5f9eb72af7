"""What a file's JSON looks like, found by reading all of it: the schema that a careful user would write down.

Knows nothing of R4 and nothing of the pipeline, so that contenders do not depend on what they are compared
with. Used before the clock runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_DEPTH_OF_EXTENSIONS = 2


@dataclass
class Shape:
    """What was seen in one place: scalars by name, the members of objects, the elements of arrays."""

    scalars: set[str] = field(default_factory=set)
    members: dict[str, Shape] = field(default_factory=dict)
    element: Shape | None = None

    def see(self, value: Any) -> None:
        """Add one parsed JSON value."""
        if isinstance(value, dict):
            for name, inner in value.items():
                shape = self.members.get(name)
                if shape is None:
                    shape = self.members[name] = Shape()
                shape.see(inner)
        elif isinstance(value, list):
            if self.element is None:
                self.element = Shape()
            for inner in value:
                self.element.see(inner)
        elif value is not None:
            self.scalars.add(type(value).__name__)

    @property
    def mixed(self) -> bool:
        """Text here and a structure there: no column type holds both."""
        numbers = {"int", "float"} & self.scalars
        kinds = len(self.scalars - numbers) + bool(numbers) + bool(self.members) + (self.element is not None)
        return kinds != 1


def observe(path: Path) -> Shape:
    """The shape of all lines of an NDJSON file."""
    import orjson

    shape = Shape()
    with path.open("rb") as file:
        for line in file:
            if not line.isspace():
                shape.see(orjson.loads(line))
    return shape


def arrow_schema(shape: Shape) -> pa.Schema:
    """Everything typed, numbers with a fraction as float64; what is mixed or empty is text."""
    import pyarrow as pa

    return pa.schema([(name, _arrow_type(inner)) for name, inner in shape.members.items()])


def _arrow_type(shape: Shape) -> pa.DataType:
    import pyarrow as pa

    if shape.mixed:
        return pa.string()
    if shape.members:
        return pa.struct([(name, _arrow_type(inner)) for name, inner in shape.members.items()])
    if shape.element is not None:
        return pa.list_(_arrow_type(shape.element))
    if shape.scalars == {"bool"}:
        return pa.bool_()
    if shape.scalars == {"int"}:
        return pa.int64()
    return pa.float64() if shape.scalars <= {"int", "float"} else pa.string()


def duckdb_columns(shape: Shape) -> dict[str, str]:
    """`columns` of DuckDB's read_json: fractions DOUBLE, `contained` and deep extensions JSON."""
    return {name: _duckdb_type(name, inner, 0) for name, inner in shape.members.items()}


def _duckdb_type(name: str, shape: Shape, extensions: int) -> str:
    extensions += name in {"extension", "modifierExtension"}
    if name == "contained" or extensions > _DEPTH_OF_EXTENSIONS or (shape.mixed and not shape.scalars):
        return "JSON"
    if shape.mixed:
        return "VARCHAR"
    if shape.members:
        inner = (f'"{key}" {_duckdb_type(key, value, extensions)}' for key, value in shape.members.items())
        return f"STRUCT({', '.join(inner)})"
    if shape.element is not None:
        return f"{_duckdb_type('', shape.element, extensions)}[]"
    if shape.scalars == {"bool"}:
        return "BOOLEAN"
    if shape.scalars == {"int"}:
        return "BIGINT"
    return "DOUBLE" if shape.scalars <= {"int", "float"} else "VARCHAR"
