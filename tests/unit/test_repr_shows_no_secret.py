"""Objects that hold tokens, keys and signed URLs are printed without them."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pipeline.auth
import pipeline.azure
import pipeline.bulkdata
import pipeline.lake
from pipeline.auth.tokens import Token
from pipeline.config import LakeAuth
from pipeline.lake.blob_account import BlobAccess
from pipeline.lake.blob_address import parse_address, parse_connection_string
from pipeline.lake.lake import open_lake

_HOLDS_ONE = re.compile(
    r"^_?(value|token|access_token|assertion|secret|client_secret|identity_secret|pem|password|sas|sas_token"
    r"|account_key|private_key|signed|authorization|form|headers|body|content|text)$"
)
_HARMLESS = {
    # why it may be printed
    "Issue.text": "cleaned when it is made",
    "Digest.value": "of a file, not of a secret",
}


def members() -> Iterator[tuple[str, dataclasses.Field[object]]]:
    for package in (pipeline.auth, pipeline.azure, pipeline.bulkdata, pipeline.lake):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for held in vars(importlib.import_module(module.name)).values():
                if (
                    isinstance(held, type)
                    and dataclasses.is_dataclass(held)
                    and held.__module__ == module.name
                ):
                    for each in dataclasses.fields(held):
                        if held.__dataclass_params__.repr:  # type: ignore[attr-defined]
                            yield f"{held.__name__}.{each.name}", each


def test_members_that_hold_secrets_or_bodies_are_left_out_of_repr() -> None:
    shown = {
        name
        for name, each in members()
        if each.repr and _HOLDS_ONE.match(each.name) and name not in _HARMLESS
    }
    assert shown == set()


def test_tokens_and_storage_access_show_nothing() -> None:
    secret = "S3CRET-value-of-some-length"
    access = BlobAccess(
        "acc", "https://acc.blob.core.windows.net", LakeAuth(), key=secret, sas=f"sig={secret}",
        identity_secret=secret.encode(),
    )  # fmt: skip
    held = [
        Token(secret, expires_at=1.0),
        access,
        parse_connection_string(f"AccountName=acc;AccountKey={secret}"),
        parse_address("abfss://lake@acc.dfs.core.windows.net/lake"),
        open_lake("abfss://lake@acc.dfs.core.windows.net/lake", Path()),
    ]
    for each in held:
        assert secret not in repr(each)
        assert secret not in str(each)
