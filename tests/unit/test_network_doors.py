"""What a source's configuration opens: the FHIR server's host, and of sign-in addresses one port each."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.errors import AuthError, ServerRefused
from pipeline.exports.connection import known_hosts
from pipeline.network.known_hosts import KnownHosts

FHIR = "https://fhir.hospital.example/r4"
ENTRA = {
    "kind": "entra-secret",
    "tenant_id": "contoso.example",
    "client_id": "me",
    "client_secret": "env:SECRET",
}
SMART = {"client_id": "me", "private_key": "env:KEY"}
PRIVATE = [ipaddress.ip_address("10.1.2.3")]


def known(**auth: str) -> KnownHosts:
    entry = {"name": "hosp", "fhir_url": FHIR, "auth": auth, "export": {"level": "system"}}
    config = Config.model_validate({"lake": "lake", "sources": [entry], "folder": Path()})
    return known_hosts(config, config.source(None))


@pytest.mark.parametrize(
    "auth",
    [
        {**SMART, "token_url": "https://login.clinic.local:8443/token"},
        {**ENTRA, "authority": "https://login.clinic.local:8443"},
    ],
)
def test_a_sign_in_address_is_a_door_and_not_a_host(auth: dict[str, str]) -> None:
    found = known(**auth)
    found.check("https://login.clinic.local:8443/token")
    found.check_addresses("login.clinic.local", 8443, PRIVATE)
    for other in ("https://login.clinic.local/f", "https://login.clinic.local:22/f"):
        with pytest.raises(ServerRefused):
            found.check(other)
    with pytest.raises(ServerRefused):
        found.check_addresses("login.clinic.local", 443, PRIVATE)


@pytest.mark.parametrize(
    "auth",
    [
        {**SMART, "token_url": "http://127.0.0.1:8443/token"},
        {**ENTRA, "authority": "https://localhost:8443"},
    ],
)
def test_a_sign_in_address_on_this_machine_opens_nothing_else_of_it(auth: dict[str, str]) -> None:
    """A proxy to the sign-in may run here; no manifest of a server elsewhere leads to its neighbours."""
    found = known(**auth)
    found.check(auth.get("token_url") or auth["authority"])
    for other in ("https://127.0.0.1:9000/f", "https://[::1]:8443/f", "https://127.0.0.2:8443/f"):
        with pytest.raises(ServerRefused):
            found.check(other)


def test_entras_own_address_may_be_private() -> None:
    """Split DNS: the network's own resolver gives login.microsoftonline.com an address inside."""
    found = known(**ENTRA)
    found.check_addresses("login.microsoftonline.com", 443, PRIVATE)
    with pytest.raises(ServerRefused):
        found.check_addresses("login.microsoftonline.com", 8443, PRIVATE)
    with pytest.raises(ServerRefused):  # where another authority is named, this one is nobody's
        other = known(**ENTRA, authority="https://login.microsoftonline.us")
        other.check_addresses("login.microsoftonline.com", 443, PRIVATE)


def test_a_token_endpoint_inside_that_nobody_named_tells_which_key_allows_it() -> None:
    with pytest.raises(AuthError, match=r"auth\.token_url.*auth\.authority"):
        known(**SMART).check_addresses("login.microsoftonline.com", 443, PRIVATE, AuthError)
