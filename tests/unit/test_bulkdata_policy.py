"""Where a request goes and who sees the token: protocol facts 1, 9, 17, 28."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.auth.origins import origin
from pipeline.bulkdata.locations import is_elsewhere, resolve
from pipeline.bulkdata.policy import DownloadPolicy
from pipeline.errors import ConfigError, DownloadRefused, ServerRefused

STEADY = settings(deadline=None, derandomize=True)  # the machine may be busy

BASE = "https://fhir.example.org/r4"
ASKED = f"{BASE}/Group/1/$export?_type=Patient"


@pytest.mark.parametrize(
    ("auth", "url", "required", "token"),
    [
        ("auto", f"{BASE}/f/1", True, True),
        ("auto", f"{BASE}/f/1", None, True),
        ("auto", f"{BASE}/f/1", False, False),
        ("auto", "https://FHIR.example.org:443/f", True, True),
        ("auto", "https://files.example.org/1", True, True),
        ("auto", "https://files.example.org/1", None, False),
        ("auto", "https://files.example.org/1", False, False),
        ("auto", "https://else.example.org/1?sig=x", False, False),
        ("auto", "https://else.example.org/1?sig=x", None, False),
        ("bearer", f"{BASE}/f/1", False, True),
        ("bearer", "https://files.example.org/1", False, False),
        ("bearer", "https://files.example.org/1", True, True),
        ("none", f"{BASE}/f/1", True, False),
        ("none", "https://else.example.org/1", True, False),
    ],
)
def test_the_token_goes_only_where_manifest_and_configuration_agree(
    auth: str, url: str, required: bool | None, token: bool
) -> None:
    """Protocol fact 28: SHALL be sent when true, SHALL NOT when false."""
    policy = DownloadPolicy(auth, ("files.example.org",))  # type: ignore[arg-type]
    assert policy.bearer_goes(url, BASE, required) is token


@pytest.mark.parametrize(
    "url",
    [
        "https://files.example.org:8443/1",
        "https://evil.example/1",
        "https://fhir.example.org.evil.example/r4/1",
        "https://fhir.example.org:444/r4/1",
    ],
)
def test_a_token_demanded_by_a_strange_host_is_refused_with_the_key_to_set(url: str) -> None:
    """Protocol fact 9."""
    with pytest.raises(DownloadRefused, match=r"downloads\.allow_hosts"):
        DownloadPolicy("auto", ("files.example.org",)).bearer_goes(f"{url}?sig=SECRET", BASE, True)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://h/1",
        "http://files.example.org/1",
        "https://u:p@h/1",
        "relative",
        "https://",
    ],
)
@pytest.mark.parametrize("auth", ["auto", "none"])
def test_urls_that_are_no_plain_https_are_never_asked(auth: str, url: str) -> None:
    """Protocol fact 1: TLS for every exchange; plain HTTP for loopback only."""
    with pytest.raises(DownloadRefused):
        DownloadPolicy(auth).bearer_goes(url, BASE, False)  # type: ignore[arg-type]


@pytest.mark.parametrize("entry", ["*.example.org", "http://files.example.org", "ftp://x", "", "a b", "u@h"])
def test_an_allowed_host_must_be_one_https_host(entry: str) -> None:
    with pytest.raises(ConfigError):
        DownloadPolicy("auto", (entry,))


def test_allowed_hosts_may_be_hosts_ports_or_origins() -> None:
    policy = DownloadPolicy(
        "auto", ("a.example", "b.example:8443", "https://c.example", "http://127.0.0.1:81")
    )
    expected = {"https://a.example", "https://b.example:8443", "https://c.example", "http://127.0.0.1:81"}
    assert policy.allowed_origins == {origin(each) for each in expected}


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (f"{BASE}/status/1", f"{BASE}/status/1"),
        ("/r4/$export-status/1", f"{BASE}/$export-status/1"),
        ("/elsewhere/1", "https://fhir.example.org/elsewhere/1"),
        ("status?id=1", f"{BASE}/Group/1/status?id=1"),
        ("http://inner:8080/r4/$export-poll?_jobId=1", f"{BASE}/$export-poll?_jobId=1"),
        ("https://other.example/r4/status/1", f"{BASE}/status/1"),
        (" https://fhir.example.org:443/r4/x ", "https://fhir.example.org:443/r4/x"),
    ],
)
def test_status_urls_are_resolved_and_inner_hosts_replaced(location: str, target: str) -> None:
    """Protocol fact 17: Aidbox sends a relative one with `$`; Medplum and HAPI send internal hosts."""
    assert resolve(BASE, ASKED, location) == target


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/status/1",
        "https://evil.example/r4x/1",
        "file:///etc/passwd",
        "http://[broken",
        "https://u:p@h/r4/1",
    ],
)
def test_a_status_url_elsewhere_is_refused(location: str) -> None:
    """Protocol fact 9: do not follow a reference to another server with the token."""
    with pytest.raises(ServerRefused):
        resolve(BASE, ASKED, location)


@STEADY
@given(st.text(max_size=50))
def test_whatever_the_location_the_token_stays_at_its_origin(location: str) -> None:
    try:
        target = resolve(BASE, ASKED, location)
    except ServerRefused:
        return
    assert origin(target) == origin(BASE)


def test_elsewhere_means_neither_ours_nor_a_proxied_name_for_it() -> None:
    assert is_elsewhere(BASE, "https://files.example.org/page2")
    assert not is_elsewhere(BASE, f"{BASE}/page2")
    assert not is_elsewhere(BASE, "http://inner:8080/r4/page2")
    assert is_elsewhere("https://fhir.example.org", "https://files.example.org/page2")
