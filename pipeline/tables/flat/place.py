"""Where a value lies in the Parquet of an export: a piece of SQL together with its Arrow type.

Any member of any struct may be absent from the Parquet (presence is the floor plus what was seen), and
DuckDB refuses to bind a name that is not there. So expressions are built by walking the actual type: what is
absent is `NOWHERE`, everything below it too, and the SQL of `NOWHERE` is NULL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def quoted(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def one_of(sql: str, texts: tuple[str, ...]) -> str:
    """The condition that a value is one of some texts."""
    if len(texts) == 1:
        return f"{sql} = {quoted(texts[0])}"
    return f"{sql} IN ({', '.join(map(quoted, texts))})"


@dataclass(frozen=True)
class Place:
    """A value in the Parquet, or nothing (`kind` None)."""

    sql: str
    kind: pa.DataType | None
    depth: int = 0
    """How many lambdas are around it: their parameters must not have the same name."""

    @property
    def exists(self) -> bool:
        return self.kind is not None

    @property
    def is_list(self) -> bool:
        import pyarrow as pa

        return self.kind is not None and (pa.types.is_list(self.kind) or pa.types.is_large_list(self.kind))

    def first(self) -> Place:
        """The first element of a list; anything else is itself."""
        if not self.is_list:
            return self
        return Place(f"{self.sql}[1]", self._element_kind(), self.depth)

    def member(self, name: str) -> Place:
        """A member of a struct; of a list of structs that of its first element."""
        import pyarrow as pa

        inside = self.first()
        if inside.kind is None or not pa.types.is_struct(inside.kind):
            return NOWHERE
        position = inside.kind.get_field_index(name)
        if position < 0:
            return NOWHERE
        return Place(f'{inside.sql}."{name}"', inside.kind.field(position).type, self.depth)

    def at(self, *path: str) -> Place:
        """Member by member, always of the first element where a list is on the way."""
        here = self
        for name in path:
            here = here.member(name)
        return here

    def every(self, *path: str, make: Callable[[Place], Place] | None = None) -> Place:
        """All values at a path as one list, through every element of every list on the way.

        `make` is applied to each value. Absent values are left out; NULL where there are none.
        """
        import pyarrow as pa

        found, many = self._collected(path, make)
        if not found.exists or many:
            return found
        some = f"CASE WHEN {found.sql} IS NOT NULL THEN [{found.sql}] END"
        return Place(some, pa.list_(found.kind), self.depth)

    def _collected(self, path: tuple[str, ...], make: Callable[[Place], Place] | None) -> tuple[Place, bool]:
        """The values at a path, and whether they are a list."""
        here = self
        for position, name in enumerate(path):
            if here.is_list:
                return here._spread(path[position:], make), True
            here = here.member(name)
        if here.is_list:
            return here._spread((), make), True
        if make is None or not here.exists:
            return here, False
        made = make(here)
        return Place(f"CASE WHEN {here.sql} IS NOT NULL THEN {made.sql} END", made.kind, made.depth), False

    def _spread(self, rest: tuple[str, ...], make: Callable[[Place], Place] | None) -> Place:
        import pyarrow as pa

        if not rest and make is None:
            return self
        element = self._parameter()
        found, many = element._collected(rest, make)
        if not found.exists:
            return NOWHERE
        sql = f"list_transform({self.sql}, lambda {element.sql}: {found.sql})"
        if many:
            sql = f"flatten({sql})"
        elif rest:
            sql = f"list_filter({sql}, lambda y{element.depth}: y{element.depth} IS NOT NULL)"
        if rest and not self.depth:
            # A list of one, so that what is long is made once and looked at twice.
            sql = f"list_transform([{sql}], lambda z: CASE WHEN len(z) > 0 THEN z END)[1]"
        return Place(self._if_any(sql), found.kind if many else pa.list_(found.kind), self.depth)

    def where(self, condition: Callable[[Place], str | None]) -> Place:
        """The elements of a list that fulfil a condition; NOWHERE when none can (condition None)."""
        if not self.is_list:
            return NOWHERE
        element = self._parameter()
        test = condition(element)
        if test is None:
            return NOWHERE
        sql = self._if_any(f"list_filter({self.sql}, lambda {element.sql}: {test})")
        return Place(sql, self.kind, self.depth)

    def _if_any(self, sql: str) -> str:
        # A lambda is prepared anew for every 2,048 rows, also where all lists are NULL: most are.
        if self.depth or "(" in self.sql:
            return sql
        return f"(CASE WHEN {self.sql} IS NOT NULL THEN {sql} END)"

    def _parameter(self) -> Place:
        depth = self.depth + 1
        return Place(f"x{depth}", self._element_kind(), depth)

    def _element_kind(self) -> pa.DataType:
        return self.kind.value_type if self.kind is not None else None


NOWHERE = Place("NULL", None)


def root(schema: pa.Schema, alias: str = "r") -> Place:
    """The rows of Parquet parts as one place: its members are the columns."""
    import pyarrow as pa

    return Place(alias, pa.struct(list(schema)))


def with_members(place: Place, members: Mapping[str, pa.DataType]) -> Place:
    """The same place with columns more, which a subquery adds."""
    import pyarrow as pa

    before = [] if place.kind is None else place.kind.fields
    added = [pa.field(name, kind) for name, kind in members.items()]
    return Place(place.sql, pa.struct([*before, *added]), place.depth)


def coalesced(*sqls: str) -> str:
    """The first that is not NULL; the ones known to be NULL are left out."""
    found = [sql for sql in sqls if sql != "NULL"]
    if len(found) <= 1:
        return found[0] if found else "NULL"
    return f"coalesce({', '.join(found)})"
