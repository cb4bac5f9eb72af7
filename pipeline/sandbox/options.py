"""What the server can be told when it starts; command line and Python share this one list."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.sandbox.generator.world import World


@dataclass(frozen=True, slots=True)
class Options:
    """One field per option; times in seconds.

    `jwks` is a file or URL, read again at each token request; without it nobody can sign in.
    `poll_seconds` 0 sends no Retry-After and tolerates any pace. `page_size` 0 writes one manifest page.
    `expires_in`: number, string or absent, as real servers differ (protocol fact 8).
    `gzip`: accepted (Content-Encoding where the client takes it), never, or bare (gzip without saying so).
    """

    host: str = "127.0.0.1"
    port: int = 0
    patients: int = 100
    seed: int = 1
    night: int = 1
    observations_per_patient: int | None = None
    pad: int = 0
    jwks: str | None = None
    client_id: str = "nightly"
    scope: str = "system/*.rs"
    token_seconds: int = 300
    expires_in: str = "number"
    export_seconds: float = 4.0
    poll_seconds: float = 1.0
    file_lines: int = 1000
    page_size: int = 0
    one_at_a_time: bool = False
    gzip: str = "accepted"
    state: Path | None = None
    access_log: Path | None = None
    ready_file: Path | None = None
    until_stdin_closes: bool = False

    def world(self, night: int) -> World:
        """The data as of that night."""
        return World(self.seed, self.patients, night, self.observations_per_patient, self.pad)


_HELP = {
    "host": "address to listen on",
    "port": "port to listen on; 0 takes a free one",
    "patients": "patients on the first night",
    "seed": "another seed is another population",
    "night": "as of which night (1, 2, ...) the data is",
    "observations_per_patient": "observations per patient from before the first night (default: about 20)",
    "pad": "characters of narrative added to each observation, for volume",
    "jwks": "file or URL of the client's public keys",
    "client_id": "the one registered client",
    "scope": "scopes registered for the client",
    "token_seconds": "how long a token lives",
    "expires_in": "how the token answer says so",
    "export_seconds": "how long an export stays in progress",
    "poll_seconds": "Retry-After while in progress; 0 sends none",
    "file_lines": "lines per output file",
    "page_size": "files per manifest page; 0 puts all on one",
    "one_at_a_time": "answer 429 to a kick-off while an export is in progress",
    "gzip": "accepted: as Content-Encoding where the client takes it; never; bare: without saying so",
    "state": "folder that keeps night and jobs over a restart",
    "access_log": "file for one JSON line per request",
    "ready_file": "written when connections are accepted: base_url and pid",
    "until_stdin_closes": "end when standard input closes, so that the server does not outlive its starter",
}
_CHOICES = {"gzip": ("accepted", "never", "bare"), "expires_in": ("number", "string", "absent")}
_KINDS: dict[str, type] = {"int": int, "int | None": int, "float": float, "Path | None": Path}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options of a command line; exits with 2 and a usage message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sandbox",
        description="An FHIR R4 server with made-up data and strict bulk export, for demo and tests.",
    )
    for field in fields(Options):
        flag = "--" + field.name.replace("_", "-")
        text = _HELP[field.name]
        if field.type == "bool":
            parser.add_argument(flag, action="store_true", help=text)
            continue
        parser.add_argument(
            flag,
            type=_KINDS.get(str(field.type), str),
            default=field.default,
            choices=_CHOICES.get(field.name),
            metavar=None if field.name in _CHOICES else "VALUE",
            help=text if field.default is None else f"{text} (default: {field.default})",
        )
    options = Options(**vars(parser.parse_args(arguments)))
    for name, least in (("patients", 0), ("night", 1), ("file_lines", 1), ("page_size", 0), ("pad", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    return options
