"""Aidbox and Smartbox: an installation and an empty box, which `register --apply` fills."""

from __future__ import annotations

from typing import Any

from course import export_entry
from installation import Installation

from pipeline.sandbox.process import SandboxProcess

ADMIN = "admin-of-the-box"


def box_entry(name: str, box: SandboxProcess, fhir_url: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "profile": name,
        "fhir_url": fhir_url,
        "auth": {"client_id": "nightly", "private_key": f"file:keys/{name}.pem"},
        "export": export_entry(),
        "flat": False,
        "current": False,
        "knobs": {"first_poll": 0.3, "throttled_wait": 0.5},
        **more,
    }


def register(site: Installation, name: str, *options: str) -> str:
    """`fhir-export register NAME --apply` with the box's admin token."""
    reference = site.secret("admin", ADMIN)
    done = site.cli("register", name, "--apply", "--admin-token", reference, *options)
    assert ADMIN not in done.stdout + done.stderr
    return done.stdout + done.stderr
