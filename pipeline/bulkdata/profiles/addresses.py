"""Addresses that follow from a profile: the FHIR base, the token endpoint, the audience (pure rules)."""

from __future__ import annotations

import re

from pipeline.bulkdata.profiles.profile import Profile
from pipeline.errors import ConfigError

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_AZURE_API_FOR_FHIR = re.compile(r"[a-z0-9-]+\.(azurehealthcareapis\.(?:com|us|cn))")


def fhir_base(profile: Profile, fhir_url: str, tenant: str | None = None) -> str:
    """The FHIR base of a source, without a final slash (azure-and-aidbox B).

    `fhir_url` is the box's address, or the FHIR base itself where it already ends as the profile's does.
    Raises ConfigError for a tenant that is missing, not a plain name, or another than the URL's.
    """
    url = fhir_url.rstrip("/")
    found = _tail(profile).search(url)
    if found is None:
        return url + _filled(profile, tenant)
    named = found.groupdict().get("tenant")
    if named is not None and tenant is not None and named != tenant:
        raise ConfigError(
            "fhir_url names one tenant and the key tenant another", "Leave one of them out, or correct it."
        )
    return url


def token_url(profile: Profile, fhir_url: str, tenant: str | None = None) -> str | None:
    """The token endpoint below the box's address; None: it is to be discovered. Raises as `fhir_base`."""
    if profile.token_path is None:
        return None
    return _tail(profile).sub("", fhir_base(profile, fhir_url, tenant)) + profile.token_path


def default_audience(profile: Profile, fhir_url: str) -> str | None:
    """What a token is for where `auth.audience` is absent; None: the token URL that is posted to.

    For Entra it is the FHIR service: its own address at Azure Health Data Services, one for all at the older
    Azure API for FHIR (azure-and-aidbox C). Raises ConfigError for an unreadable URL.
    """
    if profile.audience == "token-url":
        return None
    import httpx  # here, since Dagster loads the profiles

    from pipeline.auth.origins import printable

    try:
        url = httpx.URL(fhir_url)
    except httpx.InvalidURL:
        raise ConfigError("fhir_url cannot be read", "Give the FHIR base.") from None
    shared = _AZURE_API_FOR_FHIR.fullmatch(url.host)
    if shared is not None:
        return f"https://{shared[1]}"
    return printable(url.copy_with(path="/"))


def _tail(profile: Profile) -> re.Pattern[str]:
    path = re.escape(profile.base_path).replace(re.escape("{tenant}"), "(?P<tenant>[^/]+)")
    return re.compile(f"{path}$")


def _filled(profile: Profile, tenant: str | None) -> str:
    if "{tenant}" not in profile.base_path:
        return profile.base_path
    if tenant is None:
        raise ConfigError(
            f"profile {profile.name} needs to know the tenant",
            "Set tenant, or give fhir_url with the tenant in it.",
        )
    if not _TENANT.fullmatch(tenant):
        raise ConfigError("tenant is no plain name", "It is the id of the Tenant: letters, digits, '-', '.'.")
    return profile.base_path.replace("{tenant}", tenant)
