"""Files of a manifest that must not be asked for, and that an export can do without.

API Management leaves the URLs of `error` files as the server behind it wrote them: they lie on a blob host
and are said to need the token, which must not go there (azure-and-aidbox A). By the profile's knob
`error_files` such an export is published without them, says so, and leaves the watermark where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.exports.facts import FileKind
from pipeline.exports.session import Session

if TYPE_CHECKING:
    from pipeline.bulkdata.manifest import Manifest


def foreign_files(session: Session, manifest: Manifest) -> dict[tuple[FileKind, int], str]:
    """(kind, index) -> why it must not be asked for; the same at every step of an export.

    Raises `ConfigError` where the source has no usable configuration.
    """
    errors = manifest.of_kind("error")
    if not errors or session.profile.error_files != "optional":
        return {}
    needs_token = manifest.requires_access_token
    reasons = {(file.kind, file.index): session.client.forbidden(file, needs_token) for file in errors}
    return {key: reason for key, reason in reasons.items() if reason is not None}
