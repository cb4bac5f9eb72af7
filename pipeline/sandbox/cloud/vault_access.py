"""Who may do what in the vault: Azure's built-in roles, as far as their data actions matter here."""

from __future__ import annotations

_SECRET_READ = {"secrets/readMetadata/action"}
_SECRET_VALUE = {"secrets/getSecret/action"}
_SECRET_WRITE = {
    "secrets/setSecret/action",
    "secrets/update/action",
    "secrets/delete",
    "secrets/recover/action",
    "secrets/purge/action",
}
_KEY_READ = {"keys/read"}
_KEY_USE = {"keys/sign/action", "keys/verify/action"}
_KEY_WRITE = {
    "keys/create/action",
    "keys/update/action",
    "keys/rotate/action",
    "keys/delete",
    "keys/recover/action",
    "keys/purge/action",
}

ROLES: dict[str, frozenset[str]] = {
    "Key Vault Reader": frozenset(_SECRET_READ | _KEY_READ),
    "Key Vault Secrets User": frozenset(_SECRET_READ | _SECRET_VALUE),
    "Key Vault Secrets Officer": frozenset(_SECRET_READ | _SECRET_VALUE | _SECRET_WRITE),
    "Key Vault Crypto User": frozenset(_KEY_READ | _KEY_USE | {"keys/update/action"}),
    "Key Vault Crypto Officer": frozenset(_KEY_READ | _KEY_USE | _KEY_WRITE),
    "Key Vault Administrator": frozenset(
        _SECRET_READ | _SECRET_VALUE | _SECRET_WRITE | _KEY_READ | _KEY_USE | _KEY_WRITE
    ),
}


class Assignments:
    """Role assignments on the whole vault, by object id."""

    def __init__(self) -> None:
        self._roles: dict[str, list[str]] = {}

    def assign(self, object_id: str, roles: list[str]) -> None:
        """Exactly these from now on. KeyError with the name of a role that does not exist."""
        for role in roles:
            ROLES[role]
        self._roles[object_id.lower()] = list(roles)

    def allows(self, object_id: str, action: str) -> bool:
        """Whether one of its roles has that action, such as `secrets/getSecret/action`."""
        return any(action in ROLES[role] for role in self._roles.get(object_id.lower(), []))
