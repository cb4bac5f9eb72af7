"""From a source to the registration that its system wants."""

from __future__ import annotations

from pipeline.config import Source
from pipeline.registration import aidbox, apim_smart, azure_fhir, azure_fhir_export, smart, smartbox
from pipeline.registration.steps import JwkSet, Known, Registration, Step


def needs_keys(source: Source, known: Known) -> bool:
    """Whether the public keys themselves are part of it; a URL of ours stands for them at Aidbox."""
    if source.auth.kind != "smart" or source.profile in ("azure-fhir", "azure-fhir-export"):
        return False
    return source.profile in ("smart", "apim-smart") or (known.jwks_url or source.auth.jku) is None


def registration(source: Source, jwks: JwkSet | None, known: Known) -> Registration:
    """What the source's system wants. `jwks` is given where `needs_keys`. Raises `ConfigError`."""
    if source.profile == "azure-fhir":
        return azure_fhir.registration(source, known)
    if source.profile == "azure-fhir-export":
        return azure_fhir_export.registration(source, known)
    if source.auth.kind != "smart":
        return _nothing(source)
    if source.profile == "aidbox":
        return aidbox.registration(source, jwks, known)
    if source.profile == "smartbox":
        return smartbox.registration(source, jwks, known)
    if source.profile == "apim-smart":
        return apim_smart.registration(source, jwks or {"keys": []}, known)
    return smart.registration(source, jwks or {"keys": []}, known)


def _nothing(source: Source) -> Registration:
    words = (
        f"auth.kind is {source.auth.kind}: there is no key of ours to register at a server of this profile."
    )
    return Registration(
        source.name, source.profile, source.auth.client_id, (Step("Nothing to register", notes=(words,)),)
    )
