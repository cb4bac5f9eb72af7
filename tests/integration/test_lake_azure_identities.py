"""Each kind of identity in `lake_auth`, by the real azure-identity, opens files and tables over TLS.

Entra and the identity endpoint are the sandbox's; Azurite takes their tokens by issuer, audience and life.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from authority import Authority
from azure_storage import Azurite
from lake_on_azurite import lake_url

from pipeline.config import LakeAuth
from pipeline.errors import LakeError
from pipeline.lake.lake import Lake, open_lake
from pipeline.sandbox.cloud.process import CloudProcess, start_cloud
from pipeline.tables.delta import StagedPart, commit_export, part_path, total_rows
from pipeline.tables.parts import PartWriter

STORAGE = "https://storage.azure.com"
SECRET = "q7K8Q~Zx.3vB_mN-0pLsWeRtYuIoP1aSdFgHjKlX"


@pytest.fixture(scope="module")
def cloud(authority: Authority) -> Iterator[CloudProcess]:
    with start_cloud(certificate=authority.certificate, key=authority.key) as running:
        running.allow_resource(STORAGE)
        yield running


def principal(cloud: CloudProcess, azurite: Azurite) -> dict[str, str]:
    client_id = cloud.register_application(secret=SECRET)["client_id"]
    return {
        "kind": "service-principal",
        "tenant_id": cloud.tenant,
        "client_id": client_id,
        "client_secret": "env:SECRET",
        "authority": cloud.authority,
        "endpoint": azurite.endpoint,
    }


def open_by(azurite: Azurite, secret: str = SECRET, **auth: str) -> Lake:
    url = lake_url(azurite.new_container())
    return open_lake(url, Path("/"), LakeAuth.model_validate(auth), lambda _: secret.encode())


def use(lake: Lake) -> None:
    """A fact, a part, a commit."""
    assert lake.put_new("hosp_a/fact.json", b"1")
    data = pa.table({"id": ["a", "b"]})
    path = part_path("20260101T020000Z", 1)
    with lake.spool() as spool:
        with PartWriter(spool / "part", data.schema) as writer:
            writer.write(data)
            part = writer.close()
        lake.put_file(spool / "part", f"t/{path}")
    commit_export(
        lake.table_uri("t"),
        export_id="20260101T020000Z",
        attempt=1,
        replaces_after=0,
        parts=[StagedPart(path, part.bytes, part.rows)],
        schema=data.schema,
        storage_options=lake.storage_options,
    )
    assert total_rows(lake.table_uri("t"), lake.storage_options) == 2
    assert lake.names("hosp_a") == ["fact.json"]


def test_a_service_principal_with_a_secret_opens_the_lake(cloud: CloudProcess, azurite_tls: Azurite) -> None:
    use(open_by(azurite_tls, **principal(cloud, azurite_tls)))


@pytest.mark.parametrize("kind", ["managed-identity", "default"])
def test_the_identity_of_the_machine_opens_the_lake(
    kind: str, cloud: CloudProcess, azurite_tls: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_id = cloud.assign_identity(system=False)["client_id"]
    for name, value in cloud.identity_environment.items():
        monkeypatch.setenv(name, value)
    use(open_by(azurite_tls, kind=kind, client_id=client_id, endpoint=azurite_tls.endpoint))


def test_a_workload_identity_opens_the_lake(
    cloud: CloudProcess, azurite_tls: Azurite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client_id = cloud.register_application(federated=True)["client_id"]
    environment = cloud.workload_environment(client_id, tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    use(
        open_by(
            azurite_tls, kind="workload-identity", authority=cloud.authority, endpoint=azurite_tls.endpoint
        )
    )


def test_a_wrong_and_an_expired_secret_are_said_in_words_and_not_repeated(
    cloud: CloudProcess, azurite_tls: Azurite
) -> None:
    auth = principal(cloud, azurite_tls)
    wrong = open_by(azurite_tls, secret="wrong-" + SECRET, **auth)
    with pytest.raises(LakeError, match="AADSTS7000215") as found:
        wrong.put_new("a", b"1")
    assert "secret is wrong" in found.value.advice
    cloud.expire_secret(auth["client_id"])
    lake = open_by(azurite_tls, **auth)
    for act in (lambda: lake.read("a"), lambda: lake.storage_options):
        with pytest.raises(LakeError, match="AADSTS7000222") as expired:
            act()
        assert "secret has expired" in expired.value.advice
        assert SECRET not in str(expired.value)
    assert SECRET not in str(found.value)
