"""Azure API for FHIR and the FHIR service of Azure Health Data Services (azure-and-aidbox C).

Nothing is registered at the FHIR service itself: Entra knows the client, Azure gives its identity
roles there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.bulkdata.profiles import default_audience, profile_of
from pipeline.config import Source
from pipeline.registration.shell import command, into_file, output_of
from pipeline.registration.steps import Known, Registration, Step

EXPORTER = "FHIR Data Exporter"
READER = "FHIR Data Reader"

_WORKSPACE = re.compile(r"([a-z0-9]{3,24})-([a-z0-9-]+)\.fhir\.azurehealthcareapis\.\w+")
_API_FOR_FHIR = re.compile(r"([a-z0-9-]+)\.azurehealthcareapis\.\w+")

ENTERPRISE_APPLICATION = (
    "The object id is the one of the ENTERPRISE APPLICATION (`az ad sp show`). The app registration has "
    "another one (`az ad app show`); a role given to that one does nothing, and the answer stays HTTP 403."
)


@dataclass(frozen=True)
class FhirService:
    """What the host name says about the service in Azure; ids have placeholders for what it does not say."""

    resource_id: str
    workspace: str | None = None
    name: str | None = None


def fhir_service(fhir_url: str, known: Known) -> FhirService:
    """The service behind a FHIR URL: `{workspace}-{name}.fhir.azurehealthcareapis.com`, the older
    `{name}.azurehealthcareapis.com`, or any other host, of which nothing is known.
    """
    host = urlsplit(fhir_url).hostname or ""
    group = known.resource_group or "<resource-group>"
    provider = f"/subscriptions/<subscription-id>/resourceGroups/{group}/providers/Microsoft.HealthcareApis"
    found = _WORKSPACE.fullmatch(host)
    if found:
        workspace, name = found.groups()
        return FhirService(f"{provider}/workspaces/{workspace}/fhirservices/{name}", workspace, name)
    found = _API_FOR_FHIR.fullmatch(host)
    if found:
        return FhirService(f"{provider}/services/{found[1]}", None, found[1])
    return FhirService("<fhir-service-id>")


def registration(source: Source, known: Known) -> Registration:
    """The steps for `azure-fhir`; nothing of it is sent."""
    return Registration(
        source.name, source.profile, source.auth.client_id, steps(source, known), settings(source)
    )


def steps(source: Source, known: Known) -> tuple[Step, ...]:
    """The identity, and its roles at the FHIR service."""
    service = fhir_service(source.fhir_url, known)
    return (*_identity(source, known), _roles(source, service), _audience(source))


def audience(source: Source) -> str:
    """What tokens are for: as configured, else as the FHIR service's address says. Raises `ConfigError`."""
    profile = profile_of(source.profile, source.knobs)
    return source.auth.audience or default_audience(profile, source.fhir_url) or source.fhir_url


def settings(source: Source) -> dict[str, str]:
    """What the source must say in exports.yaml."""
    found = {"auth.kind": source.auth.kind, "auth.audience": audience(source)}
    if source.auth.kind == "entra-secret":
        found["auth.tenant_id"] = source.auth.tenant_id or ""
        found["auth.client_id"] = source.auth.client_id or ""
    elif source.auth.client_id:
        found["auth.client_id"] = source.auth.client_id
    return found


def _identity(source: Source, known: Known) -> tuple[Step, ...]:
    kind = source.auth.kind
    if kind == "managed-identity":
        return (_managed_identity(source),)
    if kind == "workload-identity":
        return (_workload_identity(source, known),)
    if kind == "entra-secret":
        return (_app_registration(source), _credential(source, known))
    return (
        Step(
            "Choose who this software is in Entra",
            notes=(
                "These systems take Entra tokens only: set auth.kind to managed-identity, workload-identity "
                f"or entra-secret (it is {kind}), and run this command again.",
            ),
        ),
    )


def _app_registration(source: Source) -> Step:
    client_id = source.auth.client_id or "<client-id>"
    return Step(
        "An app registration in Entra, with its enterprise application",
        commands=(
            command(
                "az",
                "ad",
                "app",
                "create",
                "--display-name",
                f"fhir-export-{source.name}",
                "--query",
                "appId",
                "--output",
                "tsv",
            ),
            command("az", "ad", "sp", "create", "--id", client_id),
        ),
        notes=(
            "Where it is there already, leave this out. The first command prints the application id: "
            "auth.client_id in exports.yaml.",
        ),
    )


def _credential(source: Source, known: Known) -> Step:
    client_id = source.auth.client_id or "<client-id>"
    if source.auth.certificate is not None:
        return Step(
            "Its certificate",
            commands=(
                command(
                    *("az", "ad", "app", "credential", "reset", "--id", client_id, "--append"),
                    *("--cert", "@certificate.pem"),
                ),
            ),
            notes=("certificate.pem is the certificate alone, without the private key.",),
        )
    path = known.secret_file or "<secret-file>"
    notes = [
        "--append keeps the secrets that are there. Secrets expire: note when, and make a new one before."
    ]
    if known.secret_file is None:
        notes.append(f"Put it where auth.client_secret says: {source.auth.client_secret}.")
    return Step(
        "Its client secret, into a file that nobody else reads",
        commands=(into_file(_new_secret(client_id), path),),
        notes=tuple(notes),
    )


def _new_secret(client_id: str) -> tuple[str, ...]:
    return (
        *("az", "ad", "app", "credential", "reset", "--id", client_id, "--append"),
        *("--display-name", "fhir-export", "--query", "password", "--output", "tsv"),
    )


def _managed_identity(source: Source) -> Step:
    if source.auth.client_id is None:
        return Step(
            "The system-assigned identity of the machine that this software runs on",
            commands=(
                command(
                    *("az", "vm", "identity", "assign", "--resource-group", "<machine-group>"),
                    *("--name", "<virtual-machine>"),
                ),
            ),
            notes=("For App Service, Container Apps and others: their page in the portal, Identity, On.",),
        )
    return Step(
        "The user-assigned identity, on the machine that this software runs on",
        commands=(
            command(
                *("az", "vm", "identity", "assign", "--resource-group", "<machine-group>"),
                *("--name", "<virtual-machine>", "--identities", "<identity-id>"),
            ),
        ),
        notes=(
            f"auth.client_id ({source.auth.client_id}) is the identity's client id: `az identity show "
            "--query clientId`. `--query id` gives its resource id.",
        ),
    )


def _workload_identity(source: Source, known: Known) -> Step:
    client_id = source.auth.client_id or "<client-id>"
    group = known.resource_group or "<resource-group>"
    issuer = output_of(
        *("az", "aks", "show", "--resource-group", group, "--name", "<cluster>"),
        *("--query", "oidcIssuerProfile.issuerUrl", "--output", "tsv"),
    )
    return Step(
        "A user-assigned identity that trusts our Kubernetes service account",
        commands=(
            command("az", "identity", "create", "--resource-group", group, "--name", "<identity>"),
            command(
                *("az", "identity", "federated-credential", "create", "--resource-group", group),
                *(
                    "--identity-name",
                    "<identity>",
                    "--name",
                    f"fhir-export-{source.name}",
                    "--issuer",
                    issuer,
                ),
                *("--subject", "system:serviceaccount:<namespace>:<service-account>"),
                *("--audiences", "api://AzureADTokenExchange"),
            ),
            command(
                *("kubectl", "annotate", "serviceaccount", "<service-account>", "--namespace", "<namespace>"),
                f"azure.workload.identity/client-id={client_id}",
            ),
        ),
        notes=('The pod carries the label azure.workload.identity/use: "true"; the webhook does the rest.',),
    )


def principal(client_id: str | None) -> str:
    """The object id that roles are given to: looked up by client id, or asked for."""
    if client_id is None:
        return "<principal-id>"
    return output_of("az", "ad", "sp", "show", "--id", client_id, "--query", "id", "--output", "tsv")


def role(name: str, who: str, scope: str) -> str:
    """The command that gives a role. The object id with its type needs no look-up of a new principal."""
    return command(
        *("az", "role", "assignment", "create", "--role", name, "--assignee-object-id", who),
        *("--assignee-principal-type", "ServicePrincipal", "--scope", scope),
    )


def our_principal(source: Source) -> str:
    """The object id of who signs in at the FHIR service."""
    client_id = source.auth.client_id
    if client_id is None and source.auth.kind != "managed-identity":
        client_id = "<client-id>"
    return principal(client_id)


def _roles(source: Source, service: FhirService) -> Step:
    who = our_principal(source)
    return Step(
        f"Its roles at the FHIR service: {EXPORTER} to export, {READER} for the read that `check` does",
        commands=(role(EXPORTER, who, service.resource_id), role(READER, who, service.resource_id)),
        notes=(ENTERPRISE_APPLICATION, "A new role takes up to ten minutes, and a new token, to be seen."),
    )


def _audience(source: Source) -> Step:
    return Step(
        "The audience that tokens are for",
        notes=(
            f"auth.audience: {audience(source)}. The FHIR service shows it under Authentication. It is "
            "compared letter by letter, a final slash too: a token for another audience gets HTTP 401.",
        ),
    )
