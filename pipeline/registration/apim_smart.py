"""Azure API Management in front of Azure FHIR, the SMART on FHIR (g10) sample (azure-and-aidbox A)."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pipeline.config import Source
from pipeline.errors import ConfigError
from pipeline.registration.shell import command, compact, into_file, output_of
from pipeline.registration.steps import JwkSet, Known, Registration, Step

APP_ROLE = "system.all.read"
NAMED_VALUE = "JWKS"
LONGEST_NAMED_VALUE = 4096
"""Characters that API Management takes."""

_SECRET_NAME = re.compile(r"[0-9A-Za-z-]{1,127}")


def jwks_url(fhir_url: str) -> str:
    """Where the sample serves the named value: `{apim}/smart/.well-known/jwks.json`.

    `fhir_url` is `{apim}/smart`, or a base below another path that ends in it.
    """
    parts = urlsplit(fhir_url)
    path = parts.path.rstrip("/")
    prefix = path if path.endswith("/smart") else f"{path}/smart"
    return f"{parts.scheme}://{parts.netloc}{prefix}/.well-known/jwks.json"


def secret_name(source: Source) -> str:
    """The name of the client's secret in the vault: its client id. Raises `ConfigError` for one that
    Key Vault cannot have as a name.
    """
    client_id = source.auth.client_id or ""
    if _SECRET_NAME.fullmatch(client_id) is None:
        raise ConfigError(
            f"source {source.name}: auth.client_id {client_id!r} cannot be the name of a Key Vault secret",
            "For apim-smart it is the application id of the client's app registration in Entra",
        )
    return client_id


def registration(source: Source, jwks: JwkSet, known: Known) -> Registration:
    """The steps for `apim-smart`. Raises `ConfigError` for a client id that cannot be."""
    client_id = secret_name(source)
    steps = (
        _secret_and_role(client_id, known),
        _vault_secret(source, client_id, known),
        _named_value(jwks, known),
        _audience(source),
    )
    settings = {
        "fhir_url": source.fhir_url,
        "auth.client_id": client_id,
        "auth.audience": source.auth.audience or _token_url(source),
    }
    return Registration(source.name, source.profile, client_id, steps, settings)


def _secret_and_role(client_id: str, known: Known) -> Step:
    role_id = output_of(
        *("az", "ad", "sp", "show", "--id", "<fhir-app-id>"),
        *("--query", f"appRoles[?value=='{APP_ROLE}'].id", "--output", "tsv"),
    )
    secret = (
        *("az", "ad", "app", "credential", "reset", "--id", client_id, "--append"),
        *("--display-name", "fhir-export", "--query", "password", "--output", "tsv"),
    )
    return Step(
        f"The client's app registration: a secret for API Management, and the app role {APP_ROLE}",
        commands=(
            into_file(secret, known.secret_file or "<secret-file>"),
            f"ROLE_ID={_quoted(role_id)}",
            f"{command('az', 'ad', 'app', 'permission', 'add', '--id', client_id, '--api', '<fhir-app-id>')}"
            ' --api-permissions "$ROLE_ID=Role"',
            command("az", "ad", "app", "permission", "admin-consent", "--id", client_id),
        ),
        notes=(
            "The secret is for API Management alone: we sign in with our key, it signs in at Entra with "
            "the secret.",
            f"Ask for {APP_ROLE}: since July 2026 the FHIR server answers 403 to exports with user.* scopes.",
        ),
    )


def _quoted(word: str) -> str:
    return f'"{word}"'


def _vault_secret(source: Source, client_id: str, known: Known) -> Step:
    return Step(
        "The Key Vault secret that the token endpoint reads: name = client id, value = its Entra secret",
        commands=(
            command(
                *("az", "keyvault", "secret", "set", "--vault-name", known.vault or "<key-vault>"),
                *("--name", client_id, "--file", known.secret_file or "<secret-file>", "--encoding", "utf-8"),
                *("--tags", f"jwks_url={jwks_url(source.fhir_url)}"),
            ),
        ),
        notes=(
            "The vault is the one whose name ends in backkv. It is read at every sign-in: nothing is to be "
            "restarted. Where the JWKS is served elsewhere, put that URL into the tag.",
            "`--apply --vault NAME --client-secret file:PATH` does this step.",
        ),
    )


def _named_value(jwks: JwkSet, known: Known) -> Step:
    where = (
        *("--resource-group", known.resource_group or "<resource-group>"),
        *("--service-name", known.apim_name or "<api-management>", "--named-value-id", NAMED_VALUE),
    )
    text = compact(jwks)
    notes = [
        "The value replaces what is there. The first command shows it: keys of other clients are to be put "
        'into "keys" too. Where there is none yet, write `create --display-name JWKS` for `update`.',
        "Rotated keys: run this command again once `fhir-export keys rotate` has made the next key, before "
        "it signs.",
    ]
    if len(text) > LONGEST_NAMED_VALUE:
        notes.append(
            f"This JWK Set has {len(text)} characters, and a named value takes {LONGEST_NAMED_VALUE}: "
            "remove keys that sign no more."
        )
    return Step(
        f"The named value {NAMED_VALUE} in API Management: our public keys",
        commands=(
            command("az", "apim", "nv", "show", *where, "--query", "value", "--output", "tsv"),
            command("az", "apim", "nv", "update", *where, "--value", text),
        ),
        hand_over=dict(jwks),
        notes=tuple(notes),
    )


def _token_url(source: Source) -> str:
    parts = urlsplit(source.fhir_url)
    return source.auth.token_url or f"{parts.scheme}://{parts.netloc}/auth/token"


def _audience(source: Source) -> Step:
    audience = source.auth.audience or _token_url(source)
    return Step(
        "Only where API Management has a custom domain: the audience",
        notes=(
            f"The assertion must be for exactly https://{{ApiManagementHostName}}/auth/token; now it is for "
            f"{audience}. The named value ApiManagementHostName tells the host; set auth.audience where it "
            "is another one than in the URL that is called.",
        ),
    )
