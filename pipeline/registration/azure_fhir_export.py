"""The Microsoft FHIR server that writes its exports into the customer's storage (azure-and-aidbox D)."""

from __future__ import annotations

from pipeline.config import DownloadStorage, Source
from pipeline.registration import azure_fhir
from pipeline.registration.azure_fhir import FhirService, fhir_service, principal, role
from pipeline.registration.shell import command, compact, output_of
from pipeline.registration.steps import Known, Registration, Step

CONTRIBUTOR = "Storage Blob Data Contributor"
READER = "Storage Blob Data Reader"


def registration(source: Source, known: Known) -> Registration:
    """The steps of `azure-fhir`, then the storage account: both roles, the export setting, the firewall."""
    service = fhir_service(source.fhir_url, known)
    storage = source.downloads.storage
    account = storage.account if storage else "<storage-account>"
    scope = _account_id(account)
    steps = (
        *azure_fhir.steps(source, known),
        _server_identity(service, known),
        _server_role(service, scope),
        _export_setting(service, account),
        _our_role(source, storage, account, scope),
        _firewall(service, account),
    )
    settings = azure_fhir.settings(source) | {
        "downloads.storage.account": account,
        "downloads.storage.kind": storage.kind if storage else "managed-identity",
    }
    return Registration(source.name, source.profile, source.auth.client_id, steps, settings)


def _account_id(account: str) -> str:
    return output_of(
        "az", "storage", "account", "show", "--name", account, "--query", "id", "--output", "tsv"
    )


def _server_identity(service: FhirService, known: Known) -> Step:
    group = known.resource_group or "<resource-group>"
    title = "The FHIR service has a managed identity of its own"
    if service.workspace is not None and service.name is not None:
        switch_on = command(
            *("az", "healthcareapis", "workspace", "fhir-service", "update", "--resource-group", group),
            *("--workspace-name", service.workspace, "--fhir-service-name", service.name),
            *("--identity-type", "SystemAssigned"),
        )
        return Step(title, commands=(switch_on,))
    switch_on = command(
        "az", "resource", "update", "--ids", service.resource_id, "--set", "identity.type=SystemAssigned"
    )
    return Step(title, commands=(switch_on,))


def _server_role(service: FhirService, scope: str) -> Step:
    who = output_of(
        *("az", "resource", "show", "--ids", service.resource_id),
        *("--query", "identity.principalId", "--output", "tsv"),
    )
    return Step(
        f"The FHIR service may write to the storage account: {CONTRIBUTOR}",
        commands=(role(CONTRIBUTOR, who, scope),),
        notes=("Without it a kick-off is accepted, and the job fails with HTTP 403 at its status URL.",),
    )


def _export_setting(service: FhirService, account: str) -> Step:
    return Step(
        "The FHIR service exports to this storage account",
        commands=(
            command(
                *("az", "resource", "update", "--ids", service.resource_id),
                # The whole object: az finds no way into one that is not there yet.
                *("--set", f"properties.exportConfiguration={compact({'storageAccountName': account})}"),
            ),
        ),
        notes=(
            "A service that is still to be made takes --export-configuration-storage-account-name in "
            "`az healthcareapis workspace fhir-service create`.",
        ),
    )


def _our_role(source: Source, storage: DownloadStorage | None, account: str, scope: str) -> Step:
    if storage is not None and storage.kind == "sas":
        return _sas(account, storage)
    if storage is not None and storage.kind in ("connection-string", "none"):
        return Step(
            "This software may read the files",
            notes=(
                f"downloads.storage.kind is {storage.kind}: nothing is to be registered. An identity with "
                f"the role {READER} is the safer way: it cannot write, and it has no key to lose.",
            ),
        )
    ours = storage is None or (storage.client_id is None and storage.kind in (source.auth.kind, "default"))
    who = azure_fhir.our_principal(source) if ours else principal(storage.client_id if storage else None)
    notes = [
        "The FHIR token does not open the storage account (it gets HTTP 403), and owning the account is no "
        "role for its data."
    ]
    if storage is None:
        notes.append(
            "downloads.storage is missing in exports.yaml: set account, and kind (managed-identity, "
            "workload-identity, service-principal or sas)."
        )
    return Step(
        f"This software may read the files: {READER}",
        commands=(role(READER, who, scope),),
        notes=tuple(notes),
    )


def _sas(account: str, storage: DownloadStorage) -> Step:
    return Step(
        "A SAS with which this software may read the files",
        commands=(
            command(
                *("az", "storage", "account", "generate-sas", "--account-name", account, "--services", "b"),
                *("--resource-types", "sco", "--permissions", "rl", "--https-only", "--expiry", "<expiry>"),
                *("--output", "tsv"),
            ),
        ),
        notes=(f"Put it where downloads.storage.sas says: {storage.sas}. Read and list are enough.",),
    )


def _firewall(service: FhirService, account: str) -> Step:
    return Step(
        "Only where the storage account has a firewall: let both of us in",
        commands=(
            command(
                *("az", "storage", "account", "network-rule", "add", "--account-name", account),
                *("--resource-id", service.resource_id, "--tenant-id", "<fhir-tenant-id>"),
            ),
            command(
                *("az", "storage", "account", "network-rule", "add", "--account-name", account),
                *("--ip-address", "<our-address>"),
            ),
        ),
        notes=(
            "A machine in Azure in the same region is not seen with its internet address: use --subnet with "
            "a service endpoint, or a private endpoint. A firewall says HTTP 403 AuthorizationFailure; a "
            "missing role says 403 AuthorizationPermissionMismatch.",
        ),
    )
