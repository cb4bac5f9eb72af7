"""Tokens that end many times during a download: the sandbox with two-second tokens, and many threads.

Two seconds stand for the 300 of most servers (protocol fact 8): the same share of a token's life is left
when it is renewed.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from pipeline.auth.bearer import BearerAuth
from pipeline.auth.keys import generate_key
from pipeline.auth.signers import PemSigner
from pipeline.auth.tokens import SmartTokenSource
from pipeline.sandbox.process import start_sandbox

SECONDS = 15.0
THREADS = 8


def test_no_request_fails_while_tokens_come_and_go() -> None:
    signer = PemSigner.from_pem(generate_key("ES384"), "ES384")
    with (
        start_sandbox(patients=3, jwks={"keys": [signer.public_jwk()]}, token_seconds=2) as sandbox,
        httpx.Client(timeout=10, trust_env=False) as client,
    ):
        source = SmartTokenSource(signer, "nightly", "system/*.rs", fhir_url=sandbox.fhir_url)
        client.auth = BearerAuth(source, client, [sandbox.base_url])
        end = time.monotonic() + SECONDS

        def read(number: int) -> Counter[int]:
            seen: Counter[int] = Counter()
            while time.monotonic() < end:
                seen[client.get(f"{sandbox.fhir_url}/Patient", params={"_count": 1}).status_code] += 1
                time.sleep(0.01)
            return seen

        with ThreadPoolExecutor(THREADS) as pool:
            seen = sum(pool.map(read, range(THREADS)), Counter())
        log = sandbox.access_log()
    tokens = [entry for entry in log if entry["path"] == "/auth/token"]
    reads = Counter(entry["status"] for entry in log if entry["path"] == "/fhir/Patient")
    assert set(seen) == {200}
    assert seen[200] > 200
    assert reads[200] == seen[200]
    assert SECONDS / 2 <= len(tokens) <= SECONDS / 2 * 2, "one token for all threads, a fifth before its end"
    assert reads[401] <= len(tokens), "renewed before its end; a straggler is repeated with the next token"
