"""Whose blob endpoint an address is: a credential goes to no account but the one that the operator names."""

from __future__ import annotations

from urllib.parse import urlsplit

_OF_AZURE = (
    ".core.windows.net",
    ".core.usgovcloudapi.net",
    ".core.chinacloudapi.cn",
    ".storage.azure.net",
)


def other_account(endpoint: str, account: str) -> str | None:
    """The account that an endpoint names, where it is another one than `account`; else None.

    It is the host's first label at Azure, and the path at an emulator; a custom domain names none.
    """
    parts = urlsplit(endpoint)
    host = (parts.hostname or "").lower()
    named = parts.path.strip("/") or (host.partition(".")[0] if host.endswith(_OF_AZURE) else account)
    return None if named == account else named
