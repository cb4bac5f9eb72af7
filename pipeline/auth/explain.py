"""What a refusal means and what to do about it, in words for the person on duty.

Everything that a server said passes through `clean` before it is repeated.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from pipeline.auth.origins import printable
from pipeline.azure.entra_errors import entra_advice
from pipeline.errors import AuthError
from pipeline.redaction import clean
from pipeline.retry_after import http_date

_SKEW_WORTH_TELLING = 30.0
_TOKEN_LENGTH = 64
"""Characters; a server may name our key by its id, which has 43."""


@dataclass(frozen=True)
class TokenRequest:
    """What was asked for, as far as it may be shown; `secrets` may not, should a server echo them."""

    token_url: str
    client_id: str
    scope: str
    audience: str
    kid: str | None = None
    algorithm: str | None = None
    accepted_algorithms: tuple[str, ...] | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    entra: bool = False
    """Whether it goes to Entra itself, where the address is made of authority and tenant."""

    @property
    def where(self) -> str:
        return printable(self.token_url)

    @property
    def address_setting(self) -> str:
        """What to check in the configuration when this is the wrong address."""
        return "auth.authority and auth.tenant_id" if self.entra else "auth.token_url"


def refusal(answer: httpx.Response, asked: TokenRequest) -> AuthError:
    """The error for a token endpoint's final no, in any shape: OAuth, API Management, HTML or nothing."""
    body = json_object(answer)
    if answer.is_redirect:
        return _redirected(answer, asked)
    if body is None:
        return _not_json(answer, asked)
    said = said_in(body, asked.secrets)
    code = body.get("error")
    if isinstance(code, str) and code:
        named = clean(code, 60, secrets=asked.secrets, token_length=_TOKEN_LENGTH)
        cause = f"{asked.where} answered {named}{said}"
        advice = _oauth_advice(code, str(body.get("error_description", "")), asked)
    else:
        cause = f"{asked.where} answered HTTP {answer.status_code}{said}"
        advice = (
            _api_management_advice(answer.status_code, asked)
            if _is_api_management(body)
            else _status_advice(answer.status_code, asked)
        )
    return AuthError(cause, f"{advice}{_skew_hint(answer)}")


def trouble_advice(body: Mapping[str, Any], asked: TokenRequest) -> str:
    """What to do about a token endpoint's passing trouble."""
    later = "The server is busy or in trouble; try again later."
    if not _is_api_management(body):
        return later
    return f"{later} If it stays: {_api_management_advice(500, asked)}"


def unusable(answer: httpx.Response, asked: TokenRequest, lack: str) -> AuthError:
    """The error for a 2xx answer that is no token: `lack` says in which way."""
    if json_object(answer) is None:
        return _not_json(answer, asked)
    return AuthError(
        f"{asked.where} answered HTTP {answer.status_code}, but {lack}",
        f"Check {asked.address_setting}: it must be the OAuth token endpoint.",
    )


def resource_refusal(answer: httpx.Response) -> AuthError:
    """The error for a 401 or 403 to a request that carried a bearer token (azure-and-aidbox C)."""
    where = printable(answer.request.url)
    said = clean(answer.headers.get("WWW-Authenticate", ""))
    cause = f"{where} answered HTTP {answer.status_code}{f' ({said})' if said else ''}"
    if answer.status_code == 401:
        return AuthError(
            cause,
            "The server does not accept the token: check auth.audience (exactly as the server expects it), "
            f"the tenant, and that fhir_url and token URL belong to the same server.{_skew_hint(answer)}",
        )
    return AuthError(
        cause,
        "The token is good, but this client may not do that: check its role or access policy at the server "
        "(Azure: role FHIR Data Exporter, for API Management the app role system.all.read; a new role "
        "takes minutes to work, for a managed identity up to a day), the granted scope, and the group or "
        "resource types asked for.",
    )


def unreachable(error: httpx.RequestError) -> tuple[str, str]:
    """Cause and advice for a request without an answer, from the error that lies at its root."""
    for root in _chain(error):
        if isinstance(root, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({clean(root.verify_message)})",
                "Check the host in the URL; for a private authority set SSL_CERT_FILE to its certificate.",
            )
        if isinstance(root, ssl.SSLError):
            return "TLS failed", "Check that the port speaks https, with TLS 1.2 or later."
        if isinstance(root, socket.gaierror):
            return (
                "its host name is not known",
                "Check the host name in the URL, and the DNS of this machine.",
            )
        if isinstance(root, ConnectionRefusedError):
            return "the connection was refused", "Check host and port in the URL, and that the server runs."
    if isinstance(error, httpx.TimeoutException):
        return (
            "it did not answer in time",
            "Check the network and firewall between this machine and the server.",
        )
    if isinstance(error, httpx.ProxyError):
        return "the proxy refused", "Check HTTPS_PROXY and NO_PROXY."
    return f"the connection failed ({type(error).__name__})", "Check the network and try again."


def json_object(answer: httpx.Response) -> dict[str, Any] | None:
    """The body as a JSON object, None when it is anything else."""
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def said_in(body: Mapping[str, Any], secrets: Collection[str] = ()) -> str:
    """' (...)' with what the server says beside the error code, or nothing.

    OAuth's `error_description`, API Management's `Name`, `Id`, `Code` (azure-and-aidbox A), FHIR's.
    """
    parts = [
        str(body[name])
        for name in ("error_description", "Name", "Code", "message")
        if _speaks(body.get(name))
    ]
    if _speaks(body.get("Id")):
        parts.append(f"id {body['Id']}")
    issues = body.get("issue")
    if isinstance(issues, list):
        parts += [str(issue["diagnostics"]) for issue in issues[:1] if _speaks_in(issue)]
    said = clean("; ".join(parts), secrets=secrets, token_length=_TOKEN_LENGTH)
    return f" ({said})" if said else ""


def _speaks(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip() != ""


def _speaks_in(issue: object) -> bool:
    return isinstance(issue, dict) and _speaks(issue.get("diagnostics"))


def _is_api_management(body: Mapping[str, Any]) -> bool:
    """The SMART sample's own errors (azure-and-aidbox A); those of Entra behind it pass through unchanged."""
    return "error" not in body and _speaks(body.get("Name")) and "Id" in body and "Code" in body


def _api_management_advice(status: int, asked: TokenRequest) -> str:
    form = "auth.token_body must be form"
    checks = [
        "auth.audience must be exactly https://HOST/auth/token, HOST being the ApiManagementHostName that "
        f"the sample was deployed with, whatever the custom domain (sent: '{asked.audience}')",
        f"the Key Vault whose name ends in backkv must hold a secret named '{asked.client_id}' with a tag "
        "jwks_url, the address at which API Management serves our JWK Set",
        f"the named value JWKS of API Management must hold our key, kid '{asked.kid}' ('fhir-export jwks' "
        "prints it)",
    ]
    checks = [form, *checks] if status == 400 else [*checks, form]
    if status >= 500:
        value = (
            f"the VALUE of the Key Vault secret named '{asked.client_id}' must be the client's Entra secret "
            "(not its id); that may be wrong or expired: make a new one and put it there"
        )
        checks = [value, *checks]
    numbered = "; ".join(f"({number}) {check}" for number, check in enumerate(checks, 1))
    return f"This is the SMART sample of API Management: {numbered}."


def _oauth_advice(code: str, description: str, asked: TokenRequest) -> str:
    advice = entra_advice(description)
    if advice is not None and asked.entra:
        return advice
    if advice is not None:
        return (
            f"{advice} It is Entra, behind this token endpoint, that says so: with API Management the secret "
            f"for client '{asked.client_id}' is the value of the Key Vault secret of that name."
        )
    if asked.entra:
        return _entra_in_general(asked)
    if code == "invalid_client":
        return _who_we_are(asked)
    if code == "invalid_scope":
        return (
            f"The server does not grant the scope '{asked.scope}' to client '{asked.client_id}': set "
            "auth.scope to what it is registered for (older servers: system/*.read, newer ones: system/*.rs)."
        )
    if code in {"invalid_grant", "invalid_request"}:
        return (
            f"Check auth.audience (sent: '{asked.audience}'), this machine's clock, and auth.token_body. "
            + _who_we_are(asked)
        )
    if code in {"unauthorized_client", "unsupported_grant_type", "access_denied"}:
        return (
            f"Allow client '{asked.client_id}' the grant client_credentials at the server, and activate it."
        )
    return _who_we_are(asked)


def _entra_in_general(asked: TokenRequest) -> str:
    return (
        "Look its AADSTS number up at https://login.microsoftonline.com/error, and check auth.tenant_id, "
        f"auth.client_id ('{asked.client_id}'), its secret or certificate, and auth.audience "
        f"('{asked.audience}')."
    )


def _who_we_are(asked: TokenRequest) -> str:
    if asked.entra:
        return _entra_in_general(asked)
    if asked.kid is None:
        return (
            f"Check that client '{asked.client_id}' is registered and active, and that its secret is right."
        )
    advice = (
        f"Either the server does not know client '{asked.client_id}' (check client_id, and that it is active "
        "there), or it cannot verify the signature: its JWK Set for this client must hold our key, "
        f"kid '{asked.kid}' ({asked.algorithm}; 'fhir-export jwks' prints it; servers cache keys, allow "
        f"15 minutes), and it must expect the audience '{asked.audience}' (auth.audience)."
    )
    if asked.accepted_algorithms and asked.algorithm not in asked.accepted_algorithms:
        named = clean(", ".join(asked.accepted_algorithms), 80)
        advice += f" The server says that it accepts {named} only: set auth.algorithm."
    return advice


def _status_advice(status: int, asked: TokenRequest) -> str:
    if status in {404, 405, 410}:
        return f"Check {asked.address_setting}: there is no token endpoint at this address."
    if asked.entra:
        return _entra_in_general(asked)
    if status == 415:
        return "Set auth.token_body to the other of form and json."
    if status == 400:
        return "Check auth.token_body (form or json), auth.audience and auth.scope. " + _who_we_are(asked)
    return _who_we_are(asked)


def _redirected(answer: httpx.Response, asked: TokenRequest) -> AuthError:
    try:
        target = printable(answer.request.url.join(answer.headers.get("Location", "")))
    except (httpx.InvalidURL, ValueError):
        target = "(an unreadable URL)"
    return AuthError(
        f"{asked.where} redirects to {target}, where our credential was not sent (protocol fact 9)",
        f"If that is the token endpoint, set {asked.address_setting} to it; a login page means a wrong URL.",
    )


def _not_json(answer: httpx.Response, asked: TokenRequest) -> AuthError:
    content_type = answer.headers.get("Content-Type", "")
    html = "html" in content_type.lower() or answer.content.lstrip()[:1] == b"<"
    shape = (
        "a web page" if html else "an empty body" if not answer.content.strip() else "a body that is not JSON"
    )
    advice = (
        _status_advice(answer.status_code, asked)
        if answer.is_client_error and not html
        else f"Check {asked.address_setting}: this may be a login page, a proxy, or a firewall in between."
    )
    return AuthError(
        f"{asked.where} answered HTTP {answer.status_code} with {shape}, not with a token", advice
    )


def _skew_hint(answer: httpx.Response) -> str:
    theirs = http_date(answer.headers.get("Date", ""))
    if theirs is None:
        return ""
    ahead = (datetime.now(UTC) - theirs).total_seconds()
    if abs(ahead) < _SKEW_WORTH_TELLING:
        return ""
    side = "ahead of" if ahead > 0 else "behind"
    return f" This machine's clock is {abs(ahead):.0f} s {side} the server's: set it right first."


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
