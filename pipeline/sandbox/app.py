"""The application: every endpoint of the server, put together."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from pipeline.sandbox.accesslog import AccessLog
from pipeline.sandbox.assertions import AssertionVerifier
from pipeline.sandbox.bulk import BulkExport
from pipeline.sandbox.control import Control
from pipeline.sandbox.faults import Faults
from pipeline.sandbox.jobs import Jobs
from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import broken, refuse
from pipeline.sandbox.reads import Reads
from pipeline.sandbox.scopes import parse_scopes
from pipeline.sandbox.tokens import Tokens


def build_app(options: Options, base_url: str) -> ASGIApp:
    """The ASGI application that answers at `base_url` (no final slash). ValueError for malformed scopes."""
    registered = parse_scopes(options.scope)
    if registered is None:
        raise ValueError("--scope must be system scopes that read and search, separated by spaces")
    verifier = AssertionVerifier(options.jwks, options.client_id, base_url + "/auth/token")
    tokens = Tokens(verifier, registered, options.token_seconds or 300, options.expires_in)
    jobs = Jobs(options)
    faults = Faults(jobs, tokens, options.faults)
    bulk = BulkExport(options, base_url, tokens, jobs)
    reads = Reads(options, base_url + "/fhir", base_url + "/auth/token", tokens, jobs)
    control = Control(jobs, tokens, faults)
    both = ["GET", "POST"]
    app = Starlette(
        routes=[
            Route("/fhir/.well-known/smart-configuration", reads.smart_configuration),
            Route("/fhir/metadata", reads.capability_statement),
            Route("/auth/token", tokens.endpoint, methods=["POST"]),
            Route("/control", control.endpoint, methods=both),
            Route("/fhir/$export", bulk.kick_off, methods=both),
            Route("/fhir/Patient/$export", bulk.kick_off, methods=both),
            Route("/fhir/Group/{group}/$export", bulk.kick_off, methods=both),
            Route("/bulk/status/{job}", bulk.status),
            Route("/bulk/status/{job}", bulk.delete, methods=["DELETE"]),
            Route("/bulk/status/{job}/pages/{page:int}", bulk.manifest_page),
            Route("/bulk/files/{job}/{number:int}.ndjson", bulk.file),
            Route("/fhir/{type}/{id}", reads.read),
            Route("/fhir/{type}", reads.search),
        ],
        exception_handlers={HTTPException: refuse, Exception: broken},
    )
    return AccessLog(options.access_log).wrap(faults.wrap(app))
