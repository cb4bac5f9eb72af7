"""The vault's secrets."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from pipeline.sandbox.cloud.vault_errors import BadParameter, not_usable
from pipeline.sandbox.cloud.vault_objects import SecretVersion, checked_tags
from pipeline.sandbox.cloud.vault_shelf import Shelf, body_of, change, without_value

_LARGEST = 25600


class Secrets(Shelf[SecretVersion]):
    """Their values are read by name and version."""

    kind = "secret"
    identifier = "id"

    def put(self, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """A new version (value, contentType, attributes, tags); its bundle."""
        value = wanted.get("value")
        if not isinstance(value, str):
            raise BadParameter("The parameter value must be specified.")
        if len(value.encode()) > _LARGEST:
            raise BadParameter(f"Secret value is too long: at most {_LARGEST} bytes.")
        version = SecretVersion(
            tags=checked_tags(wanted.get("tags")), value=value, content_type=wanted.get("contentType")
        )
        version.attributes.change(wanted.get("attributes") or {})
        return self.add(name, version)

    async def set(self, request: Request) -> dict[str, Any]:
        """`PUT /secrets/{name}`."""
        return self.put(request.path_params["name"], await body_of(request))

    async def get(self, request: Request) -> dict[str, Any]:
        """`GET /secrets/{name}[/{version}]`; nbf and exp do not matter to a read, `enabled` does."""
        name, version = self.find(request)
        if not version.attributes.enabled:
            raise not_usable("get", self.kind, "a disabled", "SecretDisabled")
        return self.bundle(name, version)

    async def update(self, request: Request) -> dict[str, Any]:
        """`PATCH /secrets/{name}/{version}`."""
        wanted = await body_of(request)
        name, version = self.find(request)
        change(version, wanted)
        if "contentType" in wanted:
            version.content_type = wanted["contentType"]
        return without_value(self.bundle(name, version))

    def bundle(self, name: str, version: SecretVersion) -> dict[str, Any]:
        """With the value."""
        return {"value": version.value, "id": self.address(name, version), **self.item(version)}

    def item(self, version: SecretVersion) -> dict[str, Any]:
        """Without it."""
        shown = {"contentType": version.content_type} if version.content_type is not None else {}
        return {**shown, "attributes": version.attributes.shown(), "tags": version.tags}
