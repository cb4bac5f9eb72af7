"""Where a lake on Azure is, and which environment it refuses to start in (azure-and-aidbox E)."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from pipeline.azure import environment
from pipeline.azure.environment import refuse_overrides
from pipeline.config import LakeAuth
from pipeline.errors import ConfigError
from pipeline.lake.blob_account import BlobAccess, find_access
from pipeline.lake.blob_address import parse_address, parse_connection_string
from pipeline.lake.lake import open_lake

URL = "abfss://lake@nightly.dfs.core.windows.net/fhir/exports"
KEY = "c2VjcmV0LWtleQ=="


@pytest.mark.parametrize(
    ("url", "account", "container", "prefix", "endpoint"),
    [
        (URL, "nightly", "lake", "fhir/exports", "https://nightly.blob.core.windows.net"),
        (
            "abfs://lake@nightly.dfs.core.windows.net",
            "nightly",
            "lake",
            "",
            "https://nightly.blob.core.windows.net",
        ),
        (
            "abfs://l-1@nightly.dfs.core.chinacloudapi.cn/a%20b/",
            "nightly",
            "l-1",
            "a b",
            "https://nightly.blob.core.chinacloudapi.cn",
        ),
        (
            "abfss://lake@nightly.z12.dfs.storage.azure.net/x",
            "nightly",
            "lake",
            "x",
            "https://nightly.z12.blob.storage.azure.net",
        ),
        (
            "abfs://lake@nightly.blob.core.windows.net/x",
            "nightly",
            "lake",
            "x",
            "https://nightly.blob.core.windows.net",
        ),
    ],
)
def test_an_address_tells_account_container_prefix_and_endpoint(
    url: str, account: str, container: str, prefix: str, endpoint: str
) -> None:
    found = parse_address(url)
    assert (found.account, found.container, found.prefix, found.endpoint) == (
        account,
        container,
        prefix,
        endpoint,
    )


@pytest.mark.parametrize(
    "url",
    [
        "abfs://nightly.dfs.core.windows.net/x",
        "abfs://lake@nightly/x",
        "abfs://lake@nightly.example.org/x",
        "abfs://Lake@nightly.dfs.core.windows.net/x",
        "abfs://lake@night-ly.dfs.core.windows.net/x",
        "abfs://lake@nightly.dfs.core.windows.net:443/x",
        "abfs://lake@nightly.dfs.core.windows.net/../x",
        "abfs://lake@nightly.dfs.core.windows.net/a//b",
        "abfs://lake@nightly.dfs.core.windows.net/a%3Fb",
        f"abfs://lake@nightly.dfs.core.windows.net/x?sig={KEY}",
        f"abfs://lake:{KEY}@nightly.dfs.core.windows.net/x",
        "abfs:///x",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_the_form_and_without_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_address(url)
    assert found.value.advice
    assert KEY not in str(found.value)


@pytest.mark.parametrize(
    ("url", "cause", "rules", "other"),
    [
        ("abfss://c@nightly.dfs.core.windows.net", "has 'c' as its container", "3 to 63", "3 to 24"),
        ("abfss://a--b@nightly.dfs.core.windows.net", "has 'a--b' as its container", "single -", "3 to 24"),
        ("abfss://nightly.dfs.core.windows.net/x", "names no container", "before the @", "3 to 24"),
        ("abfss://lake@n.dfs.core.windows.net", "has 'n' as its storage account", "3 to 24", "3 to 63"),
        (
            "abfss://lake@night-ly.dfs.core.windows.net",
            "has 'night-ly' as its",
            "letters and digits",
            "3 to 63",
        ),
    ],
)
def test_of_a_wrong_address_the_wrong_part_is_named_with_its_rule(
    url: str, cause: str, rules: str, other: str
) -> None:
    with pytest.raises(ConfigError) as found:
        parse_address(url)
    assert cause in found.value.cause
    assert rules in found.value.advice
    assert other not in found.value.advice


def test_a_connection_string_gives_endpoint_and_key_in_each_of_its_forms() -> None:
    portal = parse_connection_string(
        f"DefaultEndpointsProtocol=https;AccountName=nightly;AccountKey={KEY};EndpointSuffix=core.windows.net"
    )
    assert (portal.account, portal.key, portal.sas) == ("nightly", KEY, None)
    assert portal.endpoint == "https://nightly.blob.core.windows.net"
    shared = parse_connection_string(
        "BlobEndpoint=https://nightly.blob.core.chinacloudapi.cn/;SharedAccessSignature=sv=1&sig=abc"
    )
    assert (shared.account, shared.key, shared.sas) == ("nightly", None, "sv=1&sig=abc")
    assert shared.endpoint == "https://nightly.blob.core.chinacloudapi.cn"
    assert KEY not in repr(portal)
    assert "abc" not in repr(shared)


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        "",
        f"AccountKey={KEY}",
        "AccountName=nightly",
        "UseDevelopmentStorage=true",
        f"DefaultEndpointsProtocol=http;AccountName=nightly;AccountKey={KEY}",
    ],
)
def test_what_is_no_connection_string_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigError, match="no connection string of a storage") as found:
        parse_connection_string(text)
    assert KEY not in str(found.value)


def test_an_access_shows_no_secret_and_another_secret_is_another_access() -> None:
    auth = LakeAuth(kind="sas", sas="env:SAS")
    address = parse_address(URL)
    one = find_access(address, auth, lambda _: b"?sv=1&sig=" + KEY.encode() + b"\n")
    two = find_access(address, auth, lambda _: b"sv=2&sig=" + KEY.encode())
    assert one.sas == f"sv=1&sig={KEY}"
    assert one != two
    assert KEY not in repr(one)
    principal = LakeAuth(kind="service-principal", tenant_id="t", client_id="c", client_secret="env:SECRET")
    held: BlobAccess = find_access(address, principal, lambda _: KEY.encode())
    assert held != find_access(address, principal, lambda _: b"other")
    assert KEY not in repr(held)


def test_a_sas_url_or_a_key_in_the_place_of_a_sas_is_refused_without_repeating_it() -> None:
    auth = LakeAuth(kind="sas", sas="env:SAS")
    for wrong in (f"https://nightly.blob.core.windows.net/lake?sig={KEY}", KEY):
        with pytest.raises(ConfigError, match="no shared access signature") as found:
            find_access(parse_address(URL), auth, lambda _, wrong=wrong: wrong.encode())
        assert KEY not in str(found.value)


def test_a_token_is_never_sent_over_plain_http() -> None:
    auth = LakeAuth(kind="managed-identity", endpoint="http://127.0.0.1:10000/nightly")
    with pytest.raises(ConfigError, match="plain http"):
        find_access(parse_address(URL), auth, lambda _: b"")


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        ("https://contoso.blob.core.windows.net", "contoso"),
        ("https://nightly-secondary.blob.core.windows.net", "nightly-secondary"),
        ("https://contoso.privatelink.blob.core.windows.net", "contoso"),
        ("https://contoso.z1.blob.storage.azure.net", "contoso"),
        ("https://127.0.0.1:10000/devstoreaccount1", "devstoreaccount1"),
    ],
)
def test_an_endpoint_of_another_account_than_the_lakes_gets_no_credential(endpoint: str, named: str) -> None:
    held = f"AccountName=nightly;AccountKey={KEY};BlobEndpoint={endpoint}".encode()
    for auth in (
        LakeAuth(kind="managed-identity", endpoint=endpoint),
        LakeAuth(kind="connection-string", connection_string="env:HELD"),
    ):
        with pytest.raises(ConfigError, match=f"wrong account: lake names nightly, .* {named}"):
            find_access(parse_address(URL), auth, lambda _: held)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://nightly.blob.core.windows.net",
        "https://nightly.privatelink.blob.core.windows.net",
        "https://nightly.blob.core.chinacloudapi.cn",
        "https://files.blob.contoso.example",
        "https://127.0.0.1:10000/nightly",
    ],
)
def test_an_endpoint_of_the_account_and_a_custom_domain_are_taken(endpoint: str) -> None:
    auth = LakeAuth(kind="managed-identity", endpoint=endpoint)
    assert find_access(parse_address(URL), auth, lambda _: b"").endpoint == endpoint


def test_each_variable_that_would_override_the_credential_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*environment.OF_ADLFS, *environment.OF_DELTA_RS):
        for kind in ("default", "managed-identity", "none"):
            with monkeypatch.context() as patch, pytest.raises(ConfigError, match=name) as found:
                patch.setenv(name, KEY)
                open_lake(URL, Path("/"), LakeAuth.model_validate({"kind": kind}))
            assert KEY not in str(found.value)
    assert open_lake(URL, Path("/"), LakeAuth()).place == URL


def test_a_local_lake_does_not_mind_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "x")
    open_lake("lake", tmp_path)


def test_a_variable_that_the_configuration_names_itself_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "AZURE_STORAGE_CONNECTION_STRING"
    monkeypatch.setenv(name, "x")
    auth = LakeAuth(kind="connection-string", connection_string=f"env:{name}")
    open_lake(URL, Path("/"), auth, lambda _: b"x")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "y")
    with pytest.raises(ConfigError, match="AZURE_STORAGE_SAS_TOKEN"):
        open_lake(URL, Path("/"), auth, lambda _: b"x")


def test_the_list_holds_every_variable_that_this_adlfs_reads() -> None:
    from adlfs import AzureBlobFileSystem

    read = set(re.findall(r"AZURE_[A-Z_]+", inspect.getsource(AzureBlobFileSystem.__init__)))
    assert read == set(environment.OF_ADLFS)


def test_what_azure_identity_needs_is_left_alone() -> None:
    names = ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST")
    refuse_overrides(environment=dict.fromkeys(names, "x"))


def test_opening_a_lake_on_azure_resolves_and_contacts_nothing() -> None:
    def never(reference: str) -> bytes:
        raise AssertionError(reference)

    auth = LakeAuth(kind="connection-string", connection_string="file:missing")
    assert open_lake(URL, Path("/"), auth, never).root == "lake/fhir/exports"
