"""`apim`: API Management in front of Azure FHIR, the SMART on FHIR g10 sample (azure-and-aidbox A)."""

from __future__ import annotations

import re
import secrets
import uuid
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import jwt
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.sandbox.accesslog import AccessLog, note
from pipeline.sandbox.addresses import Addresses, Served
from pipeline.sandbox.assertions import AssertionRefused, AssertionVerifier, decode_keys
from pipeline.sandbox.control import Control
from pipeline.sandbox.exporting import PlannedFile
from pipeline.sandbox.faults import Faults
from pipeline.sandbox.jobs import Job
from pipeline.sandbox.options import Options
from pipeline.sandbox.outcomes import Refusal, broken, json_response, refuse
from pipeline.sandbox.reads import Reads
from pipeline.sandbox.standins.bearer import Bearers, Claims, Issuer, keys_from, needs_role
from pipeline.sandbox.standins.export import Asked
from pipeline.sandbox.standins.microsoft import MicrosoftExports
from pipeline.sandbox.standins.signed import storage_error

_PREFIX = "/smart"
_STATUS = "/_operations/export/{job}"
_GROUP = re.compile(r"[A-Za-z0-9-]+")
_AUDIENCE = "https://sandbox.fhir.azurehealthcareapis.com"
_ISSUER = "https://sts.windows.net/9f4d2c1e-0000-4000-8000-6a1b7c5d3e2f/"
_ROLE = "system.all.read"
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def build(options: Options, addresses: Addresses) -> Served:
    """The application; `--apim-host` says what it takes itself for, which may differ from where it is."""
    base = addresses.base_url
    front = _origin(options.apim_host, base)
    shown = front if options.apim_host_in_urls else base
    issuer = Issuer()
    audience = options.token_audience or _AUDIENCE
    role = _ROLE if options.token_role is None else options.token_role
    sources = [issuer.keys, *([keys_from(options.token_keys)] if options.token_keys else [])]
    gate = Bearers(sources, audience, options.token_issuer, needs_role(role))
    exports = ApimExports(options, shown, addresses.storage_url, gate)
    sign_in = SignIn(options, front + "/auth/token", base + _PREFIX, audience, issuer, gate)
    reads = Reads(options, base + _PREFIX, shown + "/auth/token", gate, exports.jobs)
    faults = Faults(exports.jobs, gate, options.faults)
    control = Control(exports.jobs, gate, faults)

    async def smart_configuration(_request: Request) -> Response:
        return json_response(_configuration(shown))

    app = Starlette(
        routes=[
            Route("/control", control.endpoint, methods=["GET", "POST"]),
            Route("/auth/token", sign_in.endpoint, methods=["POST"]),
            Route("/smart/.well-known/smart-configuration", smart_configuration),
            Route("/smart/.well-known/jwks.json", sign_in.named_value),
            Route("/smart/metadata", reads.capability_statement),
            Route("/smart/Group/{group}/$export", exports.kick_off),
            Route(_PREFIX + _STATUS, exports.status),
            Route(_PREFIX + _STATUS, exports.delete, methods=["DELETE"]),
            Route("/smart/_export/{container}/{folder}/{name}", exports.file),
            Route("/smart/{type}/{id}", reads.read),
            Route("/smart/{type}", reads.search),
            Route("/blob/{path:path}", exports.blob),
        ],
        exception_handlers={HTTPException: refuse, Exception: broken},
    )
    logged = AccessLog(options.access_log, names_only=True).wrap(faults.wrap(app))
    return Served(logged, base + _PREFIX, base + "/auth/token", front + "/auth/token")


def _origin(host: str | None, base: str) -> str:
    if host is None:
        return base
    return host.rstrip("/") if "://" in host else f"{urlsplit(base).scheme}://{host}"


def _configuration(base: str) -> dict[str, object]:
    """Without system scopes, without signing algorithms."""
    return {
        "authorization_endpoint": base + "/auth/authorize",
        "token_endpoint": base + "/auth/token",
        "token_endpoint_auth_methods_supported": [
            "client_secret_basic",
            "client_secret_post",
            "private_key_jwt",
        ],
        "grant_types_supported": ["authorization_code", "client_credentials"],
        "scopes_supported": ["openid", "profile", "launch/patient", "fhirUser", "patient/*.rs", "user/*.rs"],
        "response_types_supported": ["code"],
        "code_challenge_methods_supported": ["S256"],
        "capabilities": [
            "launch-ehr",
            "launch-standalone",
            "client-confidential-asymmetric",
            "permission-v2",
        ],
    }


class SignIn:
    """`POST /auth/token` with a Key Vault behind it that is read on every call, and the named value `JWKS`.

    The secret of the client: its name is the client id, its tag `jwks_url` points at the named value.
    """

    def __init__(
        self,
        options: Options,
        audience: str,
        fhir_url: str,
        entra_audience: str,
        issuer: Issuer,
        gate: Bearers,
    ) -> None:
        self._options = options
        self._jwks_url = fhir_url + "/.well-known/jwks.json"
        self._entra_audience = entra_audience
        self._issuer = issuer
        self._gate = gate
        self._verifier = AssertionVerifier(
            self._jwks_url, options.client_id, audience, keys=lambda: decode_keys(self._named_value())
        )

    async def named_value(self, _request: Request) -> Response:
        """`/smart/.well-known/jwks.json`: what the operator pasted, to the byte."""
        try:
            return Response(self._named_value(), media_type="application/json")
        except AssertionRefused:
            raise Refusal(404, "not-found", "The named value JWKS is empty") from None

    async def endpoint(self, request: Request) -> Response:
        """A token of Entra's, or an error that is none of OAuth's."""
        self._gate.requests += 1
        if request.headers.get("content-type", "").lower() != "application/x-www-form-urlencoded":
            return _failure(400, "Content Type must be application/x-www-form-urlencoded")
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True))
        if form.get("grant_type") != "client_credentials" or not form.get("client_assertion_type"):
            return _failure(400, "Token request invalid")
        if form["client_assertion_type"] != _ASSERTION_TYPE:
            return _failure(400, "Token request invalid")
        # `scope` is not looked at: it is replaced by {audience}/.default.
        try:
            client = jwt.decode(form.get("client_assertion", ""), options={"verify_signature": False})["sub"]
        except (jwt.PyJWTError, KeyError):
            return _failure(400, "Token request invalid")
        vault = self._options.vault_entry
        if client != self._options.client_id or vault in ("absent", "without-tag"):
            return _failure(401, "The Key Vault holds no usable secret of that name")
        try:
            await run_in_threadpool(self._verifier.verify, form["client_assertion"])
        except AssertionRefused as error:
            return _failure(401, str(error))
        if vault == "wrong-value":
            return _failure(500, "Entra refused the client secret")
        return self._token(client)

    def _token(self, client: str) -> Response:
        seconds = self._options.token_seconds or 3600 + secrets.randbelow(1800)
        claims: Claims = {
            "iss": self._options.token_issuer or _ISSUER,
            "aud": self._entra_audience,
            "appid": client,
            "oid": str(uuid.uuid5(uuid.NAMESPACE_URL, client)),
            "roles": [self._options.granted_role],
        }
        told = {"expires_in": seconds, "ext_expires_in": seconds}
        if self._options.expires_in == "string":
            told = {name: str(value) for name, value in told.items()}  # type: ignore[misc]
        answer = {
            "token_type": "Bearer",
            **({} if self._options.expires_in == "absent" else told),
            "access_token": self._issuer.issue(claims, seconds),
        }
        return json_response(answer, headers={"Cache-Control": "no-store", "Pragma": "no-cache"})

    def _named_value(self) -> bytes:
        source = self._options.named_value or (Path(self._options.jwks) if self._options.jwks else None)
        try:
            return b"" if source is None else source.read_bytes()
        except OSError:
            raise AssertionRefused("The named value JWKS is empty") from None


def _failure(status: int, message: str) -> Response:
    content = {"Name": "TokenInputFilter", "Id": str(uuid.uuid4()), "Code": status, "Message": message}
    return json_response(content, status)


class ApimExports(MicrosoftExports):
    """Group level only, everything in the caller's own container, files through the front."""

    forced = frozenset({"_container"})

    def __init__(self, options: Options, base_url: str, storage_url: str, gate: Bearers) -> None:
        self._storage_url = storage_url
        self._bearers = gate
        super().__init__(options, base_url, _PREFIX, _STATUS, gate)

    def read(self, request: Request, level: str) -> Asked:
        """As the server behind it, which gets the caller's object id as `_container`."""
        if not _GROUP.fullmatch(request.path_params["group"]):
            raise Refusal(404, "not-found", "Resource not found")
        asked = super().read(request, level)
        owner = self._caller(request)
        return Asked(asked.pairs, asked.raw, owner, owner, asked.failure)

    def manifest(self, request: Request, job: Job, files: list[PlannedFile]) -> Response:
        """`requiresAccessToken` is forced; `output` is rewritten, `error` is not."""
        if job.owner != self._caller(request):
            raise Refusal(401, "security", "The export belongs to another object id")
        if self._options.empty_is_404 and not files:
            return Response(status_code=404)
        error = {
            "type": "OperationOutcome",
            "url": f"{self._storage_url}/blob/{job.container}/{job.id}-error.ndjson",
        }
        front = f"{self._base}/smart/_export/{job.container}"
        return self.respond(
            {
                "transactionTime": self.transaction_time(job),
                "request": job.request.url,
                "requiresAccessToken": True,
                "output": [
                    {
                        "type": file.resource_type,
                        "url": f"{front}/{self.blob_path(job, files, number)}",
                        "count": file.count,
                    }
                    for number, file in enumerate(self.shown(files))
                ],
                "error": [error] if self._options.error_file else [],
            }
        )

    async def file(self, request: Request) -> Response:
        """The whole blob, buffered; a Range is not understood."""
        self._gate.authorize(request)
        wanted = request.path_params
        if wanted["container"] != self._caller(request):
            raise Refusal(401, "security", "The container belongs to another object id")
        job = self.jobs.living(wanted["folder"].rpartition("-")[2])
        files = job.files if self.jobs.state_of(job) == "complete" else None
        for number, file in enumerate(files or []):
            if self.blob_path(job, files or [], number) == f"{wanted['folder']}/{wanted['name']}":
                content = await run_in_threadpool(self.body, job, file)
                return Response(content, media_type="application/octet-stream")
        raise Refusal(404, "not-found", "There is no such file")

    async def blob(self, request: Request) -> Response:
        """The blob host, where nobody gets anything without a credential of the storage account."""
        if "authorization" in request.headers:
            note(request, "bearer at the blob host")
            return storage_error(403, "AuthenticationFailed")
        return storage_error(409, "PublicAccessNotPermitted")

    def _caller(self, request: Request) -> str:
        return str(self._bearers.claims(request).get("oid", ""))
