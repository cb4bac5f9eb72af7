"""One local file on its way to one name in a container, all of it or nothing."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.lake.blob_errors import error_code

if TYPE_CHECKING:
    from azure.storage.blob.aio import BlobClient

_MARK = "put"
"""Metadata of each file that is put: whose retried request it was that found the name taken."""


class Upload:
    """Put Blob when small, else blocks that are seen by nobody until one commit; both only if absent."""

    def __init__(self, blob: BlobClient, local: Path, max_concurrency: int) -> None:
        self._blob = blob
        self._local = local
        self._max_concurrency = max_concurrency
        self._mark = uuid.uuid4().hex

    async def work(self) -> None:
        from azure.core.exceptions import HttpResponseError

        for last in (False, True):
            try:
                return await self._upload()
            except HttpResponseError as error:
                if error_code(error) not in ("BlobAlreadyExists", "InvalidBlockList"):
                    raise
                owner = await self._owner()
                if owner == self._mark:
                    return None
                if owner is not None:
                    raise FileExistsError(17, "File exists") from None
                if last:  # the blocks are gone and nobody has taken the name: the storage lost them
                    raise
        return None

    async def _upload(self) -> None:
        with self._local.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            await self._blob.upload_blob(
                file,
                length=size,
                overwrite=False,
                metadata={_MARK: self._mark},
                max_concurrency=self._max_concurrency,
            )

    async def _owner(self) -> str | None:
        """The mark of whoever has the name, "" for a file without one, None when it is free."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            found = await self._blob.get_blob_properties()
        except ResourceNotFoundError:
            return None
        return (found.metadata or {}).get(_MARK, "")
