"""The directory of one tenant: applications with their credentials and roles, identities, resources."""

from __future__ import annotations

import hmac
import time
import uuid
from dataclasses import dataclass, field

from cryptography import x509

STORAGE = "https://storage.azure.com"
VAULT = "https://vault.azure.net"
_FIRST_PARTY = (STORAGE, VAULT, "https://graph.microsoft.com", "https://management.azure.com")


@dataclass
class Secret:
    """A client secret; `until` in seconds since 1970."""

    value: str
    until: float | None = None

    def expired(self) -> bool:
        """Whether its time is over."""
        return self.until is not None and self.until <= time.time()


@dataclass(frozen=True)
class Federation:
    """Whose tokens stand for an application: compared exactly, case included, as Entra does since 2024."""

    issuer: str
    subject: str
    audience: str = "api://AzureADTokenExchange"


@dataclass
class Principal:
    """Who tokens are issued to. `roles`: audience without its final slash -> app roles."""

    client_id: str
    object_id: str
    roles: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Application(Principal):
    """An app registration with its service principal."""

    secrets: list[Secret] = field(default_factory=list)
    certificates: list[x509.Certificate] = field(default_factory=list)
    federations: list[Federation] = field(default_factory=list)

    def find_secret(self, value: str) -> Secret | None:
        """The one with that value."""
        wanted = value.encode()
        return next((one for one in self.secrets if hmac.compare_digest(one.value.encode(), wanted)), None)


@dataclass
class Identity(Principal):
    """A managed identity of the machine."""

    system: bool = True
    resource_id: str | None = None


class Directory:
    """Everything Entra knows; changed by the control endpoint only."""

    def __init__(self) -> None:
        self.applications: dict[str, Application] = {}
        self.identities: list[Identity] = []
        self._resources = set(_FIRST_PARTY)

    def application(self, client_id: str) -> Application | None:
        """By its client id, whatever the case (GUIDs are compared so)."""
        return self.applications.get(client_id.lower())

    def add_application(self, client_id: str | None, object_id: str | None) -> Application:
        """The one that is there, or a new one."""
        client_id = client_id or str(uuid.uuid4())
        known = self.application(client_id)
        if known is None:
            known = Application(client_id, object_id or str(uuid.uuid4()))
            self.applications[client_id.lower()] = known
        elif object_id is not None:
            known.object_id = object_id
        return known

    def grant(self, principal: Principal, roles: dict[str, list[str]]) -> None:
        """App roles of that principal, audience by audience; an audience is a resource from then on."""
        for audience, names in roles.items():
            self.allow_resource(audience)
            principal.roles[_plain(audience)] = list(names)

    def allow_resource(self, audience: str) -> None:
        """Tokens for that audience may be asked for."""
        self._resources.add(_plain(audience))

    def knows_resource(self, audience: str) -> bool:
        """With or without the final slash, which stays in the token as it was asked for."""
        return _plain(audience) in self._resources

    def roles_of(self, principal: Principal, audience: str) -> list[str]:
        """The app roles for the `roles` claim."""
        return principal.roles.get(_plain(audience), [])

    def identity(
        self, client_id: str | None, object_id: str | None, resource_id: str | None
    ) -> Identity | None:
        """The managed identity that a request names; without a name the system-assigned one."""
        for one in self.identities:
            if client_id is not None:
                found = not one.system and one.client_id.lower() == client_id.lower()
            elif object_id is not None:
                found = not one.system and one.object_id.lower() == object_id.lower()
            elif resource_id is not None:
                found = (one.resource_id or "").lower() == resource_id.lower()
            else:
                found = one.system
            if found:
                return one
        return None


def _plain(audience: str) -> str:
    return audience.removesuffix("/")
