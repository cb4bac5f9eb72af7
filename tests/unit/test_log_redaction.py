"""What a process writes into logs: no secret that it holds or that looks like one."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue

import pytest

from pipeline import redaction
from pipeline.errors import LakeError
from pipeline.exports.strays import StrayLines
from pipeline.log_redaction import keep_logs_clean
from pipeline.redaction import clean, hide, remember

TOKEN = "q7Zt0pAqUe-t0k3n.Wit_hout_a.a_form_that_tells"  # no JWT: only its being known gives it away
JWT = "eyJhbGciOiJFUzM4NCJ9.eyJpc3MiOiJuaWdodGx5In0.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
SAS = "sv=2021-08-06&sr=c&sig=Z1%2BSgnatureOfTheAccount%3D&se=2026-01-01T00%3A00%3A00Z"
PEM = "-----BEGIN PRIVATE KEY-----\nMIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGb\n-----END PRIVATE KEY-----\n"


NAME = "-".join(("Ann", "Miller"))  # as no line of source has it: tracebacks quote those


def fail_in_our_code() -> None:
    """A foreign error with content in its text."""
    next(StrayLines(Path()).take(NAME))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the root's handler has written, at DEBUG; everything as it was afterwards."""
    factory, root = logging.getLogRecordFactory(), logging.getLogger()
    level = root.level
    monkeypatch.setattr(redaction, "_memory", redaction._Memory())
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    keep_logs_clean()
    yield out
    root.removeHandler(handler)
    root.setLevel(level)
    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize(
    "name", ["httpx", "httpcore.http11", "urllib3", "azure.core", "adlfs", "pipeline", "x"]
)
@pytest.mark.parametrize(
    "said",
    [
        f"Authorization: Bearer {JWT}",
        f"got {JWT} from there",
        "GET https://a.blob.core.windows.net/c/f?sv=2021&sig=SECRET%2Bsig%3D done",
        "https://u:SECRETpw@h.example/p",
        "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=SECRETkeySECRET==;",
        PEM,
        "client_secret=SECRETvalue&grant_type=client_credentials",
        "{'client_assertion': 'SECRETassertion'}",
        "https://s3.example/b?X-Amz-Signature=SECRETamz",
        "/files/1?token=SECRETtoken",
    ],
)
def test_what_looks_like_a_secret_is_hidden_whoever_writes_it(
    written: io.StringIO, name: str, said: str
) -> None:
    logging.getLogger(name).debug(said)
    logging.getLogger(name).info("so: %s", said)
    logging.getLogger(name).error("so: %(it)s", {"it": said})
    for secret in ("SECRET", JWT, JWT.split(".")[1], "MIG2AgEA", "sig=Z"):
        assert secret not in written.getvalue()
    assert written.getvalue().count("[hidden]") >= 2 or "u:" not in written.getvalue()


def test_secrets_that_are_known_are_hidden_in_pieces_too(written: io.StringIO) -> None:
    for secret in (TOKEN, SAS, PEM.encode(), "short-pw"):
        remember(secret)
    logging.warning("%s and %s", TOKEN, TOKEN.rpartition(".")[2])
    logging.warning("Z1+SgnatureOfTheAccount= Z1%2BSgnatureOfTheAccount%3D")
    logging.warning("key line MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGb, pw short-pw")
    for secret in ("form_that", "SgnatureOf", "MIG2", "short-pw"):
        assert secret not in written.getvalue()
    assert TOKEN not in hide(f"a {TOKEN}")
    assert TOKEN not in clean(f"a {TOKEN}")


def test_a_long_line_is_not_cut_through_a_secret(written: io.StringIO) -> None:
    secret = "half of! this (client's) secret"
    remember(secret)
    logging.warning("y " * 15_990 + "and now: " + secret + " z" * 100)
    assert written.getvalue().rstrip().endswith("y and now: ... (cut)")


def test_what_a_server_sent_in_its_headers_is_in_no_line(written: io.StringIO) -> None:
    headers = "[(b'Location', b'https://x/?k=v'), (b'X-Patient', b'Ann Miller')]"
    logging.getLogger("httpcore.http11").debug(
        "receive_response_headers.complete return_value=(b'HTTP/1.1', 200, b'OK', %s)", headers
    )
    assert "receive_response_headers.complete" in written.getvalue()
    assert "Ann" not in written.getvalue()


def test_an_errors_text_is_written_only_where_it_cannot_hold_content(
    written: io.StringIO, tmp_path: object
) -> None:
    try:
        try:
            next(
                StrayLines(Path()).take("-".join(("Ann", "Miller")))
            )  # a foreign error that comes through code of ours
        except KeyError as error:
            raise RuntimeError(f"around it: {NAME}") from error
    except RuntimeError:
        logging.exception("it failed")
    said = written.getvalue()
    assert NAME not in said
    assert "RuntimeError: (text withheld)" in said, "it may repeat the one that it was made of"
    assert "strays.py" in said
    assert "(text withheld)" in said
    try:
        raise LakeError("no lake", f"ask with Bearer {JWT}")
    except LakeError:
        logging.exception("told")
    assert "no lake" in written.getvalue()
    assert JWT not in written.getvalue()


def test_handlers_that_print_errors_themselves_get_a_harmless_one(written: io.StringIO) -> None:
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logging.getLogger("q").addHandler(QueueHandler(records))
    try:
        fail_in_our_code()
    except KeyError as error:
        error.add_note(NAME)
        record = logging.getLogger("q").makeRecord("q", 40, "f", 1, "m", (), sys.exc_info())
    assert record.exc_info is not None
    assert NAME not in str(record.exc_info[1])
    assert NAME not in logging.Formatter().formatException(record.exc_info)  # type: ignore[arg-type]
    assert not getattr(record.exc_info[1], "__notes__", [])


def test_arguments_stay_apart_for_formatters_that_want_them(written: io.StringIO) -> None:
    """uvicorn's access lines are formatted from five arguments."""
    record = logging.getLogger("uvicorn.access").makeRecord(
        "uvicorn.access", 20, "f", 1, '%s - "%s %s HTTP/%s" %d',
        ("127.0.0.1:5", "GET", "/runs?token=SECRETtoken", "1.1", 200), None,
    )  # fmt: skip
    assert isinstance(record.args, tuple)
    assert len(record.args) == 5
    assert record.args[4] == 200
    assert "SECRET" not in record.getMessage()


def test_our_own_words_get_through(written: io.StringIO) -> None:
    said = "run_key=hosp:20260131T020000Z:1 asset_key=AssetKey(['hosp', 'patient']) sha256 " + "ab" * 32
    logging.info(said)
    assert said in written.getvalue()


def test_installing_it_twice_changes_nothing(written: io.StringIO) -> None:
    before = logging.getLogRecordFactory()
    keep_logs_clean()
    assert logging.getLogRecordFactory() is before


def test_an_error_that_ends_the_process_shows_no_text() -> None:
    program = (
        "from pipeline.log_redaction import keep_logs_clean; keep_logs_clean()\n"
        "import threading\n"
        "from pipeline.exports.strays import StrayLines\n"
        "from pathlib import Path\n"
        "take = lambda name: next(StrayLines(Path()).take('-'.join(('Ann', name))))\n"
        "t = threading.Thread(target=take, args=('Thread',)); t.start(); t.join()\n"
        "take('Main')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("text withheld") == 2
    assert "Ann-" not in done.stderr


def test_what_this_process_makes_and_reads_is_known_at_once(written: io.StringIO) -> None:
    """Tokens, assertions, private keys, and what opens the lake's account (protocol 6, 8)."""
    from pipeline.auth.assertion import client_assertion
    from pipeline.auth.keys import generate_key
    from pipeline.auth.signers import PemSigner
    from pipeline.auth.tokens import Token
    from pipeline.config import LakeAuth
    from pipeline.lake.blob_account import BlobAccess

    pem = generate_key("ES384")
    signer = PemSigner.from_pem(pem, "ES384")
    assertion = client_assertion(signer, client_id="me", audience="https://h.example/token")
    Token(TOKEN, expires_at=1.0)
    BlobAccess("acc", "https://acc.example", LakeAuth(), key="AccountKeyOfTheLakeItself0==")
    held = [TOKEN, assertion.rpartition(".")[2], pem.decode().splitlines()[1], "AccountKeyOfTheLakeItself0=="]
    logging.warning("%s", held)
    for secret in held:
        assert secret not in written.getvalue()
