"""Whose a line is that is no JSON, cut short mostly. Only what is certain goes; the rest is a mention."""

from __future__ import annotations

import re

from pipeline.exports.erasing.compartment import KEPT, Patient
from pipeline.tables.compartment import BEYOND, BY, OF

_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"|([{}\[\]:])', re.DOTALL)
_REFERENCE = re.compile(rb"""(?<![A-Za-z0-9])Patient\\?/([^\\/"'?#|\s,;:<>(){}\[\]]+)""")


def is_of(patient: Patient, line: bytes) -> bool:
    """Whether such a line is that Patient, or about one patient, and that one.

    Of a type that is nobody's, of a Group, and with a second patient in it a line cannot be told to be the
    patient's, nor where an id stands in any other place than that of the resource's own.
    """
    head = _head(line)
    kind = head.get("resourceType")
    if kind == "Patient":
        return head.get("id") == patient.id
    if kind in KEPT or not (kind is None or kind in OF or kind in BY or kind in BEYOND):
        return False
    named = {found[1].rstrip(b".").decode("utf-8", "replace") for found in _REFERENCE.finditer(line)}
    return named == {patient.id.rstrip(".")}


def _head(line: bytes) -> dict[str, str]:
    """The texts that the outermost object holds, as far as it goes."""
    found: dict[str, str] = {}
    depth, name, after_colon = 0, "", False
    for token in _TOKEN.finditer(line):
        text, sign = token[1], token[2]
        if text is not None:
            value = text.decode("utf-8", "replace")
            if depth == 1 and after_colon:
                found.setdefault(name, value)
            name, after_colon = value, False
        elif sign == b":":
            after_colon = True
        else:
            after_colon = False
            depth += 1 if sign in (b"{", b"[") else -1
    return found
