"""Whether part of an export's data is missing, by what the server says and by what it shows: rules only.

The server says so with `error` entries; Microsoft's, of a job that it cancelled itself, says nothing and
answers 200 with part of the files (protocol fact 22). Only an earlier export tells that then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from pipeline.exports.facts import Receipt
from pipeline.exports.ledger import Facts

_NAMED = 5


@dataclass(frozen=True)
class Shrunken:
    """A table with far fewer lines than in the export that it is measured by."""

    table: str
    before: int
    now: int


def is_full(facts: Facts) -> bool:
    """Whether everything was asked for: without `_since` and of all patients, nothing may be missing."""
    intent = facts.asked
    return intent is not None and intent.parameters.get("since") is None and intent.patients is None


def is_measure(facts: Facts, fingerprint: str) -> bool:
    """Whether a later full export of the same parameters is measured by this one.

    It is whole, or an operator took it as it is: a population that really shrank is told once, not nightly.
    """
    receipt = facts.receipt
    return (
        receipt is not None
        and receipt.fingerprint == fingerprint
        and is_full(facts)
        and not facts.closings.keys() & {"withdrawing", "withdrawn"}
        and (not receipt.incomplete or facts.taken_as_it_is)
    )


def shrunken(before: Mapping[str, int], now: Mapping[str, int], below: float) -> tuple[Shrunken, ...]:
    """Tables with less than the share `below` of the lines that they had, by name; those without any too."""
    least = Decimal(str(below))  # 0.8 * 5 is more than 4 in binary for some shares
    return tuple(
        Shrunken(table, lines, now.get(table, 0))
        for table, lines in sorted(before.items())
        if now.get(table, 0) < least * lines
    )


def lines_of(receipt: Receipt) -> dict[str, int]:
    """Lines by table, bad ones included: what the server sent."""
    return {table: counts.rows + counts.quarantined for table, counts in receipt.tables.items()}


def missing_errors(issues: int) -> list[str]:
    """What to say of issues of severity error or fatal; nothing when there are none."""
    return [f"the server reports {issues} errors"] if issues else []


def in_words(found: Sequence[Shrunken], measure: str) -> list[str]:
    """One sentence, with names and numbers; nothing for nothing."""
    if not found:
        return []
    said = [f"{each.table} {each.now or 'none'} of {each.before} lines" for each in found[:_NAMED]]
    more = f" and {len(found) - _NAMED} more tables" if len(found) > _NAMED else ""
    return [f"smaller than the last whole one ({measure}): {', '.join(said)}{more}"]
