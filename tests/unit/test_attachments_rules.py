"""What is wanted of attachments, what they promise, and where their URLs may lead: without a network."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bulkdata.attachment_policy import AttachmentPolicy, without_query
from pipeline.bulkdata.attachment_rules import (
    Declared,
    NotTaken,
    accept,
    decoded,
    fetch_key,
    is_wanted,
    media_type,
    require_as_declared,
    unwrapped,
)
from pipeline.errors import DownloadRefused

BASE = "https://fhir.example.org/r4"


def declared(**named: object) -> Declared:
    return Declared("DocumentReference", "d1", "1", "content[0].attachment", **named)  # type: ignore[arg-type]


def judged(content: bytes, answered: str | None = None, **named: object) -> str:
    sha1, sha256 = hashlib.sha1(content, usedforsecurity=False).digest(), hashlib.sha256(content).digest()
    try:
        require_as_declared(declared(**named), len(content), sha1, sha256, answered)
    except NotTaken as refused:
        return refused.state
    return "stored"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("application/pdf", "application/pdf"),
        (" Text/HTML ; charset=utf-8", "text/html"),
        ("application/fhir+json", "application/fhir+json"),
        ("", None),
        (None, None),
        ("pdf", None),
        ("text/html\r\nX-Evil: 1", None),
        ("a/b/c", None),
        ("ä/b", None),
    ],
)
def test_media_types_are_read_strictly(text: str | None, kind: str | None) -> None:
    assert media_type(text) == kind


def test_types_are_wanted_by_name_or_family() -> None:
    wanted = ("application/pdf", "text/*")
    asked = ["APPLICATION/PDF", "text/plain; charset=x", "image/png", "textual/plain", None, "pdf"]
    assert [is_wanted(each, wanted) for each in asked] == [True, True, False, False, False, False]
    assert all(is_wanted(each, None) and is_wanted(each, ("*/*",)) for each in asked)


@given(st.text(max_size=40))
def test_whatever_a_resource_says_of_its_type_the_header_is_one_line_of_ascii(text: str) -> None:
    header = accept(text)
    assert header.isascii()
    assert header.isprintable()
    assert header.count(",") <= 1


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=220))
def test_inline_data_come_back_whole_or_are_too_large(content: bytes, most: int) -> None:
    text = base64.encodebytes(content).decode()  # with line ends, which FHIR allows
    if len(content) <= most:
        assert decoded(text, most) == content
    else:
        with pytest.raises(NotTaken) as refused:
            decoded(text, most)
        assert refused.value.state == "too large"


@given(st.text(max_size=60))
def test_what_is_no_base64_is_told_and_never_breaks(text: str) -> None:
    try:
        found = decoded(text, 1000)
    except NotTaken as refused:
        assert refused.state == "mismatch"
    else:
        assert base64.b64encode(found).decode() == "".join(text.split())


@settings(max_examples=30)
@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["resourceType", "data", "contentType", "x"]), inner)
        ),
    )
)
def test_only_a_binary_is_unwrapped(value: object) -> None:
    body = json.dumps(value).encode()
    assert unwrapped(body, 1000) is None or (isinstance(value, dict) and value["resourceType"] == "Binary")


def test_a_binary_is_unwrapped_to_its_content_and_type() -> None:
    data = base64.b64encode(b"xyz").decode()
    resource = {"resourceType": "Binary", "contentType": "image/png", "data": data}
    assert unwrapped(json.dumps(resource).encode(), 3) == (b"xyz", "image/png")
    assert unwrapped(b"[" * 100_000, 3) is None
    with pytest.raises(NotTaken, match="too large"):
        unwrapped(json.dumps(resource).encode(), 2)
    with pytest.raises(NotTaken, match="holds no data"):
        unwrapped(b'{"resourceType": "Binary"}', 3)


@given(st.binary(min_size=1, max_size=50))
def test_a_promise_in_any_usual_spelling_is_kept_by_the_content_alone(content: bytes) -> None:
    sha1, sha256 = hashlib.sha1(content, usedforsecurity=False), hashlib.sha256(content)
    spellings = [
        base64.b64encode(sha1.digest()).decode(),
        base64.b64encode(sha1.hexdigest().encode()).decode(),
        sha1.hexdigest(),
        base64.b64encode(sha256.digest()).decode(),
    ]
    for each in spellings:
        assert judged(content, hash=each, size=len(content)) == "stored"
        assert judged(content + b"x", hash=each) == "mismatch"
        assert judged(content, hash=each, size=len(content) + 1) == "mismatch"


def test_an_error_page_is_no_document_unless_its_hash_proves_it() -> None:
    assert judged(b"x", "text/html; charset=utf-8", content_type="application/pdf") == "mismatch"
    assert judged(b"x", "application/fhir+json", content_type="application/pdf") == "mismatch"
    assert judged(b"x", "text/html", content_type="text/html") == "stored"
    assert judged(b"x", "application/octet-stream", content_type="application/pdf") == "stored"
    assert judged(b"x", "text/html") == "stored"
    proof = base64.b64encode(hashlib.sha1(b"x", usedforsecurity=False).digest()).decode()
    assert judged(b"x", "text/html", content_type="application/pdf", hash=proof) == "stored"


def test_the_same_content_is_known_by_its_hash_or_by_the_version_of_its_resource() -> None:
    def key(url: str = "u", version: str | None = "1", name: str = "d1", **named: object) -> str | None:
        return fetch_key(
            Declared("DocumentReference", name, version, "content[0]", **named),
            url,  # type: ignore[arg-type]
        )

    assert key(hash="h", version="1") == key("v", hash="h", version="2", name="d2")
    by_version = [key(), key(version="2"), key(name="d2"), key("v"), key(size=1)]
    different = [*by_version, key(hash="h"), key(hash="h", size=1)]
    assert len(set(different)) == len(different)
    assert key(version=None) is None, "nothing tells whether it is still the same"


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("Binary/1", f"{BASE}/Binary/1"),
        ("https://fhir.example.org:443/r4/Binary/1", "https://fhir.example.org:443/r4/Binary/1"),
        ("/files/1", "https://fhir.example.org/files/1"),
        ("https://docs.example.org/1?sig=x", "https://docs.example.org/1?sig=x"),
    ],
)
def test_urls_that_may_be_asked(written: str, asked: str) -> None:
    policy = AttachmentPolicy(BASE, ("docs.example.org",))
    url = policy.resolve(written)
    assert url == asked
    policy.check(url)
    assert policy.is_own(url) == ("docs" not in url)


@pytest.mark.parametrize(
    "written",
    [
        "https://other.example.org/1",
        "https://fhir.example.org.evil.example/1",
        "https://fhir.example.org:8443/r4/Binary/1",
        "http://fhir.example.org/r4/Binary/1",
        "http://docs.example.org/1",
        "https://docs.example.org:444/1",
        "https://user@fhir.example.org/r4/Binary/1",
        "//other.example.org/1",
        "https://169.254.169.254/latest",
        "https://127.0.0.1/1",
        "https://[::1]/1",
        "http://localhost/1",
        "urn:uuid:1",
        "data:text/plain;base64,eA==",
        "file:///etc/passwd",
        "#b1",
        "Patient/$export",
        "Patient/%24export",
        "https://[broken",
    ],
)
def test_urls_that_must_not_be_asked(written: str) -> None:
    policy = AttachmentPolicy(BASE, ("docs.example.org",))
    try:
        policy.check(policy.resolve(written))
    except DownloadRefused:
        return
    pytest.fail(f"{written} would be asked")


READ = [
    "Binary/1",
    "Binary/1/_history/2",
    "Binary/TR-12.a_b~c",
    "Binary/1?_format=application/pdf",
    "binary/1",
    f"{BASE}//Binary/1",
    "https://fhir.example.org/Binary/1",
    "https://fhir.example.org/storage/8a/1?Expires=1&Signature=x_y&Key-Pair-Id=z",
    "https://fhir.example.org/media/patient/1.pdf",
    "https://fhir.example.org/files/My%20letter.pdf",
    "documents/1",
]
NOT_READ = [
    "",
    "?name=x",
    "?_type=Patient",
    "Patient",
    "Patient/2",
    "patient/2",
    "Patient?_count=1000",
    "Patient/1/Binary/2",
    "Patient/1/%20$everything",
    "Patient/1/x",
    "Patient%2F2",
    "%50atient/2",
    "%2550atient/2",
    "a;$export",
    "a%3B%24export",
    "x/$graphql",
    "Patient/%2524export",
    "Binary",
    "Binary?_count=1000",
    "Binary/",
    "Binary/_search",
    "Binary/1/_history",
    "Binary/1/_history/_x",
    "Binary/1/$download",
    "Binary/1/x",
    "Binary/1?_include=*",
    "Binary/1?%5Finclude=*",
    "Binary/1?%255Finclude=*",
    "Binary/1?%252525Finclude=*",
    "Binary/1?a=b;_include=*",
    "Binary/1?+_include=*",
    "Binary/1%3F_include=*",
    "Binary/1/%2e%2e/%2e%2e/Patient/2",
    "Binary/../Patient/2",
    "Binary%5C..%5CPatient",
    "\\\\other.example.org\\1",
    "Binary/%00",
    "_history",
    "_operations/export/1",
    "documents/1?_count=5",
    "tenant/Patient/2",
    "https://fhir.example.org/Patient/2",
    "https://fhir.example.org/R4/patient/2",
    "https://fhir.example.org/other/fhir/Observation?code=x",
    "https://fhir.example.org/",
    "https://fhir.example.org/?_type=Patient",
]


def test_of_the_server_itself_only_documents_are_asked_for_with_the_token() -> None:
    """Whoever writes into a chart must not choose what we read and search with our own rights."""
    policy = AttachmentPolicy(BASE)
    for written in READ:
        policy.check(policy.resolve(written))
    for written in NOT_READ:
        url = policy.resolve(written)
        with pytest.raises(DownloadRefused) as refused:
            policy.check(url)
            pytest.fail(f"{written} would be asked for")
        assert "Patient" not in str(refused.value)
    at_the_root = AttachmentPolicy("https://fhir.example.org")
    at_the_root.check("https://fhir.example.org/Binary/1")
    with pytest.raises(DownloadRefused):
        at_the_root.check("https://fhir.example.org/Patient/1")


@given(
    st.sampled_from(["Patient/2", "Patient?name=x", "$export", "Binary?_count=9", "Patient/2/_history"]),
    st.integers(min_value=0, max_value=2),
    st.lists(st.integers(min_value=0, max_value=18), max_size=4),
)
def test_no_way_of_encoding_makes_a_search_a_document(plain: str, times: int, places: list[int]) -> None:
    text = plain
    for _ in range(times):
        text = "".join(
            f"%{ord(char):02X}" if number in places or char == "%" else char
            for number, char in enumerate(text)
        )
    policy = AttachmentPolicy(BASE)
    with pytest.raises(DownloadRefused):
        policy.check(policy.resolve(text))


@given(st.text(max_size=80))
def test_any_text_in_a_url_is_our_server_or_is_refused(text: str) -> None:
    policy = AttachmentPolicy(BASE)
    try:
        url = policy.resolve(text)
        policy.check(url)
    except DownloadRefused:
        return
    assert policy.is_own(url)


@given(st.text(max_size=60))
def test_no_query_and_no_password_is_kept_of_a_url(text: str) -> None:
    kept = without_query(f"https://user:secret@h.example/a?sig=hidden{text}#part")
    assert kept is None or ("secret" not in kept and "hidden" not in kept)
    assert without_query("data:text/plain;base64,c2VjcmV0") is None
