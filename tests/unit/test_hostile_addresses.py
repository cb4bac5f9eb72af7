"""Where a server's answer may lead us: to whom the configuration names, and to the open internet."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulkdata.policy import DownloadPolicy
from pipeline.errors import DownloadRefused, ExportError, ServerRefused
from pipeline.network.addresses import is_inner_name, is_public
from pipeline.network.known_hosts import KnownHosts

FHIR = "https://fhir.hospital.example/r4"

INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.0.0.192",
    "192.168.1.1",
    "198.18.0.1",
    "192.0.2.1",
    "224.0.0.251",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["93.184.215.14", "20.60.0.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "2a01:111::1"]


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_inside_a_network_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_address_is_judged_the_same_however_it_is_wrapped(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for wrapped in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80 | 1):
        assert is_public(ipaddress.IPv6Address(wrapped)) == is_public(address)


@pytest.mark.parametrize("address", INSIDE)
def test_a_file_at_an_address_inside_is_refused_and_the_key_to_allow_it_named(address: str) -> None:
    """Protocol 28; the whole URL, with a signed query, is nobody's to read."""
    host = f"[{address}]" if ":" in address else address
    url = f"https://{host}:8443/Patient.ndjson?sig=S3CRET"
    with pytest.raises(DownloadRefused) as refused:
        DownloadPolicy().route(url, FHIR, False)
    said = str(refused.value)
    assert "downloads.allow_hosts" in said
    assert "S3CRET" not in said
    named = re.search(r"add (\S+) to downloads\.allow_hosts", said)
    assert named is not None
    assert not DownloadPolicy(allow_hosts=(named[1],)).route(url, FHIR, False).bearer


@pytest.mark.parametrize(
    "url",
    [
        "https://2130706433/f",
        "https://0x7f000001/f",
        "https://0x7f.1/f",
        "https://0177.0.0.1/f",
        "https://127.1/f",
        "https://127.0.0.1./f",
        "https://017700000001/f",
        "https://169.254.43518/f",
        "https://0xA9FEA9FE/f",
    ],
)
def test_an_address_in_disguise_is_refused(url: str) -> None:
    with pytest.raises(DownloadRefused):
        DownloadPolicy().route(url, FHIR, False)
    with pytest.raises(ServerRefused):
        KnownHosts.of([FHIR]).check(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/f",
        "https://LOCALHOST./f",
        "https://x.localhost/f",
        "https://metadata/computeMetadata/v1/",
        "https://metadata.google.internal/f",
        "https://METADATA.google.INTERNAL./f",
        "https://instance-data/latest/",
        "https://files.hospital.local/f",
        "https://router.home.arpa/f",
        "https://fhir/f",
        "https://[fe80::1%25eth0]/f",
        "https://[fe80::1%eth0]/f",
        "https://[::ffff:7f00:1]/f",
    ],
)
def test_a_name_that_only_means_something_inside_is_refused(url: str) -> None:
    """Behind a proxy nobody looks names up here: they are judged as they are written."""
    with pytest.raises(DownloadRefused):
        DownloadPolicy().route(url, FHIR, False)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://files.example.org/f",
        "data:application/fhir+ndjson,{}",
        "gopher://127.0.0.1:70/x",
        "javascript:alert(1)",
        "jar:https://files.example.org!/f",
        "//files.example.org/f",
        "https:files.example.org/f",
        "https:///f",
        "https://fhir.hospital.example@evil.example.org/f",
        "https://good:evil@files.example.org/f",
        "https://fhir.hospital.example\\@evil.example.org/f",
        "https://fhir.hospital.example\\.evil.example.org/f",
        "https://files.example.org:0/f",
        "https://files.example.org:65536/f",
        "https://files.example.org:-1/f",
        "https://%31%32%37.0.0.1/f",
        "https://files.example.org%00.hospital.example/f",
        "https://files .example.org/f",
        "https://１２７.0.0.1/f",
        "https://xn--contso-jbg.example.org/f",
        "http://files.example.org/f",
        "HTTP://FILES.EXAMPLE.ORG:443/f",
    ],
)
def test_other_schemes_and_tricks_with_the_host_are_refused(url: str) -> None:
    with pytest.raises(DownloadRefused):
        DownloadPolicy().route(url, FHIR, False)


@pytest.mark.parametrize(
    "url",
    [
        "https://fhir.hospital.example/f",
        "https://FHIR.hospital.example:9443/f",
        "https://files.example.org/f",
        "https://contosoexports.blob.core.windows.net/c/f?sig=x",
        "https://bücher.example/f",
        "https://8.8.8.8/f",
        "https://[2606:4700::1111]/f",
    ],
)
def test_files_at_the_server_itself_and_on_the_internet_are_asked_for(url: str) -> None:
    assert DownloadPolicy().route(url, FHIR, False).storage is None


@pytest.mark.parametrize(
    "fhir", ["https://10.0.0.5/r4", "https://fhir/r4", "https://fhir.clinic.local:8443/r4"]
)
def test_a_hospitals_own_server_may_be_anywhere(fhir: str) -> None:
    """Hospitals run on private networks: the configured host is trusted on each port, no neighbour is."""
    assert DownloadPolicy().route(f"{fhir}/f", fhir, None).bearer
    host = fhir.split("/")[2].partition(":")[0]
    assert not DownloadPolicy().route(f"https://{host}:4443/f", fhir, None).bearer
    with pytest.raises(DownloadRefused):
        DownloadPolicy().route("https://10.0.0.6/f", fhir, None)
    with pytest.raises(DownloadRefused):
        DownloadPolicy().route("https://127.0.0.1/f", fhir, None)


def test_an_allowed_host_is_allowed_on_its_own_port_only() -> None:
    policy = DownloadPolicy(allow_hosts=("10.0.0.7:8443",))
    policy.route("https://10.0.0.7:8443/f", FHIR, False)
    with pytest.raises(DownloadRefused):
        policy.route("https://10.0.0.7:22/f", FHIR, False)


def test_only_a_server_on_this_machine_leads_to_this_machine() -> None:
    on_this_machine = KnownHosts.of(["http://127.0.0.1:8080/r4"])
    on_this_machine.check("http://localhost:9000/f")
    on_this_machine.check("https://[::1]:9000/f")
    with pytest.raises(ServerRefused):
        on_this_machine.check("https://10.0.0.1/f")
    with pytest.raises(ServerRefused):
        KnownHosts.of([FHIR], ["https://127.0.0.1:9000"]).check("https://127.0.0.1:9001/f")


@given(st.text(max_size=40))
def test_whatever_stands_as_a_host_is_refused_in_words_or_is_a_name(host: str) -> None:
    url = f"https://{host}/f"
    try:
        KnownHosts.of([FHIR]).check(url)
    except ExportError as error:
        assert error.cause
        assert error.cause.isprintable()


@pytest.mark.parametrize(
    "name", ["a.b", "files.example.org", "localhost.example.org", "internal.example.org"]
)
def test_public_names_are_not_taken_for_inner_ones(name: str) -> None:
    assert not is_inner_name(name)
