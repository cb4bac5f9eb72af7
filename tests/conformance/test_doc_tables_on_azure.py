"""docs/tables-on-azure.md: its Python runs, and gives what the server has."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from azure_storage import ACCOUNT, KEY, Azurite
from installation import REPOSITORY, truth_of
from test_night_on_azurite import PATIENTS, SEED, night

DOCUMENT = REPOSITORY / "docs" / "tables-on-azure.md"


def emulated(block: str, azurite: Azurite) -> str:
    """The block with the emulator's credentials where it takes the default ones of Azure."""
    for real, here in {
        "adlfs.AzureBlobFileSystem(account_name=account, use_listings_cache=False)": (
            f"adlfs.AzureBlobFileSystem(connection_string={azurite.connection_string!r})"
        ),
        "AzureFileSystem(account_name=account)": (
            f"AzureFileSystem(account_name={ACCOUNT!r}, account_key={KEY!r}, blob_storage_scheme='http', "
            f"blob_storage_authority={urlsplit(azurite.endpoint).netloc!r})"
        ),
    }.items():
        block = block.replace(real, here)
    return block


def test_each_block_runs_and_counts_what_the_server_has(tmp_path: Path, azurite: Azurite) -> None:
    first, *blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert "DefaultAzureCredential()" in first
    assert len(blocks) == 3
    with night(tmp_path, azurite) as (site, _):
        site.run("hosp")
        names: dict[str, Any] = {
            "account": ACCOUNT,
            "container": site.container,
            "tables": "lake/hosp/tables",
            "options": {
                "azure_storage_account_name": ACCOUNT,
                "azure_storage_account_key": KEY,
                "azure_storage_endpoint": azurite.endpoint,
                "azure_allow_http": "true",
            },
        }
        for block in blocks:
            exec(compile(emulated(block, azurite), str(DOCUMENT), "exec"), names)
    wanted = Counter(each.get("gender") for each in truth_of(SEED, PATIENTS, 1, ("Patient",))["Patient"])
    assert dict(names["ages"].iter_rows()) == wanted
    assert names["counts"] == wanted
    assert Counter(names["frame"]["gender"]) == wanted
    assert set(names["frame"].columns) == {"id", "gender", "birth_date"}
