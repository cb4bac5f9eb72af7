"""A storage account into which a server writes its files, through the real client of azure-storage-blob."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path


class BlobStorage:
    """The account of a connection string, which is read from a file. ValueError where it is none."""

    def __init__(self, path: Path) -> None:
        from azure.storage.blob import BlobServiceClient

        self._service = BlobServiceClient.from_connection_string(path.read_text(encoding="utf-8").strip())
        self._made: set[str] = set()

    def write(self, container: str, name: str, content: bytes) -> None:
        """Write a blob; its container is made where it is missing. Raises the account's HttpResponseError."""
        from azure.core.exceptions import ResourceExistsError

        client = self._service.get_container_client(container)
        if container not in self._made:
            with suppress(ResourceExistsError):
                client.create_container()
            self._made.add(container)
        client.upload_blob(name, content, overwrite=True)

    def url(self, container: str, name: str) -> str:
        """The plain URL of a blob, of no use without a credential of the account."""
        return f"{self._service.url.rstrip('/')}/{container}/{name}"

    def signed_url(self, container: str, name: str, seconds: float) -> str:
        """A URL with a SAS that reads this one blob for so long."""
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        signature = generate_blob_sas(
            str(self._service.account_name),
            container,
            name,
            account_key=self._service.credential.account_key,
            permission=BlobSasPermissions(read=True),
            expiry=datetime.now(UTC) + timedelta(seconds=seconds),
        )
        return f"{self.url(container, name)}?{signature}"
