"""One column of a flat table: its name, its type, what it means, and the SQL that makes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.tables.flat.place import Place


@dataclass(frozen=True)
class ColumnType:
    """A scalar by DuckDB's name, or a struct of scalars; once or as a list."""

    scalar: str = ""
    members: tuple[tuple[str, ColumnType], ...] = ()
    many: bool = False

    @property
    def sql(self) -> str:
        """As in DuckDB: `VARCHAR`, `STRUCT("system" VARCHAR, ...)[]`."""
        if self.members:
            inner = ", ".join(f'"{name}" {kind.sql}' for name, kind in self.members)
            return f"STRUCT({inner})" + ("[]" if self.many else "")
        return self.scalar + ("[]" if self.many else "")

    def arrow(self) -> pa.DataType:
        """As in Arrow; lists of `element`, as everywhere in the tables."""
        import pyarrow as pa

        if self.members:
            value = pa.struct([pa.field(name, kind.arrow()) for name, kind in self.members])
        else:
            value = {
                "VARCHAR": pa.string(),
                "BOOLEAN": pa.bool_(),
                "INTEGER": pa.int32(),
                "BIGINT": pa.int64(),
                "DOUBLE": pa.float64(),
                "TIMESTAMPTZ": pa.timestamp("us", "UTC"),
            }[self.scalar]
        return pa.list_(pa.field("element", value)) if self.many else value


TEXT = ColumnType("VARCHAR")
BOOLEAN = ColumnType("BOOLEAN")
INTEGER = ColumnType("INTEGER")
LINE = ColumnType("BIGINT")
DOUBLE = ColumnType("DOUBLE")
TIMESTAMP = ColumnType("TIMESTAMPTZ")
TEXTS = ColumnType("VARCHAR", many=True)
INTEGERS = ColumnType("INTEGER", many=True)


def struct(**members: ColumnType) -> ColumnType:
    """A struct with these members."""
    return ColumnType(members=tuple(members.items()))


def structs(**members: ColumnType) -> ColumnType:
    """A list of structs with these members."""
    return ColumnType(members=tuple(members.items()), many=True)


CODINGS = structs(system=TEXT, code=TEXT, display=TEXT)
IDENTIFIERS = structs(use=TEXT, type_code=TEXT, system=TEXT, value=TEXT)


@dataclass(frozen=True)
class FlatColumn:
    """A column and how it is made from one place of the Parquet: a resource, a component, an item."""

    name: str
    type: ColumnType
    description: str
    make: Callable[[Place], str]
    """SQL of the value; `NULL` where the Parquet has nothing to make it from."""
    needs: tuple[FlatColumn, ...] = ()
    """Values that are made first, once for all columns that need them; `make` finds them as members."""

    def select(self, place: Place) -> str:
        """`CAST(... AS type) AS "name"`: the type never depends on what the Parquet holds."""
        return f'CAST({self.make(place)} AS {self.type.sql}) AS "{self.name}"'


_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake_case(fhir_name: str) -> str:
    """`authoredOn` -> `authored_on`; the `[x]` of a choice goes."""
    return _WORDS.sub("_", fhir_name.removesuffix("[x]")).lower()


class FlatTable:
    """One flat table of a resource type: what it is called, its columns, and where its rows come from."""

    def __init__(
        self,
        name: str,
        resource_type: str,
        description: str,
        branches: Callable[[], tuple[Branch, ...]],
    ) -> None:
        self.name = name
        """`observation_flat`, `claim_item_flat`: also a valid folder and asset name."""
        self.resource_type = resource_type
        self.description = description
        self._branches = branches

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """The sets of rows that make up the table; all have the same columns."""
        return self._branches()

    @cached_property
    def columns(self) -> tuple[FlatColumn, ...]:
        return self.branches[0].columns

    @cached_property
    def column_descriptions(self) -> dict[str, str]:
        """What each column means, in table order."""
        return {column.name: column.description for column in self.columns}

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema: the same for every export, whatever its data."""
        import pyarrow as pa

        return pa.schema([pa.field(column.name, column.type.arrow()) for column in self.columns])

    def __repr__(self) -> str:
        return f"FlatTable({self.name!r})"


@dataclass(frozen=True)
class Branch:
    """Rows of a flat table: one for each resource, or one for each element of a list in it."""

    columns: tuple[FlatColumn, ...]
    unnested: str | None = None
    """None: one row a resource. `component`: one row an element of that list, in order.

    The columns of an unnested branch see the resource with two members more: `ELEMENT`, the element, and
    `INDEX`, its position from 1.
    """

    @property
    def prepared(self) -> tuple[FlatColumn, ...]:
        """What the columns need, each once."""
        return tuple({need.name: need for column in self.columns for need in column.needs}.values())


ELEMENT = "__flat_element"
INDEX = "__flat_index"
