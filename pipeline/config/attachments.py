"""Which attachments of published resources are fetched, and how much of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pipeline.config.model import Strict

Attaching = Literal["DocumentReference", "DiagnosticReport"]
ATTACHING_TYPES: tuple[Attaching, ...] = ("DocumentReference", "DiagnosticReport")

_NAME = r"[A-Za-z0-9!#$&^_.+-]{1,127}"
_PATTERN = re.compile(rf"\*/\*|{_NAME}/(\*|{_NAME})")


class Attachments(Strict):
    """The configuration's `attachments`; absent or false: nothing is fetched."""

    types: tuple[Attaching, ...] = ATTACHING_TYPES
    content_types: tuple[str, ...] | None = None
    """Media types such as application/pdf or text/*, in lower case; None: all."""
    megabytes: Annotated[float, Field(gt=0, le=10_000)] = 50
    """Of one attachment, in 10**6 bytes, decoded."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts besides the FHIR server's that attachments are fetched from, always without its token."""

    @property
    def bytes_limit(self) -> int:
        return int(self.megabytes * 10**6)

    @field_validator("types", mode="before")
    @classmethod
    def _some_types(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or not value or any(t not in ATTACHING_TYPES for t in value):
            raise ValueError(f"must be a list of {' and '.join(ATTACHING_TYPES)}, or one of them")
        return tuple(dict.fromkeys(value))

    @field_validator("content_types")
    @classmethod
    def _media_types(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or not all(_PATTERN.fullmatch(each) for each in value)):
            raise ValueError("must be a list of media types such as application/pdf or text/*; absent: all")
        return None if value is None else tuple(dict.fromkeys(each.lower() for each in value))

    @field_validator("allow_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from pipeline.auth.origins import origin, require_secure
        from pipeline.errors import ConfigError

        for each in value:
            url = each if "://" in each else f"https://{each}"
            try:
                require_secure(url)
                plain = origin(url) if "*" not in each else ""
            except ConfigError as error:
                raise ValueError(f"holds no host: {error.cause}") from None
            if not plain or "/" in url.rstrip("/").partition("://")[2]:
                raise ValueError("must be hosts in full, as host, host:port or https://host:port")
        return value
