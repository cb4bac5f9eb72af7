"""What the server can be told when it starts; command line and Python share this one list."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.sandbox.generator.world import World


@dataclass(frozen=True, slots=True)
class Options:
    """One field per option; times in seconds. `stand_in` and what is below it is for the five systems.

    `jwks` is a file or URL, read again at each token request; without it nobody can sign in.
    `poll_seconds` 0 sends no Retry-After and tolerates any pace. `page_size` 0 writes one manifest page.
    `expires_in`: number, string or absent, as real servers differ (protocol fact 8).
    `gzip`: accepted (Content-Encoding where the client takes it), never, or bare (gzip without saying so).
    `token_seconds` None: 300, with apim 60 to 90 minutes. `storage` is a file, so that no key is an argument.
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
    token_seconds: int | None = None
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
    faults: Path | None = None
    until_stdin_closes: bool = False
    certificate: Path | None = None
    key: Path | None = None
    stand_in: str | None = None
    relative_location: bool = False
    fail_with: int = 0
    cancelled_by_server: bool = False
    line_ends: str = "lf"
    storage: Path | None = None
    storage_container: str = "fhir-export"
    token_keys: str | None = None
    token_audience: str | None = None
    token_issuer: str | None = None
    token_role: str | None = None
    since_by_patient: bool = False
    apim_host: str | None = None
    apim_host_in_urls: bool = False
    named_value: Path | None = None
    vault_entry: str = "present"
    granted_role: str = "system.all.read"
    empty_is_404: bool = False
    error_file: bool = False
    admin_token: str | None = None
    registered: bool = False
    jwks_cache_seconds: float = 300.0
    signed_url_seconds: float = 1800.0
    no_storage: bool = False
    tenant: str = "my-clinic"
    tenant_form: str = "meta.tenant"

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
    "token_seconds": "how long a token lives (default: 300; apim: 60 to 90 minutes)",
    "expires_in": "how the token answer says so",
    "export_seconds": "how long an export stays in progress",
    "poll_seconds": "Retry-After while in progress; 0 sends none",
    "file_lines": "lines per output file",
    "page_size": "files per manifest page; 0 puts all on one",
    "one_at_a_time": "answer 429 to a kick-off while an export is in progress",
    "gzip": "accepted: as Content-Encoding where the client takes it; never; bare: without saying so",
    "state": "folder that keeps night and jobs over a restart",
    "access_log": "file for one JSON line per request",
    "faults": "YAML file with a script of faults (docs/faults.md); POST /control replaces it",
    "ready_file": "written when connections are accepted: base_url and pid",
    "until_stdin_closes": "end when standard input closes, so that the server does not outlive its starter",
    "certificate": "PEM file of a certificate: makes it https",
    "key": "PEM file of the certificate's key",
    "stand_in": "answer as that system does",
    "relative_location": "Content-Location without scheme and host (aidbox and smartbox: always)",
    "fail_with": "every export ends with that HTTP status; 0: none does",
    "cancelled_by_server": "every export answers 200 with the first half of its files (Microsoft)",
    "line_ends": "how lines of files end",
    "storage": "file with the connection string of a storage account, into which files are written",
    "storage_container": "container there; empty: one container per export (Microsoft)",
    "token_keys": "file or URL of the JWK Set that signs Entra's tokens (RS256)",
    "token_audience": "aud of Entra's tokens (azure-fhir, azure-export: the FHIR base)",
    "token_issuer": "iss of Entra's tokens (default: any)",
    "token_role": "role that a token needs; empty: none (apim: system.all.read, azure: FHIR Data Exporter)",
    "since_by_patient": "_since walks only patients whose Patient resource changed (Microsoft)",
    "apim_host": "ApiManagementHostName: host, host:port or URL; its /auth/token is the audience (apim)",
    "apim_host_in_urls": "Content-Location, output and discovery use that name too (apim)",
    "named_value": "file with the JWK Set that was pasted into API Management (default: --jwks) (apim)",
    "vault_entry": "the client's secret in the Key Vault of suffix backkv (apim)",
    "granted_role": "role in the tokens it hands out, such as user.all.read (apim)",
    "empty_is_404": "404 where an export holds nothing, as version 2 does (apim)",
    "error_file": "an error entry in the manifest, at the blob host (apim)",
    "admin_token": "bearer, or name:secret for basic, that may read and write Client and AccessPolicy",
    "registered": "begin with --client-id registered (scope, jwks) and allowed (aidbox, smartbox)",
    "jwks_cache_seconds": "how long a client's JWK Set is remembered (aidbox, smartbox)",
    "signed_url_seconds": "how long a signed file URL lives (aidbox, smartbox)",
    "no_storage": "500 at kick-off: no storage is configured (aidbox, smartbox)",
    "tenant": "the tenant of --registered and of the FHIR base (smartbox)",
    "tenant_form": "where the server looks for a Client's tenant (smartbox)",
}
_CHOICES = {
    "gzip": ("accepted", "never", "bare"),
    "expires_in": ("number", "string", "absent"),
    "stand_in": ("apim", "aidbox", "smartbox", "azure-fhir", "azure-export"),
    "line_ends": ("lf", "crlf"),
    "vault_entry": ("present", "absent", "without-tag", "wrong-value"),
    "tenant_form": ("meta._tenant", "meta.tenant"),
}
_FLAGS = {"stand_in": "--as"}
_KINDS: dict[str, type] = {"int": int, "int | None": int, "float": float, "Path | None": Path}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options of a command line; exits with 2 and a usage message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sandbox",
        description="An FHIR R4 server with made-up data and strict bulk export, for demo and tests.",
    )
    for field in fields(Options):
        flag = _FLAGS.get(field.name, "--" + field.name.replace("_", "-"))
        text = _HELP[field.name]
        if field.type == "bool":
            parser.add_argument(flag, action="store_true", help=text)
            continue
        parser.add_argument(
            flag,
            dest=field.name,
            type=_KINDS.get(str(field.type), str),
            default=field.default,
            choices=_CHOICES.get(field.name),
            metavar=None if field.name in _CHOICES else "VALUE",
            help=text if field.default in (None, "") else f"{text} (default: {field.default})",
        )
    options = Options(**vars(parser.parse_args(arguments)))
    for name, least in (("patients", 0), ("night", 1), ("file_lines", 1), ("page_size", 0), ("pad", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if options.fail_with and not 400 <= options.fail_with <= 599:
        parser.error("--fail-with must be 0 or a status from 400 to 599")
    if (options.certificate is None) != (options.key is None):
        parser.error("--certificate and --key go together")
    return options
