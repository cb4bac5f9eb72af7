"""Origins: one spelling each, and judged as httpx would connect."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.auth.origins import is_loopback, origin, printable, require_secure
from pipeline.errors import AuthError, ConfigError

LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(lambda s: "--" not in s)
HOST = st.lists(LABEL, min_size=1, max_size=3).map(".".join)
PORT = st.integers(1, 65535)
SCHEME = st.sampled_from(["http", "https"])


def _mixed_case(text: str, upper: list[bool]) -> str:
    return "".join(c.upper() if u else c for c, u in zip(text, upper + [False] * len(text), strict=False))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://FHIR.Example.org", "https://fhir.example.org:443"),
        ("HTTPS://fhir.example.org:443/r4/Patient?x=1#y", "https://fhir.example.org:443"),
        ("http://fhir.example.org", "http://fhir.example.org:80"),
        ("https://fhir.example.org:8443/", "https://fhir.example.org:8443"),
        ("https://bücher.example/", "https://xn--bcher-kva.example:443"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example:443"),
        ("https://[2001:DB8:0::1]/", "https://[2001:db8::1]:443"),
        ("https://example.org./", "https://example.org.:443"),
        ("https://under_score.example/", "https://under_score.example:443"),
    ],
)
def test_an_origin_has_one_spelling(url: str, expected: str) -> None:
    assert origin(url) == expected
    assert origin(expected) == expected


@given(SCHEME, HOST, PORT, st.text("/abcé?#%", max_size=20), st.lists(st.booleans(), max_size=30))
def test_path_query_and_case_never_change_the_origin(
    scheme: str, host: str, port: int, rest: str, upper: list[bool]
) -> None:
    expected = f"{scheme}://{host}:{port}"
    assert origin(f"{scheme}://{_mixed_case(host, upper)}:{port}/{rest}") == expected


@given(SCHEME, HOST, st.one_of(st.none(), PORT))
def test_the_origin_is_where_httpx_would_connect_to(scheme: str, host: str, port: int | None) -> None:
    url = httpx.URL(f"{scheme}://{host}" + ("" if port is None else f":{port}"))
    found = origin(url)
    assert found == f"{url.scheme}://{url.raw_host.decode()}:{url.port or {'http': 80, 'https': 443}[scheme]}"


@given(st.text(max_size=60))
def test_whatever_is_not_a_url_is_refused_with_words(text: str) -> None:
    try:
        found = origin(text)
    except ConfigError as error:
        assert error.advice
    else:
        assert origin(found) == found


@given(HOST, st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8, max_size=12))
def test_userinfo_is_refused_and_never_repeated(host: str, secret: str) -> None:
    url = f"https://user:Q{secret}Q@{host}/r4"
    with pytest.raises(ConfigError) as refused:
        origin(url)
    assert f"Q{secret}Q" not in str(refused.value)
    assert f"Q{secret}Q" not in printable(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "fhir.example.org",
        "//fhir.example.org",
        "ftp://fhir.example.org",
        "file:///etc/passwd",
        "https://",
        "https:///r4",
        "https://a b/",
        "https://exa%6dple.org/",
        "https://example.org:0/",
        "https://example.org:70000/",
        "https://example.org:x/",
        "https://example.org\\@evil.example/",
        "https://256.1.1.1/",
        "https://[::1/",
    ],
)
def test_urls_without_a_clear_origin_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        origin(url)
    with pytest.raises(AuthError):
        origin(url, error=AuthError)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.9.9.9", "[::1]:8080"])
def test_plain_http_is_for_loopback(host: str) -> None:
    """Protocol fact 1."""
    assert is_loopback(f"http://{host}/r4")
    require_secure(f"http://{host}/r4")


@pytest.mark.parametrize(
    "host",
    ["localhost.example.org", "127.0.0.1.example.org", "10.0.0.1", "0.0.0.0", "127.1", "[::]", "example.org"],
)
def test_plain_http_to_another_machine_is_refused(host: str) -> None:
    """Protocol fact 1."""
    assert not is_loopback(f"http://{host}/r4")
    with pytest.raises(ConfigError, match="plain http"):
        require_secure(f"http://{host}/r4?sig=SECRET")
    require_secure(f"https://{host}/r4")


def test_a_printed_url_has_no_query_no_fragment_and_no_user() -> None:
    assert printable("https://u:p@files.example.org:8443/a/b.ndjson?sig=S3CRET#x") == (
        "https://files.example.org:8443/a/b.ndjson"
    )
    assert printable("not a url at all ?sig=S3CRET") == "(an unreadable URL)"
    assert len(printable("https://h.example/" + "a" * 9000)) < 250


def test_a_name_in_punycode_that_stands_for_nothing_is_refused_with_words() -> None:
    """httpx reads such a URL, and raises an error of its own only when it looks for a proxy."""
    with pytest.raises(AuthError, match="cannot be read"):
        origin("https://xn--contso-jbg.example.org/r4", error=AuthError)
    assert printable("https://xn--contso-jbg.example.org/r4?sig=1") == "(an unreadable URL)"
