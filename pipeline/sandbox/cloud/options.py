"""What the cloud can be told when it starts; command line and Python share this one list."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from uuid import UUID

DEFAULT_TENANT = "5f0f5a3c-6d7e-4b1a-9c55-0a8b6f1d2e34"


@dataclass(frozen=True, slots=True)
class Options:
    """One field per option; times in seconds. Ports: 0 takes a free one."""

    certificate: Path
    key: Path
    host: str = "127.0.0.1"
    port: int = 0
    vault_port: int = 0
    identity_port: int = 0
    tenant: str = DEFAULT_TENANT
    token_seconds: int = 3599
    setup: Path | None = None
    access_log: Path | None = None
    ready_file: Path | None = None
    until_stdin_closes: bool = False


_HELP = {
    "certificate": "PEM file with the server's certificate chain",
    "key": "PEM file with its private key",
    "host": "address to listen on",
    "port": "TLS port of Entra and of the control endpoint",
    "vault_port": "TLS port of Key Vault",
    "identity_port": "http port of the managed-identity endpoint",
    "tenant": "directory (tenant) id, a GUID",
    "token_seconds": "how long an access token lives",
    "setup": "JSON file with a list of control requests that are carried out before the first request",
    "access_log": "file for one JSON line per request",
    "ready_file": "written when connections are accepted: the URLs and the pid",
    "until_stdin_closes": "end when standard input closes, so that it does not outlive its starter",
}
_KINDS: dict[str, type] = {"int": int, "Path": Path, "Path | None": Path}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options of a command line; exits with 2 and a usage message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sandbox.cloud",
        description="Entra, the managed-identity endpoint and Key Vault, for demo and tests.",
    )
    for field in fields(Options):
        flag = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            parser.add_argument(flag, action="store_true", help=_HELP[field.name])
            continue
        required = field.default is MISSING
        parser.add_argument(
            flag,
            type=_KINDS.get(str(field.type), str),
            required=required,
            default=None if required else field.default,
            metavar="VALUE",
            help=_HELP[field.name],
        )
    options = Options(**vars(parser.parse_args(arguments)))
    try:
        UUID(options.tenant)
    except ValueError:
        parser.error("--tenant must be a GUID")
    if options.token_seconds < 1:
        parser.error("--token-seconds must be at least 1")
    return options
