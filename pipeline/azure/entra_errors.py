"""Entra's refusals in words: what each AADSTS number means to the person on duty, and what to do about it.

One table for everyone who signs in at Entra: token sources, the lake, Key Vault. Microsoft keeps the whole
list at https://login.microsoftonline.com/error; here are those that an unattended client meets. Knows no
HTTP library; azure-identity is imported only where its errors are told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.azure.root_causes import silent_host, trouble_of_transport
from pipeline.errors import AuthError, Unreachable
from pipeline.redaction import clean

_WRONG_VALUE = "The client secret is wrong: store its value, not its id"
_VALUE_EXPIRED = "The client secret has expired: make a new one in Entra and store it"
_NO_CREDENTIAL = "No client secret or certificate reached Entra: check client_secret or certificate"
_CERTIFICATE = (
    "Entra does not accept the certificate: upload the one that belongs to this key under the app "
    "registration's Certificates & secrets, and check that it has not expired"
)
_CERTIFICATE_DATES = "The certificate has expired or is not valid yet: make a new one, upload it and store it"
_CLOCK = "The sign-in was made outside its time: set this machine's clock right"
_APPLICATION = "Entra does not know this client id in this tenant: check client_id and tenant_id"
_TENANT = "Entra does not know this tenant: check tenant_id, and authority for another cloud"
_CLOUD = "The tenant belongs to another cloud: set authority to that cloud's sign-in address"
_AUDIENCE = (
    "Entra does not know the audience in this tenant: check auth.audience, every slash of it, and that the "
    "service is of this tenant"
)
_SCOPE = "The scope must be '{audience}/.default': give the audience without scopes such as system/*.read"
_FEDERATION = (
    "The federated credential in Entra does not match this workload: its issuer, subject and audience must "
    "be exactly those of the token (the subject is system:serviceaccount:NAMESPACE:NAME, the audience "
    "api://AzureADTokenExchange)"
)
_CONSENT = (
    "An administrator must grant this application its permission: Entra, API permissions, Grant admin consent"
)
_ROLE = "Assign a role of the service to this application: Entra, the service's enterprise application"
_CONDITIONAL_ACCESS = (
    "A Conditional Access policy blocks this application: have this machine's network allowed, or the "
    "application excluded"
)
_DISABLED = "The application is disabled in this tenant: enable it under Entra's enterprise applications"
_USER = "This is the sign-in of a user: use an application (client_id) or a managed identity instead"
_LATER = "Entra is busy or in trouble; try again later"

_ADVICE: dict[int, str] = {
    20012: _LATER,
    50001: _AUDIENCE,
    50013: _CLOCK,
    50027: _CERTIFICATE,
    50034: _USER,
    50076: _USER,
    50079: _USER,
    50105: _ROLE,
    50126: _USER,
    50196: "Entra saw the same sign-in too often in a short time; wait ten minutes",
    53003: _CONDITIONAL_ACCESS,
    65001: _CONSENT,
    65005: _CONSENT,
    70001: _APPLICATION,
    70002: _WRONG_VALUE,
    70011: _SCOPE,
    70021: _FEDERATION,
    70025: _FEDERATION,
    90002: _TENANT,
    90006: _LATER,
    90024: _LATER,
    90025: _LATER,
    90033: _LATER,
    90038: _CLOUD,
    90055: _LATER,
    500011: _AUDIENCE,
    501051: _ROLE,
    530035: _CONDITIONAL_ACCESS,
    700016: _APPLICATION,
    700021: "The assertion names another client id: check client_id",
    700022: _SCOPE,
    700023: "The assertion names another audience than this token endpoint: check authority and tenant_id",
    700024: _CLOCK,
    700027: _CERTIFICATE,
    700211: _FEDERATION,
    700212: _FEDERATION,
    700213: _FEDERATION,
    900023: _TENANT,
    900382: _CLOUD,
    900561: "Something on the way turned the POST into a GET: check authority and the proxy",
    901002: "This tenant wants scopes: set auth.entra_version to v2",
    1000502: _CERTIFICATE_DATES,
    1002012: _SCOPE,
    5002730: _CERTIFICATE,
    7000112: _DISABLED,
    7000214: "The certificate has been revoked: make a new one, upload it and store it",
    7000215: _WRONG_VALUE,
    7000216: _NO_CREDENTIAL,
    7000218: _NO_CREDENTIAL,
    7000222: _VALUE_EXPIRED,
    7000274: _CERTIFICATE,
    7002131: _FEDERATION,
}

_PASSING = frozenset({20012, 50196, 90006, 90024, 90025, 90033, 90055})

_CODE = re.compile(r"AADSTS(\d{4,8})(?!\d)", re.ASCII)

_NO_IDENTITY = (
    "Assign a managed identity to this machine, container or app; for a user-assigned one, client_id must be "
    "its client id, not its object id"
)
_NOT_ON_AZURE = (
    "Managed identity works on Azure machines only: run there, or use workload-identity or "
    "service-principal; on Azure, 169.254.169.254 must be reachable without a proxy (NO_PROXY)"
)
_WORKLOAD = (
    'Label the pod azure.workload.identity/use: "true" and annotate its service account, so that '
    "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_FEDERATED_TOKEN_FILE are set and the file can be read"
)
_NO_ENDPOINT = re.compile(
    r"IMDS endpoint|no managed identity endpoint|unreachable|"
    r"ManagedIdentityCredential authentication unavailable",
    re.I,
)
_IDENTITY_ADVICE = (
    (re.compile(r"Attempted credentials"), (
        "No identity was found on this machine: set kind to managed-identity, workload-identity or "
        "service-principal, so that its own error is told"
    )),
    # Before the next: IMDS's "Identity not found" comes in a sentence about an IMDS that does not answer.
    (re.compile(r"identity not found|no identity has been assigned|no .*managed identity found", re.I | re.S),
     _NO_IDENTITY),
    (_NO_ENDPOINT, _NOT_ON_AZURE),
    (re.compile(r"workload", re.I), _WORKLOAD),
    (re.compile(r"\(invalid_scope\)|invalid_resource", re.I), _AUDIENCE),
)  # fmt: skip
_SETTINGS = "Check kind, client_id and tenant_id of the identity, and that this machine has it"
_UNKNOWN = "Look its AADSTS number up at https://login.microsoftonline.com/error"
_MSAL_STATUS = re.compile(r"HTTP Error: (\d{3})\b", re.ASCII)
_BOILERPLATE = re.compile(r"\s*(To mitigate this issue|Visit https://aka\.ms|To troubleshoot, visit).*", re.S)


def entra_codes(text: str) -> tuple[int, ...]:
    """The AADSTS numbers in a text, in its order."""
    return tuple(int(code) for code in _CODE.findall(text))


def entra_advice(text: str) -> str | None:
    """What to do about the first AADSTS number in `text` that the table knows; None without one.

    A sentence of our own, so nothing of `text` is in it.
    """
    for code in entra_codes(text):
        if code in _ADVICE:
            return f"{_ADVICE[code]}."
    return None


def entra_verdict(text: str) -> bool | None:
    """True when Entra's error may pass by itself, False when it will not, None when the table cannot tell."""
    known = [code for code in entra_codes(text) if code in _ADVICE]
    return known[0] in _PASSING if known else None


def identity_error(error: Exception, what: str = "Azure") -> AuthError | Unreachable:
    """An error of azure-identity in our words: Unreachable when trying again may help, else AuthError.

    `what` names whom the token was for. To be raised `from None`: the original may hold tokens. Anything
    that azure-identity lets through (a token file that is missing, an answer that is no JSON) is told too.
    """
    trouble, host = trouble_of_transport(error), silent_host(error)
    if trouble is not None:
        server = f"https://{host}" if host else "the identity endpoint"
        return Unreachable(f"no token for {what}: {server} cannot be reached: {trouble[0]}", f"{trouble[1]}.")
    text = _text(error)
    said = clean(_BOILERPLATE.sub("", text), token_length=64)
    cause = f"no token for {what} ({said})" if said else f"no token for {what} ({type(error).__name__})"
    verdict = entra_verdict(text)
    if verdict is True or (verdict is None and _is_passing(error)):
        return Unreachable(cause, entra_advice(text) or _passing_advice(error, text))
    return AuthError(cause, entra_advice(text) or _identity_advice(error, text))


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"the federated token file cannot be read: {error.strerror}"
    message = getattr(error, "message", None)
    return message if isinstance(message, str) and message else str(error)


def _is_passing(error: Exception) -> bool:
    from azure.core.exceptions import ServiceRequestError, ServiceResponseError

    for root in _chain(error):
        if isinstance(root, ServiceRequestError | ServiceResponseError):
            return True
        if isinstance(root, OSError) and root.filename is None:
            return True
        status = _status(root)
        if status is not None:
            return status in (408, 425, 429) or status >= 500
    return False


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None) or getattr(
        getattr(error, "response", None), "status_code", None
    )
    if isinstance(status, int):
        return status
    told = _MSAL_STATUS.search(
        str(error)
    )  # msal repeats a failure for a minute, and gives its number only so
    return None if told is None else int(told[1])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: azure-identity wraps what its transport says."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _passing_advice(error: Exception, text: str) -> str:
    if _NO_ENDPOINT.search(text):
        return f"{_NOT_ON_AZURE}."
    if any(_status(root) is not None for root in _chain(error)):
        return f"{_LATER}."
    return (
        "Check the network, proxy and firewall between this machine and Entra or the identity endpoint, and "
        "REQUESTS_CA_BUNDLE for a private certificate authority."
    )


def _identity_advice(error: Exception, text: str) -> str:
    if isinstance(error, OSError):
        return f"{_WORKLOAD}."
    for pattern, advice in _IDENTITY_ADVICE:
        if pattern.search(text):
            return f"{advice}."
    return f"{_UNKNOWN if entra_codes(text) else _SETTINGS}."
