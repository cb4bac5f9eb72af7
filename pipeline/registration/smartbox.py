"""Smartbox: Aidbox with tenants; the Client belongs to one (azure-and-aidbox B)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pipeline.bulkdata.profiles import fhir_base, profile_of
from pipeline.config import Source
from pipeline.errors import ConfigError
from pipeline.registration import aidbox
from pipeline.registration.steps import JwkSet, Known, Registration, Step, TenantForm

FORMS: tuple[TenantForm, ...] = get_args(TenantForm)

_IN_URL = re.compile(r"/tenant/([^/]+)/")


def tenant(source: Source) -> str:
    """The tenant's id, by the key `tenant` or by the URL. Raises `ConfigError` where none is configured."""
    base = fhir_base(profile_of(source.profile, source.knobs), source.fhir_url, source.tenant)
    found = source.tenant or next(iter(_IN_URL.findall(base)), None)
    if found is None:
        raise ConfigError(f"source {source.name} names no tenant", "Set tenant to the id of the Tenant there")
    return found


def tenant_meta(name: str, form: TenantForm) -> dict[str, Any]:
    """The link to the tenant: `meta._tenant` for older boxes, `meta.tenant` for newer ones."""
    if form == "_tenant":
        return {"_tenant": name}
    return {"tenant": {"id": name, "resourceType": "Tenant"}}


def client(source: Source, jwks: JwkSet | None, known: Known, form: TenantForm) -> dict[str, Any]:
    """The body of the Client, linked to the tenant. Raises `ConfigError`."""
    return {**aidbox.client(source, jwks, known), "meta": tenant_meta(tenant(source), form)}


def registration(source: Source, jwks: JwkSet | None, known: Known) -> Registration:
    """The steps for `smartbox`: both forms of the Client unless `known.tenant_form` names one."""
    forms = (known.tenant_form,) if known.tenant_form else FORMS
    bodies: tuple[Mapping[str, Any], ...] = tuple(client(source, jwks, known, form) for form in forms)
    step = aidbox.client_step(source, bodies, known)
    if len(forms) > 1:
        note = (
            "One of the two: older boxes have meta._tenant, newer ones meta.tenant. Another Client of the "
            "box shows which. --tenant-form _tenant or --tenant-form tenant prints one alone."
        )
        step = Step(step.title, step.commands, step.requests, notes=(note, *step.notes))
    return Registration(
        source.name,
        source.profile,
        aidbox.client_id(source),
        (step, aidbox.policy_step(source)),
        aidbox.settings(source) | {"tenant": tenant(source)},
    )
