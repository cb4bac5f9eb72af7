"""Codes of errors that are known, so that they may be repeated: whatever else stands there may be text."""

from __future__ import annotations

ISSUE_CODES = frozenset(
    {
        "invalid",
        "structure",
        "required",
        "value",
        "invariant",
        "security",
        "login",
        "unknown",
        "expired",
        "forbidden",
        "suppressed",
        "processing",
        "not-supported",
        "duplicate",
        "multiple-matches",
        "not-found",
        "deleted",
        "too-long",
        "code-invalid",
        "extension",
        "too-costly",
        "business-rule",
        "conflict",
        "transient",
        "lock-error",
        "no-store",
        "exception",
        "timeout",
        "incomplete",
        "throttled",
        "informational",
        "success",
    }
)
"""Of an OperationOutcome's issues: R4, value set issue-type."""

_OAUTH = frozenset(
    {
        # RFC 6749, sections 4.1.2.1 and 5.2; RFC 7523 uses those of 6749
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "unsupported_response_type",
        "invalid_scope",
        "access_denied",
        "server_error",
        "temporarily_unavailable",
        # RFC 6750, section 3.1
        "invalid_token",
        "insufficient_scope",
        # RFC 8628, RFC 8707
        "slow_down",
        "invalid_target",
        # Entra
        "invalid_resource",
        "interaction_required",
        "consent_required",
        "login_required",
    }
)

_STORAGE = frozenset(
    {
        # the storage account's refusals that `azure.storage_access` explains
        "AccountIsDisabled",
        "AuthenticationFailed",
        "AuthorizationFailure",
        "AuthorizationPermissionMismatch",
        "AuthorizationProtocolMismatch",
        "AuthorizationResourceTypeMismatch",
        "AuthorizationServiceMismatch",
        "AuthorizationSourceIPMismatch",
        "BlobArchived",
        "BlobNotFound",
        "ContainerNotFound",
        "InvalidAuthenticationInfo",
        "KeyBasedAuthenticationNotPermitted",
        "NoAuthenticationInformation",
        "PublicAccessNotPermitted",
        "ResourceNotFound",
        # and its passing ones
        "InternalError",
        "OperationTimedOut",
        "ServerBusy",
    }
)

_GATEWAYS = frozenset(
    {
        # Azure's services and API Management: HTTP's own reasons in one word
        "BadGateway",
        "BadRequest",
        "Conflict",
        "Forbidden",
        "GatewayTimeout",
        "Gone",
        "InternalServerError",
        "MethodNotAllowed",
        "NotFound",
        "NotImplemented",
        "PreconditionFailed",
        "RequestTimeout",
        "ServiceUnavailable",
        "TooManyRequests",
        "Unauthorized",
    }
)

ERROR_CODES = _OAUTH | _STORAGE | _GATEWAYS
"""Of error bodies that are JSON, but no OperationOutcome."""
