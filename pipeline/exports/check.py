"""The connectivity check: small requests that find out what is wrong before a night is lost on it.

The verdicts come in the order that finds the cause (azure-and-aidbox C): each rests on those before it, so
the first one that is bad is the one to mend. Nothing is exported, nothing printed.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from pipeline.config import Config, Source
from pipeline.errors import (
    AuthError,
    ConfigError,
    DownloadRefused,
    ExportError,
    LakeError,
    ServerRefused,
    Unreachable,
    VerificationFailed,
)
from pipeline.exports.clocks import Clocks
from pipeline.exports.token_claims import claims_of, uncovered
from pipeline.exports.verdict import Course, Doubtful, NotNeeded, Verdict, first_bad

if TYPE_CHECKING:
    import httpx

    from pipeline.auth.bearer import BearerAuth
    from pipeline.bulkdata.answers import ReadAnswer
    from pipeline.bulkdata.client import BulkClient
    from pipeline.network.known_hosts import KnownHosts

__all__ = ["Verdict", "check_source", "first_bad"]

_SERVER_SAYS = re.compile(r" answered (.*)", re.DOTALL)
_ABOUT_THE_KEY = re.compile(r"\b(kid|keys?|jwks?|jwk set|signature)\b", re.IGNORECASE)
_ABOUT_THE_CLIENT = re.compile(
    r"\b(issuer|iss|subject|sub)\b|\b(unknown|no( active)?) client\b|\bclient\b.*\b(unknown|not|no)\b",
    re.IGNORECASE,
)
_ABOUT_WHO_WE_ARE = re.compile(r"^(invalid_client|invalid_grant|invalid_request)\b")


def check_source(config: Config, source: Source) -> list[Verdict]:
    """Looks at server, capability, key or identity, sign-in address, token, a small read, the group, what
    later exports ask for, the export storage, the lake and the clock, in that order; what a source does not
    need is left out. At the end
    `permissions`, where other users of this machine can read keys, secrets or the lake.

    Returns a verdict for each and raises nothing for what it finds. Every request is small and reads only; in
    the lake one probe file is created and removed.
    """
    from pipeline.exports.connection import http_client

    course, clocks = Course(), Clocks()
    with http_client(_known_hosts(config, source), source.timeouts) as http:
        clocks.listen(http)
        look = _Looks(config, source, http)
        course.look("server", look.server)
        course.look("capability", look.capability, after=("server",))
        who = _who(source)
        course.look(who, look.key if who == "key" else look.identity)
        if source.auth.kind in ("smart", "entra-secret"):
            course.look("sign-in address", look.sign_in_address, after=("server", "capability"))
        if source.auth.kind != "none":
            course.look("token", look.token, after=(who, "sign-in address"))
        needed = ("server", "capability", who, "token")
        course.look("read", look.read, after=needed)
        if source.export.level == "group":
            course.look("group", look.group, after=(*needed, "read"))
        course.look("incremental", look.incremental, after=(*needed, "read", "group"))
        if look.reads_storage():
            course.look("export storage", look.export_storage)
    course.look("lake", look.lake)
    course.look("clock", clocks.verdict)
    return [*course.verdicts, *_open_to_others(config, source)]


def _open_to_others(config: Config, source: Source) -> list[Verdict]:
    """A verdict only where somebody else on this machine can read what should be private."""
    from pipeline.exports.file_modes import require_private

    course = Course()
    course.look("permissions", lambda: require_private(config, source))
    return [each for each in course.verdicts if each.status != "ok"]


def _known_hosts(config: Config, source: Source) -> KnownHosts:
    from pipeline.exports.connection import known_hosts
    from pipeline.network.known_hosts import KnownHosts

    try:
        return known_hosts(config, source)
    except ExportError:  # the look that it is about will say it
        return KnownHosts.of([source.fhir_url])


def _who(source: Source) -> str:
    return "key" if source.auth.kind == "smart" else "identity"


class _Looks:
    """Each method is one look: words when it is in order, an `ExportError` when it is not."""

    def __init__(self, config: Config, source: Source, http: httpx.Client) -> None:
        self.config = config
        self.source = source
        self.http = http
        self.bearer: BearerAuth | None = None
        self.software = ""
        self.listed: Mapping[str, Any] | None = None
        # What is wrong with the storage account is for its own look to tell.
        without_storage = source.downloads.model_copy(update={"auth": "none", "storage": None})
        self._at_the_server = source.model_copy(update={"downloads": without_storage})

    # --- the server ---------------------------------------------------------------------------------

    def server(self) -> str:
        """Any answer will do: it proves name, network and TLS."""
        from pipeline.auth.origins import origin

        url = self._client().fhir_url
        began = time.monotonic()
        answer, transport = self._touch("GET", f"{url}/metadata")
        seconds = time.monotonic() - began
        if answer.status_code in (407, 502, 503, 504):
            raise Unreachable(
                f"{origin(url)} answered HTTP {answer.status_code}",
                "A proxy or gateway stands before the server and finds it away; try again later, and check "
                "HTTPS_PROXY and NO_PROXY",
            )
        return f"{origin(url)} answers in {seconds:.2f} s, {transport}"

    def capability(self) -> str:
        try:
            statement = self._client().capability()
        except AuthError as error:
            self._require_a_kickoff()
            return f"it answers, but does not show /metadata to everyone ({error.cause})"
        except (ServerRefused, VerificationFailed) as error:
            raise ServerRefused(error.cause, _WRONG_URL) from None
        version = statement.get("fhirVersion")
        software = statement.get("software")
        self.software = str(software.get("name", "")) if isinstance(software, dict) else ""
        if not isinstance(version, str) or not version.startswith("4.0"):
            raise ServerRefused(
                f"the server speaks FHIR {_short(version)}, this pipeline reads R4 (4.0.1)",
                "Set fhir_url to the server's R4 base, where it has one",
            )
        self._require_a_kickoff()
        offers = "$export is offered" if _offers_export(statement) else _SILENT_ABOUT_EXPORT
        return f"FHIR {_short(version)}, {offers}"

    def _require_a_kickoff(self) -> None:
        """What export asks for must be what this kind of server takes, or each kick-off is refused."""
        from pipeline.bulkdata.profiles import profile_of
        from pipeline.exports.request import asked_for

        profile = profile_of(self.source.profile, self.source.knobs)
        profile.check(asked_for(self.source, profile))

    # --- who we are ---------------------------------------------------------------------------------

    def key(self) -> str:
        from pipeline.exports.connection import signer_for

        self._sign_in_with()
        signer = signer_for(self.config, self.source)
        return f"{signer.algorithm}, kid '{signer.kid}', for client '{self.source.auth.client_id}'"

    def identity(self) -> str:
        auth = self.source.auth
        self._sign_in_with()
        if auth.kind == "none":
            raise NotNeeded("no sign-in is configured (auth.kind none)")
        if auth.kind == "entra-secret":
            what = "certificate" if auth.certificate is not None else "client secret"
            return f"{what} of application '{auth.client_id}', tenant '{auth.tenant_id}'"
        return f"{auth.kind} '{auth.client_id}'" if auth.client_id else f"{auth.kind} of this machine"

    def sign_in_address(self) -> str:
        from pipeline.auth.discovery import discover
        from pipeline.auth.origins import printable
        from pipeline.bulkdata.profiles import profile_of, token_url
        from pipeline.exports.connection import fhir_base_of

        auth, source = self.source.auth, self.source
        if auth.kind == "entra-secret":
            from pipeline.auth.entra import PUBLIC_AUTHORITY

            return f"Entra at {printable(auth.authority or PUBLIC_AUTHORITY)}, endpoint {auth.entra_version}"
        if auth.token_url is not None:
            return f"{printable(auth.token_url)}, by the configuration"
        derived = token_url(profile_of(source.profile, source.knobs), source.fhir_url, source.tenant)
        if derived is not None:
            return f"{printable(derived)}, by the profile {source.profile}"
        found = discover(self.http, fhir_base_of(source))
        accepted = found.signing_algorithms_supported
        strange = accepted and auth.algorithm not in accepted
        remark = f"; it lists signatures by {_short(', '.join(accepted or ()))} only" if strange else ""
        return f"{printable(found.token_endpoint)}, by the {found.said_by}{remark}"

    def token(self) -> str:
        assert self.bearer is not None  # noqa: S101 - for the type checker: who we are comes first
        try:
            token = self.bearer.token()
        except AuthError as error:
            raise self._who_is_wrong(error) from None
        lifetime = token.expires_at - time.monotonic()
        granted = f", scope '{_short(token.scope)}'" if token.scope else ""
        roles = claims_of(token.value).roles
        with_roles = f", roles {_short(', '.join(roles))}" if roles else ""
        missing = uncovered(token.scope, self.source.export.types or ())
        if missing:
            raise Doubtful(
                f"granted for {lifetime:.0f} s, but its scope does not cover {', '.join(missing)}",
                "Have the client's scopes widened at the server and set auth.scope, such as "
                f"'system/*.read system/{missing[0]}.read'; or take these out of export.types",
            )
        return f"granted for {lifetime:.0f} s{granted}{with_roles}"

    def _sign_in_with(self) -> None:
        from pipeline.auth.bearer import BearerAuth
        from pipeline.exports.connection import authentication

        found = authentication(self.config, self._at_the_server, self.http)
        if found is not None:
            self.http.auth = found
        if isinstance(found, BearerAuth):
            self.bearer = found

    # --- what we may do -----------------------------------------------------------------------------

    def read(self) -> str:
        answer = self._read("Patient", {"_count": "1", "_elements": "id"})
        where = f"{self._client().fhir_url}/Patient"
        if answer.ok:
            if (answer.resource or {}).get("resourceType") != "Bundle":
                raise VerificationFailed(
                    f"{where} answered HTTP {answer.http_status} with something that is no Bundle",
                    "A login page, proxy or gateway answers in the server's place. " + _WRONG_URL,
                )
            return "one Patient may be searched for"
        if answer.http_status == 401:
            raise self._not_accepted(where, answer)
        if answer.http_status == 403:
            raise AuthError(
                f"{where}: the token is good, but this client may not read (HTTP 403: {answer.reason})",
                self._what_to_grant(),
            )
        if answer.http_status in (400, 404, 405, 501):
            raise NotNeeded(
                f"there is no search for Patient here (HTTP {answer.http_status}); no export needs it"
            )
        raise _refused(answer, where)

    def group(self) -> str:
        group = self.source.export.group
        answer = self._read(f"Group/{group}")
        where = f"{self._client().fhir_url}/Group/{group}"
        if answer.ok:
            if (answer.resource or {}).get("resourceType") != "Group":
                raise VerificationFailed(f"{where} gave something that is no Group", _WRONG_GROUP)
            self.listed = answer.resource
            return f"Group/{group} is there"
        if answer.http_status in (404, 410):
            raise ConfigError(
                f"there is no group '{group}' at the server (HTTP {answer.http_status})", _WRONG_GROUP
            )
        if answer.http_status in (401, 403, 405, 501):
            raise NotNeeded(
                f"Group/{group} may not be read (HTTP {answer.http_status}), so only a kick-off can tell"
            )
        raise _refused(answer, where)

    def incremental(self) -> str:
        from pipeline.bulkdata.profiles import profile_of
        from pipeline.exports.check_nights import about_the_deleted, from_night_to_night
        from pipeline.exports.session import utc_now

        profile = profile_of(self.source.profile, self.source.knobs)
        url = self._client().fhir_url
        said = from_night_to_night(self.source, profile, self.software, self.listed, url, utc_now())
        return said + about_the_deleted(self.source)

    def _not_accepted(self, where: str, answer: ReadAnswer) -> AuthError:
        held = claims_of(self.bearer.token().value) if self.bearer is not None else None
        made_for = (
            f"; it was made for the audience '{_short(held.audience)}'" if held and held.audience else ""
        )
        if self.bearer is None:
            return AuthError(
                f"{where} wants a sign-in (HTTP 401: {answer.reason})", "Set auth.kind: it is none now"
            )
        return AuthError(
            f"{where} does not accept the token (HTTP 401: {answer.reason}){made_for}",
            "Check auth.audience and the tenant: the token must be made for this very server",
        )

    def _what_to_grant(self) -> str:
        """Who may read is told in another place by each system (azure-and-aidbox A, B, C)."""
        source, auth = self.source, self.source.auth
        command = f"`fhir-export register {source.name}` prints what to do"
        if auth.kind == "smart" and source.profile == "aidbox":
            return f"The box has no AccessPolicy that lets client '{auth.client_id}' in: {command}"
        if auth.kind == "smart" and source.profile == "smartbox":
            return (
                f"The box has no AccessPolicy that lets client '{auth.client_id}' in; or the Client belongs "
                "to another tenant than the source (tenant, or the one in fhir_url), or has the other form "
                f"of the link to it: register it with the other --tenant-form (_tenant or tenant). {command}"
            )
        if auth.kind == "smart" and source.profile == "apim-smart":
            return f"Give the client's app registration the app role system.all.read: {command}"
        if source.profile in ("azure-fhir", "azure-fhir-export"):
            return (
                "Give the role FHIR Data Reader at the FHIR service to the identity: for an application "
                "to its enterprise application's object id, not the app registration's. Wait some minutes; "
                f"{command}"
            )
        return (
            f"Give client '{auth.client_id}' a role or access policy for reading at the server, and the "
            f"scope that it needs (auth.scope is '{auth.scope or 'the default of the profile'}')"
        )

    # --- where the data goes ------------------------------------------------------------------------

    def reads_storage(self) -> bool:
        """Whether files come from the customer's storage account, by configuration or profile."""
        from pipeline.bulkdata.profiles import profile_of

        downloads = self.source.downloads
        profile = profile_of(self.source.profile, self.source.knobs)
        return downloads.storage is not None or profile.download_auth(downloads.auth) == "storage"

    def export_storage(self) -> str:
        """A HEAD of a file that is not there: whoever may read is told so, whoever may not is refused."""
        from pipeline.exports.connection import download_policy

        access = download_policy(self.config, self.source).storage
        storage = self.source.downloads.storage
        if access is None or storage is None:
            raise NotNeeded("no storage account is configured")
        # A storage access prepares URLs of files; below a container that nobody has, there is none.
        nowhere = f"fhir-export-check-{uuid.uuid4().hex[:12]}"
        url = f"{_blob_endpoint(access)}/{storage.container or nowhere}/{nowhere}.ndjson"
        prepared, headers = access.prepare(url)
        try:
            answer, _ = self._touch("HEAD", prepared, headers)
        except Unreachable as error:
            raise Unreachable(
                f"the storage account {access.account} cannot be reached: {error.cause}",
                f"{error.advice} An account that does not exist has no name in the DNS (downloads.storage)",
            ) from None
        code = answer.headers.get("x-ms-error-code", "")
        if code == "ContainerNotFound" and storage.container is not None:
            raise ConfigError(
                f"the storage account {access.account} has no container {storage.container}",
                "Set downloads.storage.container to the one that the FHIR server writes to, or leave it out",
            )
        if answer.status_code == 404 and not (storage.kind == "none" and code == "ResourceNotFound"):
            return f"storage account {access.account} can be read ({storage.kind})"
        if answer.status_code == 404:
            raise NotNeeded(
                f"storage account {access.account} is asked without a credential, so only a download can tell"
            )
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise Unreachable(
                f"the storage account {access.account} answered HTTP {answer.status_code}", "Try again later"
            )
        if answer.status_code == 403 and _is_sas_of_one_container(prepared):
            raise NotNeeded(
                f"the SAS for storage account {access.account} is for one container, which only a download "
                "can tell"
            )
        said = f" ({_short(code)})" if code else ""
        advice = access.advice(answer.status_code, code)
        if answer.status_code == 403 and storage.container is None:
            advice += " Where the role is for one container only, name it in downloads.storage.container"
        raise DownloadRefused(
            f"the storage account {access.account} may not be read (HTTP {answer.status_code}{said})", advice
        )

    def lake(self) -> str:
        from pipeline.lake.lake import open_lake

        config = self.config
        lake = open_lake(config.lake, config.folder, config.lake_auth, config.secret)
        probe = f"{self.source.name}/probe-{uuid.uuid4().hex}"
        content = b"written by fhir-export check, to be removed at once\n"
        try:
            created = lake.put_new(probe, content)
            found = lake.read(probe) if created else None
            lake.remove(probe)
            lake.names(self.source.name)  # a SAS may allow everything but this
        except LakeError as error:
            advice = error.advice if lake.folder is None and error.advice else _UNWRITABLE_LAKE
            raise LakeError(f"{lake.place}: {error.cause}", advice) from None
        if found != content:
            raise LakeError(
                f"{lake.place}: a file reads back otherwise than it was written", _UNWRITABLE_LAKE
            )
        return f"{lake.place} can be written and read"

    # --- requests -----------------------------------------------------------------------------------

    def _client(self) -> BulkClient:
        from pipeline.exports.connection import bulk_client

        return bulk_client(self.config, self._at_the_server, self.http)

    def _read(self, path: str, params: Mapping[str, str] | None = None) -> ReadAnswer:
        return self._client().read(path, params)

    def _touch(
        self, method: str, url: str, headers: Mapping[str, str] | None = None
    ) -> tuple[httpx.Response, str]:
        """Head of an answer without its body, and how it came; no token is sent. Raises `Unreachable`."""
        import httpx

        from pipeline.auth.explain import unreachable
        from pipeline.auth.origins import origin

        failed: Unreachable
        try:
            request = self.http.build_request(
                method, url, headers={"Accept": "application/fhir+json", **(headers or {})}
            )
            answer = self.http.send(request, auth=None, stream=True, follow_redirects=False)
            try:
                return answer, _transport(answer)
            finally:
                answer.close()
        except httpx.RequestError as error:
            cause, advice = unreachable(error)
            failed = Unreachable(f"{origin(url)} cannot be reached: {cause}", advice)
        raise failed  # outside the except block: its error would carry the request along

    def _who_is_wrong(self, error: AuthError) -> AuthError:
        """The same refusal with the advice of one cause, where the server's words single it out."""
        if self.source.auth.kind != "smart":
            return error
        said = _SERVER_SAYS.search(error.cause)
        if said is None or not _ABOUT_WHO_WE_ARE.match(said[1]):
            return self._perhaps_unregistered(error)
        from pipeline.exports.connection import signer_for

        client_id = self.source.auth.client_id
        signer = signer_for(self.config, self.source)
        if _ABOUT_THE_KEY.search(said[1]):
            return AuthError(
                f"our key is not the one that the server has for client '{client_id}': {error.cause}",
                f"Register our public key there, kid '{signer.kid}' ({signer.algorithm}): `fhir-export "
                f"register {self.source.name}` says how, `fhir-export jwks` prints it; servers cache keys, "
                "allow 15 minutes. Or set auth.private_key to the key that is registered",
            )
        if _ABOUT_THE_CLIENT.search(said[1]):
            return AuthError(
                f"the server does not know client '{client_id}': {error.cause}",
                "Set auth.client_id to the id that the server gave at registration, and see that it is "
                f"active there with our key, kid '{signer.kid}' (`fhir-export register {self.source.name}`)",
            )
        return self._perhaps_unregistered(error)

    def _perhaps_unregistered(self, error: AuthError) -> AuthError:
        advice = f"{error.advice.rstrip('.')}. " if error.advice else ""
        return AuthError(
            error.cause,
            f"{advice}`fhir-export register {self.source.name}` prints what the server must know of us",
        )


_WRONG_URL = (
    "Check fhir_url: it is the FHIR base, so that /metadata below it is the CapabilityStatement; "
    "often it ends in /fhir or /r4"
)
_WRONG_GROUP = "Set export.group to the FHIR id of a Group there (the id, not its name)"
_UNWRITABLE_LAKE = (
    "Create that folder or let this user write to it, see that the disk has space, "
    "or set lake in the configuration to another place"
)
_SILENT_ABOUT_EXPORT = "/metadata does not mention $export, which not every server lists"


def _transport(answer: httpx.Response) -> str:
    stream = answer.extensions.get("network_stream")
    tls = stream.get_extra_info("ssl_object") if stream is not None else None
    return f"over {tls.version()}" if tls is not None else "without TLS"


def _is_sas_of_one_container(url: str) -> bool:
    """Whether a signed URL is so by a service SAS that lives: it says nothing about other containers."""
    parameters = dict(parse_qsl(urlsplit(url).query))
    try:
        expires = datetime.fromisoformat(parameters.get("se", ""))
    except ValueError:
        return False
    return "sr" in parameters and expires.replace(tzinfo=expires.tzinfo or UTC) > datetime.now(UTC)


def _blob_endpoint(access: Any) -> str:
    return f"{access.origin}{getattr(access, 'prefix', '')}"


def _refused(answer: ReadAnswer, where: str) -> ExportError:
    what = f"{where} answered HTTP {answer.http_status}: {answer.reason}"
    if answer.http_status in (408, 425, 429) or answer.http_status >= 500:
        return Unreachable(what, "The server is busy or in trouble; try again later")
    return ServerRefused(what, "Ask the server's operator what it means")


def _offers_export(statement: Mapping[str, Any]) -> bool:
    """Whether an operation named export (or group-export, patient-export) is listed anywhere (fact 11)."""
    for rest in _objects(statement.get("rest")):
        for place in (rest, *_objects(rest.get("resource"))):
            for operation in _objects(place.get("operation")):
                name = str(operation.get("name", "")).lstrip("$")
                definition = str(operation.get("definition", "")).rstrip("/")
                if name == "export" or name.endswith("-export") or definition.endswith("-export"):
                    return True
    return False


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _short(value: object) -> str:
    from pipeline.redaction import clean

    return clean(value, 200) if value is not None else "of no version"
