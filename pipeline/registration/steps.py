"""What is to be done, as data: steps with commands and requests, to be printed or given as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

JwkSet = Mapping[str, Any]
TenantForm = Literal["_tenant", "tenant"]

PLACEHOLDERS = {
    "<subscription-id>": "the Azure subscription of the FHIR service (`az account show --query id`)",
    "<resource-group>": "the resource group (or give --resource-group)",
    "<api-management>": "the name of the API Management service (or give --apim-name)",
    "<key-vault>": "the name of the Key Vault that ends in backkv (or give --vault)",
    "<secret-file>": "a file of mode 0600 that holds nothing but the client secret, without a line end",
    "<client-id>": "the application (client) id",
    "<principal-id>": "the object id of the identity: for a virtual machine's own one "
    "`az vm show --resource-group GROUP --name NAME --query identity.principalId --output tsv`",
    "<fhir-service-id>": "the Azure resource id of the FHIR service (its page in the portal, JSON view)",
    "<fhir-app-id>": "the application id of the FHIR resource application, whose roles tokens carry",
    "<storage-account>": "the name of the storage account that the FHIR service exports to",
    "<machine-group>": "the resource group of the virtual machine that this software runs on",
    "<virtual-machine>": "the name of the virtual machine that this software runs on",
    "<identity-id>": "the Azure resource id of the user-assigned managed identity",
    "<identity>": "the name of the user-assigned managed identity",
    "<cluster>": "the name of the AKS cluster that this software runs in",
    "<namespace>": "its Kubernetes namespace",
    "<service-account>": "its Kubernetes service account",
    "<fhir-tenant-id>": "the Entra tenant of the FHIR service",
    "<our-address>": "the address that this machine has in the internet",
    "<expiry>": "the instant when it ends, such as 2027-01-31T00:00Z",
}
"""Names that the configuration does not tell -> what to put there."""

_PLACEHOLDER = re.compile(r"<[a-z-]+>")


@dataclass(frozen=True)
class Known:
    """What the command line tells beyond the configuration; None where it does not."""

    resource_group: str | None = None
    apim_name: str | None = None
    vault: str | None = None
    """The vault's name, not its URL."""
    jwks_url: str | None = None
    """Where our JWK Set is served."""
    tenant_form: TenantForm | None = None
    secret_file: str | None = None
    """Where the client secret lies, as a path that a shell understands."""


@dataclass(frozen=True)
class Request:
    """One HTTP request with a JSON body, without its credential."""

    method: Literal["PUT"]
    url: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One thing to do: in words, as shell commands, as HTTP requests, or as a value to hand over."""

    title: str
    commands: tuple[str, ...] = ()
    requests: tuple[Request, ...] = ()
    hand_over: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Registration:
    """All that a system wants for one client."""

    source: str
    system: str
    client_id: str | None
    steps: tuple[Step, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    """Keys of the source in exports.yaml -> the value that goes with these steps."""

    @property
    def fill_in(self) -> dict[str, str]:
        """The placeholders in the commands -> what they stand for."""
        text = "\n".join(command for step in self.steps for command in step.commands)
        return {
            name: PLACEHOLDERS[name]
            for name in dict.fromkeys(_PLACEHOLDER.findall(text))
            if name in PLACEHOLDERS
        }

    def as_json(self) -> dict[str, Any]:
        """The same as data for scripts."""
        return {**asdict(self), "fill_in": self.fill_in}
