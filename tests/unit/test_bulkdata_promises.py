"""What a manifest or an answer says of a file's bytes (protocol fact 33)."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bulkdata.manifest import ManifestFile, parse_manifest
from pipeline.bulkdata.promises import Promised, digests_in, promised_by

SHA = hashlib.sha256(b"x").digest()
MD5 = hashlib.md5(b"x", usedforsecurity=False).digest()


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def entry(extension: Any) -> ManifestFile:
    page = {
        "transactionTime": "2026-01-01T00:00:00Z",
        "output": [{"type": "Patient", "url": "https://x/1", "extension": extension}],
    }
    return parse_manifest(page).files[0]


@pytest.mark.parametrize("host", ["dpc", "ab2d"])
@pytest.mark.parametrize("length", [2468, 2468.0, "2468"])
def test_dpc_and_ab2d_give_sha256_and_length(host: str, length: object) -> None:
    """Protocol fact 33, as their services write it."""
    file = entry(
        [
            {"url": f"https://{host}.cms.gov/checksum", "valueString": f"sha256:{SHA.hex().upper()}"},
            {"url": f"https://{host}.cms.gov/file_length", "valueDecimal": length},
        ]
    )
    assert promised_by(file) == Promised(SHA.hex(), 2468)


def test_one_of_dpcs_services_sends_a_plain_object() -> None:
    file = entry(
        {"https://dpc.cms.gov/checksum": f"sha256:{SHA.hex()}", "https://dpc.cms.gov/file_length": 7}
    )
    assert promised_by(file) == Promised(SHA.hex(), 7)


@pytest.mark.parametrize(
    "extension",
    [
        None,
        [],
        "sha256",
        [{"url": "https://dpc.cms.gov/checksum"}],
        [{"url": "https://dpc.cms.gov/checksum", "valueString": "ad09ae2eee0a5111508b072cb8c3eaca"}],
        [{"url": "https://dpc.cms.gov/checksum", "valueString": SHA.hex()}],
        [{"url": "https://dpc.cms.gov/file_length", "valueDecimal": True}],
        [{"url": "https://dpc.cms.gov/file_length", "valueDecimal": -1}],
        [{"url": "https://elsewhere.example/checksum", "valueString": f"sha256:{SHA.hex()}"}],
        [7, {"url": 7}],
    ],
)
def test_what_cannot_be_read_is_no_promise(extension: Any) -> None:
    assert promised_by(entry(extension)) == Promised()


@pytest.mark.parametrize(
    ("name", "text", "algorithm", "value"),
    [
        ("repr-digest", f"sha-256=:{b64(SHA)}:", "sha256", SHA),
        ("content-digest", f"unixsum=:AA==:, sha-256=:{b64(SHA)}:", "sha256", SHA),
        ("digest", f"SHA-256={b64(SHA)}", "sha256", SHA),
        ("digest", f"md5={b64(MD5)}", "md5", MD5),
        ("content-md5", b64(MD5), "md5", MD5),
        ("x-ms-blob-content-md5", b64(MD5), "md5", MD5),
    ],
)
def test_headers_announce_digests(name: str, text: str, algorithm: str, value: bytes) -> None:
    (found,) = digests_in({name: text})
    assert (found.header, found.algorithm, found.value) == (name, algorithm, value)


@given(st.sampled_from(["digest", "repr-digest", "content-md5"]), st.text(max_size=120))
def test_any_other_header_is_no_promise_and_no_error(name: str, text: str) -> None:
    for each in digests_in({name: text}):
        assert len(each.value) == hashlib.new(each.algorithm, usedforsecurity=False).digest_size


def test_a_digest_of_another_length_is_none() -> None:
    assert digests_in({"digest": f"sha-256={b64(MD5)}"}) == []
