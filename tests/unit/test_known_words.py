"""What an answer may cost and what of it may be repeated where it speaks of data: known codes only."""

from __future__ import annotations

import json

import httpx
import pytest

from pipeline.azure import storage_access
from pipeline.bulkdata.answers import Failed, RetryLater
from pipeline.bulkdata.exchange import Reply
from pipeline.bulkdata.issue_codes import ERROR_CODES
from pipeline.bulkdata.outcome import describe_kind, overfull, read_json
from pipeline.bulkdata.profiles import profile_of
from pipeline.bulkdata.verdicts import page_of, status_verdict
from pipeline.errors import VerificationFailed

STATUS = "https://fhir.example.org/status/1"
EMPTY_LISTS = b'{"transactionTime":"2026-01-01T00:00:00Z","output":[' + b"[]," * 6_000_000 + b"[]]}"


def reply(body: bytes, status: int = 200) -> Reply:
    return Reply(status, STATUS, httpx.Headers(), body)


@pytest.mark.parametrize("name", ["error", "code", "Code", "Id"])
@pytest.mark.parametrize("said", ["Miller", "JaneDoe", "jane-doe", "e5f1c9a0-name"])
def test_a_word_that_is_no_known_code_may_be_a_name(name: str, said: str) -> None:
    for body in ({name: said}, {"error": {name: said}}, {name: said, "message": said}):
        assert describe_kind(json.dumps(body).encode()) == "a JSON body"
    answer = status_verdict(reply(json.dumps({name: said}).encode(), 400), profile_of("smart"))
    assert isinstance(answer, Failed)
    assert said not in repr(answer)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"error": "invalid_token", "error_description": "of Jane Doe"}, "invalid_token"),
        ({"error": {"code": "Forbidden", "message": "Jane Doe"}}, "Forbidden"),
        ({"Code": "ServerBusy"}, "ServerBusy"),
        ({"error": "Jane", "code": "TooManyRequests"}, "TooManyRequests"),
        ({"error": ["invalid_token"], "Id": {"a": 1}, "code": 7}, "a JSON body"),
    ],
)
def test_known_codes_are_told_and_nothing_besides(body: object, told: str) -> None:
    assert describe_kind(json.dumps(body).encode()) == told


def test_every_storage_code_that_is_explained_may_be_told() -> None:
    """azure-and-aidbox D."""
    assert storage_access._ADVICE.keys() <= ERROR_CODES


def test_a_body_of_countless_values_is_refused_before_it_is_read() -> None:
    """18 MB of `[]` would take half a gigabyte, 256 MB five (found by a review)."""
    assert overfull(EMPTY_LISTS)
    assert read_json(EMPTY_LISTS) is None
    assert overfull(b"[" + b'{"a":' * 6_000_001)
    assert not overfull(b" " * 20_000_000)


def test_a_manifest_of_a_million_files_with_all_that_they_may_have_is_read() -> None:
    entry = b'{"type":"Patient","url":"https://f.example.org/1","count":1,"continuesInFile":"u","x":{"a":1,"b":2}},'
    assert not overfull(b'{"output":[' + entry * 1_000_000)


def test_the_manifest_says_so_itself() -> None:
    """Not that it is no JSON: the operator would look for another fault."""
    for look in (page_of, lambda each: status_verdict(each, profile_of("smart"))):
        with pytest.raises(VerificationFailed, match="more values than one of a million files") as raised:
            look(reply(EMPTY_LISTS))
        assert "fewer types" in raised.value.advice
    assert isinstance(status_verdict(reply(EMPTY_LISTS, 503), profile_of("smart")), RetryLater)
