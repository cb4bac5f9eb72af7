"""Delta tables in a lake on Azure storage, through the lake's own URI and options (azure-and-aidbox E)."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace

import pyarrow as pa
import pytest
from azure_storage import ACCOUNT, KEY, Azurite
from lake_on_azurite import Identity, lake_by_key, lake_by_sas, lake_by_token

from pipeline.errors import ExportError, LakeError
from pipeline.lake.blob_identity import LEAST_TOKEN_LIFE
from pipeline.lake.blob_identity import Identity as Telling
from pipeline.lake.lake import Lake
from pipeline.tables.delta import StagedPart, commit_export, live_parts, part_path, table_schema, total_rows
from pipeline.tables.parts import PartWriter

TABLE = "hosp_a/tables/patient"


def publish(lake: Lake, export_id: str, attempt: int = 1, rows: int = 10, extra: str | None = None) -> int:
    """Stages one part and commits it; returns the table's version."""
    columns = {"id": pa.array([f"{export_id}-{n}" for n in range(rows)])}
    if extra is not None:
        columns[extra] = pa.array([f"{n}" for n in range(rows)])
    data = pa.table(columns)
    path = part_path(export_id, attempt)
    with lake.spool() as spool:
        with PartWriter(spool / "part", data.schema) as writer:
            writer.write(data)
            part = writer.close()
        lake.put_file(spool / "part", f"{TABLE}/{path}")
    return commit_export(
        lake.table_uri(TABLE),
        export_id=export_id,
        attempt=attempt,
        replaces_after=attempt - 1,
        parts=[StagedPart(path, part.bytes, part.rows)],
        schema=data.schema,
        storage_options=lake.storage_options,
    ).version


def work(azurite: Azurite, container: str, me: int) -> None:
    lake = lake_by_key(azurite, container)
    for night in range(2):
        publish(lake, f"2026010{me}T0{night}0000Z", rows=100 + me, extra=f"only_{me}" if night else None)


def test_four_processes_commit_to_one_table_and_nothing_is_lost(azurite: Azurite) -> None:
    container = azurite.new_container()
    plain = replace(azurite, process=None)  # type: ignore[arg-type]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(plain, container, me)) for me in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * 4
    lake = lake_by_key(azurite, container)
    uri, options = lake.table_uri(TABLE), lake.storage_options
    assert total_rows(uri, options) == sum(2 * (100 + me) for me in range(1, 5))
    schema = table_schema(uri, options)
    assert schema is not None
    assert set(schema.names) == {"id", "only_1", "only_2", "only_3", "only_4"}
    logs = [name for name in lake.names(f"{TABLE}/_delta_log") if name.endswith(".json")]
    assert len(logs) == len(set(logs)) >= 9


@pytest.mark.parametrize("kind", ["key", "sas", "token"])
def test_a_table_is_made_committed_replaced_and_read(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "token":
        lake: Lake = lake_by_token(request.getfixturevalue("azurite_tls"))
    else:
        azurite: Azurite = request.getfixturevalue("azurite")
        lake = lake_by_key(azurite) if kind == "key" else lake_by_sas(azurite, azurite.sas())
    publish(lake, "20260101T020000Z")
    publish(lake, "20260102T020000Z", rows=7)
    publish(lake, "20260101T020000Z", attempt=2, rows=3)
    assert total_rows(lake.table_uri(TABLE), lake.storage_options) == 10
    (part,) = live_parts(lake.table_uri(TABLE), "20260101T020000Z", lake.storage_options)
    with lake.local_copy(f"{TABLE}/{part.path}") as path:
        assert path.stat().st_size == part.bytes


def test_each_look_at_the_options_gives_a_token_that_lives_long_enough(azurite_tls: Azurite) -> None:
    identity = Identity()
    lake = lake_by_token(azurite_tls, identity=identity)
    first = lake.storage_options
    time.sleep(1.1)
    second = lake.storage_options
    assert first["azure_storage_token"] != second["azure_storage_token"]
    assert identity.asked == [("https://storage.azure.com/.default",)] * 2


def test_a_token_that_is_about_to_end_is_asked_for_again_then_refused_with_a_reason() -> None:
    identity = Identity(LEAST_TOKEN_LIFE - 60)
    with pytest.raises(LakeError, match=r"ends in [56]\d s.*commit needs one for 120 s"):
        Telling(identity, "nightly").fresh_token()
    assert len(identity.asked) == 2
    assert Telling(Identity(LEAST_TOKEN_LIFE + 60), "nightly").fresh_token().count(".") == 2


def test_a_token_of_the_age_at_which_azure_identity_still_gives_it_out_is_good_enough() -> None:
    """It renews when 300 seconds are left, counted in whole ones, and not for 30 seconds after a failure."""
    for seconds in (299.6, 300 - 30):
        assert Telling(Identity(seconds), "nightly").fresh_token().count(".") == 2


OF_OTHERS = {
    "AZURE_CLIENT_ID": "00000000-0000-0000-0000-000000000001",
    "AZURE_TENANT_ID": "00000000-0000-0000-0000-000000000002",
    "AZURE_CLIENT_SECRET": "not-this-one",
    "AZURE_FEDERATED_TOKEN_FILE": "/nowhere/token",
    "AZURE_AUTHORITY_HOST": "https://127.0.0.1:1/",
    "IDENTITY_ENDPOINT": "http://127.0.0.1:1/msi",
    "IDENTITY_HEADER": "x",
    "MSI_ENDPOINT": "http://127.0.0.1:1/msi",
}


@pytest.mark.parametrize("kind", ["key", "sas", "token"])
def test_what_azure_identity_reads_in_the_environment_does_not_change_the_tables_credential(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those variables may be set (workload identity lives by them): delta-rs must not take them up."""
    for name, value in OF_OTHERS.items():
        monkeypatch.setenv(name, value)
    test_a_table_is_made_committed_replaced_and_read(kind, request)


def test_refused_variables_do_change_what_delta_does(
    azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why they are refused: with a SAS given, an account key in the environment is used instead of it."""
    lake = lake_by_sas(azurite, azurite.sas())
    publish(lake, "20260101T020000Z")
    uri, options = lake.table_uri(TABLE), lake.storage_options
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "AAAA" + KEY[4:])
    with pytest.raises(ExportError):
        total_rows(uri, options)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    assert total_rows(uri, options) == 10
    assert ACCOUNT in options.values()
