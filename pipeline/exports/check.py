"""The connectivity check: small requests that find out what is wrong before a night is lost on it.

The verdicts come in the order that finds the cause (azure-and-aidbox C): each rests on those before it, so
the first one that is bad is the one to mend. Nothing is exported, nothing printed.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config import Config, Source
from pipeline.errors import (
    AuthError,
    ConfigError,
    ExportError,
    LakeError,
    ServerRefused,
    Unreachable,
    VerificationFailed,
)

if TYPE_CHECKING:
    import httpx

    from pipeline.auth.bearer import BearerAuth
    from pipeline.bulkdata.answers import ReadAnswer
    from pipeline.bulkdata.client import BulkClient

Status = Literal["ok", "bad", "skipped"]

_SERVER_SAYS = re.compile(r" answered (.*)", re.DOTALL)
_ABOUT_THE_KEY = re.compile(r"\b(kid|keys?|jwks?|jwk set|signature)\b", re.IGNORECASE)
_ABOUT_THE_CLIENT = re.compile(
    r"\b(issuer|iss|subject|sub)\b|\bunknown client\b|\bclient\b.*\b(unknown|not|no)\b", re.IGNORECASE
)
_ABOUT_WHO_WE_ARE = re.compile(r"^(invalid_client|invalid_grant|invalid_request)\b")


@dataclass(frozen=True)
class Verdict:
    """What one look came to. `cause` and `advice` are safe to paste into a ticket."""

    name: str
    status: Status
    cause: str
    advice: str = ""
    exit_code: int = 0
    """What the command line exits with when this is the first bad one."""

    def as_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if name != "exit_code"}


class _NotNeeded(Exception):
    """This look gave no answer, and the export does not depend on it."""


@dataclass
class _Course:
    """Runs the looks one after the other; what rests on a bad one is skipped."""

    verdicts: list[Verdict] = field(default_factory=list)
    _blocked_by: dict[str, str] = field(default_factory=dict)

    def look(self, name: str, work: Callable[[], str], after: tuple[str, ...] = ()) -> None:
        root = next((self._blocked_by[each] for each in after if each in self._blocked_by), None)
        if root is not None:
            self._blocked_by[name] = root
            self.verdicts.append(
                Verdict(name, "skipped", f"it comes after '{root}', which is to be mended first")
            )
            return
        try:
            self.verdicts.append(Verdict(name, "ok", work()))
        except _NotNeeded as reason:
            self.verdicts.append(Verdict(name, "skipped", str(reason)))
        except ExportError as error:
            self._blocked_by[name] = name
            self.verdicts.append(Verdict(name, "bad", error.cause, error.advice, error.exit_code))


def check_source(config: Config, source: Source) -> list[Verdict]:
    """Looks at key, server, sign-in address, token, a small read, the group and the lake, in that order.

    Returns a verdict for each and raises nothing for what it finds. Every request is small and reads only; in
    the lake one probe file is created and removed.
    """
    from pipeline.exports.connection import http_client

    course = _Course()
    with http_client() as http:
        look = _Looks(config, source, http)
        course.look("key", look.key)
        course.look("server", look.server)
        if source.auth.kind == "smart":
            course.look("sign-in address", look.sign_in_address, after=("server",))
            course.look("token", look.token, after=("key", "sign-in address"))
        needed = ("key", "server", "token")
        course.look("read", look.read, after=needed)
        if source.export.level == "group":
            course.look("group", look.group, after=(*needed, "read"))
    course.look("lake", look.lake)
    return course.verdicts


def first_bad(verdicts: list[Verdict]) -> Verdict | None:
    """The one to mend first, None when all is in order."""
    return next((verdict for verdict in verdicts if verdict.status == "bad"), None)


class _Looks:
    """Each method is one look: words when it is in order, an `ExportError` when it is not."""

    def __init__(self, config: Config, source: Source, http: httpx.Client) -> None:
        self.config = config
        self.source = source
        self.http = http
        self.bearer: BearerAuth | None = None

    def key(self) -> str:
        from pipeline.auth.bearer import BearerAuth
        from pipeline.exports.connection import authentication, signer_for

        found = authentication(self.config, self.source, self.http)
        if found is None:
            return "no sign-in is configured (auth.kind none)"
        self.http.auth = found
        if isinstance(found, BearerAuth):
            self.bearer = found
        signer = signer_for(self.config, self.source)
        return f"{signer.algorithm}, kid '{signer.kid}', for client '{self.source.auth.client_id}'"

    def server(self) -> str:
        try:
            statement = self._client().capability()
        except AuthError as error:
            return f"it answers, but does not show /metadata to everyone ({error.cause})"
        except (ServerRefused, VerificationFailed) as error:
            raise ServerRefused(error.cause, _WRONG_URL) from None
        version = statement.get("fhirVersion")
        if not isinstance(version, str) or not version.startswith("4.0"):
            raise ServerRefused(
                f"the server speaks FHIR {_short(version)}, this pipeline reads R4 (4.0.1)",
                "Set fhir_url to the server's R4 base, where it has one",
            )
        offers = "$export is offered" if _offers_export(statement) else _SILENT_ABOUT_EXPORT
        return f"FHIR {_short(version)}, {offers}"

    def sign_in_address(self) -> str:
        from pipeline.auth.discovery import discover
        from pipeline.auth.origins import printable

        auth = self.source.auth
        if auth.token_url is not None:
            return f"{printable(auth.token_url)}, by the configuration"
        found = discover(self.http, self.source.fhir_url)
        accepted = found.signing_algorithms_supported
        strange = accepted and auth.algorithm not in accepted
        remark = f"; it lists signatures by {_short(', '.join(accepted or ()))} only" if strange else ""
        return f"{printable(found.token_endpoint)}, by the {found.said_by}{remark}"

    def token(self) -> str:
        assert self.bearer is not None  # noqa: S101 - for the type checker: `key` comes first
        try:
            token = self.bearer.token()
        except AuthError as error:
            raise self._who_is_wrong(error) from None
        lifetime = token.expires_at - time.monotonic()
        granted = f", scope '{_short(token.scope)}'" if token.scope else ""
        return f"granted for {lifetime:.0f} s{granted}"

    def read(self) -> str:
        answer = self._read("Patient", {"_count": "1", "_elements": "id"})
        where = f"{self.source.fhir_url}/Patient"
        if answer.ok:
            return "one Patient may be searched for"
        if answer.http_status == 401:
            raise AuthError(
                f"{where} does not accept the token (HTTP 401: {answer.reason})",
                "Check auth.audience and the tenant: the token must be made for this very server",
            )
        if answer.http_status == 403:
            raise AuthError(
                f"{where}: the token is good, but this client may not read (HTTP 403: {answer.reason})",
                f"Give client '{self.source.auth.client_id}' a role or access policy for reading at the "
                f"server, and the scope that it needs (auth.scope is '{self.source.auth.scope}')",
            )
        if answer.http_status in (400, 404, 405, 501):
            raise _NotNeeded(
                f"there is no search for Patient here (HTTP {answer.http_status}); no export needs it"
            )
        raise _refused(answer, where)

    def group(self) -> str:
        group = self.source.export.group
        answer = self._read(f"Group/{group}")
        where = f"{self.source.fhir_url}/Group/{group}"
        if answer.ok:
            if (answer.resource or {}).get("resourceType") != "Group":
                raise VerificationFailed(f"{where} gave something that is no Group", _WRONG_GROUP)
            return f"Group/{group} is there"
        if answer.http_status in (404, 410):
            raise ConfigError(
                f"there is no group '{group}' at the server (HTTP {answer.http_status})", _WRONG_GROUP
            )
        if answer.http_status in (401, 403, 405, 501):
            raise _NotNeeded(
                f"Group/{group} may not be read (HTTP {answer.http_status}), so only a kick-off can tell"
            )
        raise _refused(answer, where)

    def lake(self) -> str:
        from pipeline.lake.lake import open_lake

        lake = open_lake(self.config.lake, self.config.folder)
        probe = f"{self.source.name}/probe-{uuid.uuid4().hex}"
        content = b"written by fhir-export check, to be removed at once\n"
        try:
            created = lake.put_new(probe, content)
            found = lake.read(probe) if created else None
            lake.remove(probe)
        except LakeError as error:
            raise LakeError(f"{lake.root}: {error.cause}", _UNWRITABLE_LAKE) from None
        if found != content:
            raise LakeError(f"{lake.root}: a file reads back otherwise than it was written", _UNWRITABLE_LAKE)
        return f"{lake.root} can be written and read"

    def _client(self) -> BulkClient:
        from pipeline.bulkdata.client import BulkClient
        from pipeline.bulkdata.profiles import PROFILES

        return BulkClient(self.source.fhir_url, self.http, PROFILES[self.source.profile])

    def _read(self, path: str, params: Mapping[str, str] | None = None) -> ReadAnswer:
        return self._client().read(path, params)

    def _who_is_wrong(self, error: AuthError) -> AuthError:
        """The same refusal with the advice of one cause, where the server's words single it out."""
        said = _SERVER_SAYS.search(error.cause)
        if said is None or not _ABOUT_WHO_WE_ARE.match(said[1]) or self.bearer is None:
            return error
        from pipeline.exports.connection import signer_for

        client_id = self.source.auth.client_id
        signer = signer_for(self.config, self.source)
        if _ABOUT_THE_KEY.search(said[1]):
            return AuthError(
                f"our key is not the one that the server has for client '{client_id}': {error.cause}",
                f"Register our public key there, kid '{signer.kid}' ({signer.algorithm}): `fhir-export jwks` "
                "prints it; servers cache keys, allow 15 minutes. Or set auth.private_key to the key that "
                "is registered",
            )
        if _ABOUT_THE_CLIENT.search(said[1]):
            return AuthError(
                f"the server does not know client '{client_id}': {error.cause}",
                "Set auth.client_id to the id that the server gave at registration, and see that it is "
                f"active there with our key, kid '{signer.kid}'",
            )
        return error


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
