"""`fhir-export register`: how the steps look on a screen, and doing those that can be done from here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, Source, secret_path
from pipeline.errors import ConfigError
from pipeline.terminal.screen import give, say

if TYPE_CHECKING:
    from pipeline.registration.steps import JwkSet, Known, Registration, Step

PROMPT = "prompt"
"""In place of a secret's reference: ask for it on the terminal."""


@dataclass(frozen=True)
class Applying:
    """What `--apply` was given."""

    admin_token: str | None = None
    """Reference to a token, or to `user:password`."""
    client_secret: str | None = None
    """Reference to the client's Entra secret, or `PROMPT`."""
    vault: str | None = None
    """Name or URL of the Key Vault."""
    replace: bool = False


def find(config: Config, source: Source, known: Known) -> Registration:
    """What the source's system wants; nothing is sent. Raises `ConfigError`, and for a key in a vault
    `AuthError` and `Unreachable`.
    """
    from pipeline.registration.systems import needs_keys, registration

    jwks = _public_keys(config, source) if needs_keys(source, known) else None
    return registration(source, jwks, known)


def public_url(url: str | None) -> str | None:
    """The URL of our JWK Set, which servers fetch. Raises `ConfigError` unless it is a plain https URL."""
    from pipeline.auth.origins import require_secure

    if url is not None:
        require_secure(url)
        if "?" in url or "#" in url:
            raise ConfigError("--jwks-url carries a query or a fragment", "Give the URL of the JWK Set alone")
    return url


def secret_file(config: Config, source: Source, reference: str | None) -> str | None:
    """Where a `file:` reference points, quoted by whoever prints it; None for the other kinds."""
    chosen = reference or source.auth.client_secret
    path = secret_path(chosen, config.folder) if chosen and chosen != PROMPT else None
    return None if path is None else str(path)


def show(found: Registration) -> None:
    """The steps in order, as text: comments for people, commands and requests to be pasted."""
    client = f" for client '{found.client_id}'" if found.client_id else ""
    _give_comment(f"{found.source}: what {found.system} wants{client}")
    for number, step in enumerate(found.steps, 1):
        give("")
        _give_comment(f"{number}. {step.title}")
        _show_step(step)
    if found.settings:
        give("")
        give(f"# In exports.yaml, source {found.source}:")
        for name, value in found.settings.items():
            _give_comment(f"  {name}: {value}")
    if found.fill_in:
        give("")
        give("# To fill in:")
        for name, meaning in found.fill_in.items():
            _give_comment(f"  {name}: {meaning}")


def _give_comment(text: str) -> None:
    """A configured name with a line end in it must not become a line that is pasted into a shell."""
    give("# " + "".join(each if each.isprintable() else " " for each in text))


def _show_step(step: Step) -> None:
    for note in step.notes:
        _give_comment(f"   {note}")
    if step.hand_over is not None:
        give(json.dumps(step.hand_over, indent=2))
    if not step.requests:
        for command in step.commands:
            give(command)
        return
    for number, (request, command) in enumerate(zip(step.requests, step.commands, strict=True)):
        if number:
            give("\n# or, in the other form:")
        give(f"{request.method} {request.url}")
        give("Content-Type: application/json\n")
        give(json.dumps(request.body, indent=2))
        give("\n# the same with curl:")
        give(command)


def apply(config: Config, source: Source, known: Known, asked: Applying) -> list[dict[str, Any]]:
    """Does what can be done from here, and tells each answer. Raises `ConfigError` where that is nothing."""
    if source.auth.kind == "smart" and source.profile in ("aidbox", "smartbox"):
        return _apply_to_box(config, source, known, asked)
    if source.auth.kind == "smart" and source.profile == "apim-smart":
        return _apply_to_vault(config, source, asked)
    raise ConfigError(
        f"nothing of the registration for profile {source.profile} can be done from here",
        "Leave --apply out: the steps are printed, for those who may do them",
    )


def _apply_to_box(config: Config, source: Source, known: Known, asked: Applying) -> list[dict[str, Any]]:
    from pipeline.exports.connection import http_client
    from pipeline.network.known_hosts import KnownHosts
    from pipeline.registration import box

    if asked.admin_token is None:
        raise ConfigError(
            "--apply needs an administrator of the box", "Give --admin-token file:PATH or env:NAME"
        )
    if source.profile == "smartbox" and known.tenant_form is None:
        raise ConfigError(
            "--apply needs to know how the box links a Client to its tenant",
            "Give --tenant-form _tenant (older boxes) or --tenant-form tenant (newer)",
        )
    requests = [each for step in find(config, source, known).steps for each in step.requests]
    admin = box.administrator(config.secret(asked.admin_token))
    with http_client(KnownHosts.of([source.fhir_url])) as http:
        done = box.apply(http, requests, admin, replace=asked.replace, tell=say)
    for each in done:
        say(f"{each.what}: {each.outcome}")
    return [{"what": each.what, "outcome": each.outcome, "http_status": each.http_status} for each in done]


def _apply_to_vault(config: Config, source: Source, asked: Applying) -> list[dict[str, Any]]:
    from pipeline.registration import apim_smart, vault

    if asked.vault is None:
        raise ConfigError(
            "--apply needs the Key Vault", "Give --vault NAME: the one whose name ends in backkv"
        )
    name = apim_smart.secret_name(source)
    outcome = vault.store(
        asked.vault,
        config.keyvault_auth,
        config.folder,
        name=name,
        value=_client_secret(config, asked.client_secret),
        jwks_url=apim_smart.jwks_url(source.fhir_url),
    )
    say(f"secret {name}: {outcome}")
    say("The named value JWKS is still to be set: see the steps without --apply")
    return [{"what": f"secret {name}", "outcome": outcome}]


def _client_secret(config: Config, reference: str | None) -> str | None:
    if reference is None:
        return None
    if reference == PROMPT:
        from getpass import getpass

        value = getpass("The client's Entra secret: ")
    else:
        value = config.secret(reference).decode("utf-8", "replace")
    if not value.strip():
        raise ConfigError("the client secret is empty", "Give its value, not its id")
    return value.strip()


def _public_keys(config: Config, source: Source) -> JwkSet:
    from pipeline.auth.jwk import jwk_set
    from pipeline.exports.connection import ring_for

    return jwk_set(*ring_for(config, source).public_jwks())
