"""Erasing a patient from everything that a source has in the lake, and proving it (`fhir-export erase`).

What goes. The Patient with that id, and whatever R4's Patient compartment says is about that patient alone
(`compartment`): each resource whole, every version of it, in every export. A version that names no patient
(shortened by `_elements`, or marked as deleted) goes with those of the same id that do. Deletions that name
what goes, go. A resource that names several patients stays, and so does every Group: the report counts such
mentions, for they hold others' data; so do facts in which the id was asked for.

Where. Raw bytes: lines are left blank in a new raw file that stands in for the old one, so the export can
still be ingested again (`raw`). Export partitions, flat tables, `_deletes`, current tables and tombstones:
the parts are written again without the rows, one Delta commit a table (`tables`). Quarantine records of
erased lines; bytes of refused files; and raw files, parts and old versions of tables that nothing refers to
any more, which are removed at once and not by some later vacuum. Delta logs hold row counts and no values.

The order makes it safe to be killed and run again: what is found by means of something else goes first
(tombstones, `_deletes`, current and flat tables, quarantine), then the export partitions, then the raw
bytes, then files that nothing shows. Each table changes in one commit, so no reader sees half of it. Row
counts in receipts stay what they were; the tables themselves say how many rows an erasure took out
(`pipeline.tables.erased`), and the doctor adds them.

The proof. Afterwards every file of the source is read again, and each row or line that has the id is weighed
as at first. What is still the patient's is an error (exit code 4), whatever is left is told by place. While
somebody is at work who has read the lake before, nothing is proved (exit code 5): a merge, a flattening or a
fetching of attachments is refused by its commit then (`pipeline.tables.overtaking`), but what it does is its
own affair until it ends.

Not reached: backups, snapshots and soft-deleted blobs of the storage, files made by `as-of` and `to-ndjson`,
and the server itself, whose next full export brings the patient again.
"""

from __future__ import annotations

from pipeline.exports.erasing.erasure import erase
from pipeline.exports.erasing.report import Erased

__all__ = ["Erased", "erase"]
