"""What all parts of the configuration are made of: strict models, https URLs, references to secrets."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

REFERENCE = re.compile(r"^(env|file|keyvault):(.+)$", re.DOTALL)


def _check_reference(value: str) -> str:
    if not REFERENCE.match(value):
        raise ValueError(
            "a secret must be a reference (env:NAME, file:PATH or keyvault:URL), never the secret itself"
        )
    if not value.isprintable():
        raise ValueError("a secret's reference has characters in it that cannot be printed")
    return value


SecretReference = Annotated[str, AfterValidator(_check_reference)]


class Strict(BaseModel):
    # hide_input: a value that is refused may be a secret that somebody pasted in.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def is_written_plainly(value: str) -> bool:
    """No spaces, line ends or others that urlsplit skips and httpx does not; and a port that can be."""
    if any(each.isspace() or not each.isprintable() for each in value):
        return False
    try:
        return urlsplit(value).port != 0
    except ValueError:
        return False


def _https(value: str) -> str:
    if not is_written_plainly(value):
        raise ValueError("must be a plain https URL without spaces, with a port from 1 to 65535")
    parts = urlsplit(value)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError("must be an https URL; plain http is for this machine only")
    if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must be a plain https URL without credentials, query or fragment")
    return value.rstrip("/")


HttpsUrl = Annotated[str, AfterValidator(_https)]
