"""A stand-in for each of the five systems that the client must work with, as strict as they are.

One module per system over shared parts: `export` has the endpoints that all have, `microsoft` what API
Management and the Azure servers share, `registry` and `aidbox_token` what Aidbox and Smartbox share,
`landing` and `signed` how files reach their reader. Written from azure-and-aidbox A to E; nothing here knows
the client.
"""

from __future__ import annotations

from pipeline.sandbox.addresses import Addresses, Served
from pipeline.sandbox.options import Options


def build_stand_in(options: Options, addresses: Addresses) -> Served:
    """The application for `options.stand_in`. ValueError where an option that it needs is missing."""
    from pipeline.sandbox.standins.aidbox import build as build_aidbox
    from pipeline.sandbox.standins.apim import build as build_apim
    from pipeline.sandbox.standins.azure import build as build_azure

    build = {
        "apim": build_apim,
        "aidbox": build_aidbox,
        "smartbox": build_aidbox,
        "azure-fhir": build_azure,
        "azure-export": build_azure,
    }
    return build[options.stand_in or ""](options, addresses)
