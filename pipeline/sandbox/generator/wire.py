"""A resource as the bytes of one line, numbers with the digits they were made of."""

from __future__ import annotations

import msgspec

from pipeline.sandbox.generator.datatypes import Json

encode = msgspec.json.Encoder(decimal_format="number").encode
"""Any JSON value to bytes."""


def line(resource: Json) -> bytes:
    """The resource as compact JSON and a line feed."""
    return encode(resource) + b"\n"
