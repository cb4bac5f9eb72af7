"""Texts made to keep the redaction busy, and secrets that must outlast everything else."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import redaction
from pipeline.redaction import HIDDEN, clean, hide, remember

STEADY = settings(deadline=None, derandomize=True)  # the machine may be busy

PEM = "-----BEGIN PRIVATE KEY-----\nMIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGb\n-----END PRIVATE KEY-----\n"
ODD_SECRET = "half of! this (client's) secret"  # no pattern takes it for one


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> redaction._Memory:
    """An empty one in the place of the process's."""
    found = redaction._Memory()
    monkeypatch.setattr(redaction, "_memory", found)
    return found


def cost(work: Callable[[str], object], text: str) -> float:
    """Seconds of this process's CPU."""
    begun = time.process_time()
    work(text)
    return time.process_time() - begun


def grows_by(work: Callable[[str], object], short: str, long: str, most: float) -> bool:
    """Whether the long text costs at most so many times what the short one does."""
    least = min(cost(work, short) for _ in range(5))
    return any(cost(work, long) <= most * least for _ in range(8))  # others' noise only adds


@pytest.mark.parametrize(
    "piece",
    ["a=", "=a", "\u00e9=", "a=&", "a&b=", "sig=", "?sig=", "token=", "token: Aa", "token ", "a-",
     "eyJaaaaa.", "eyJ", "https://", "https://a@", "://", "-----BEGIN PRIVATE KEY-----", "-----BEGIN ",
     "bearer  ", "a" * 39 + " "],
)  # fmt: skip
def test_hiding_takes_time_in_proportion_to_the_text(memory: redaction._Memory, piece: str) -> None:
    """Eight times the text: eight times the work, where a pattern that looks again takes 64 times."""
    short, long = (piece * (length // len(piece)) for length in (2_000, 16_000))
    assert grows_by(hide, short, long, most=24)


def test_a_long_text_costs_no_more_than_its_beginning(memory: redaction._Memory) -> None:
    for number in range(200):
        remember(f"one of the secrets, {number:04}")
    short, long = ("some words " * (1 << power) for power in (15, 19))
    assert grows_by(clean, short, long, most=4)


words = st.lists(
    st.sampled_from(
        ["https://", "HTTP://", "http", "a", "b-c", "=", "&", "&amp;", "amp;", "?", "#", " ", '"', "/", ".",
         "%2B", "\u00e9", ";", "&a=b", "@", "\n"]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(STEADY, max_examples=1000)
@given(words)
def test_the_patterns_in_time_say_what_the_plain_ones_say(text: str) -> None:
    tails = re.compile(r"(?i)(https?://[^\s?#\"'<>]*)[?#][^\s\"'<>]*")
    pairs = re.compile(r"(?<![\w.%~-])[\w.%~-]+=[^\s&\"'<>]*(?:&(?:amp;)?[\w.%~-]+=[^\s&\"'<>]*)+")
    assert redaction._URL.sub(redaction._hide_tail, text) == tails.sub(rf"\1?{HIDDEN}", text)
    assert redaction._PAIRS.sub(redaction._hide_pairs, text) == pairs.sub(HIDDEN, text)


@STEADY
@given(st.integers(0, 12 * len(ODD_SECRET)), st.integers(30, 42))
def test_a_secret_at_the_border_of_what_is_read_is_not_shown_in_part(shift: int, echoes: int) -> None:
    """Hiding makes the text so much shorter that its border comes into what is shown."""
    secret = ODD_SECRET * 12
    filler = " " * (redaction._MOST_SEARCHED - shift - echoes * (len(secret) + 1))
    text = f"{secret} " * echoes + filler + secret * 2
    for each in (text, f"{'x ' * shift}{text}"):
        said = clean(each, 5000, secrets=[secret])
        assert "half" not in said
        assert "client" not in said


@STEADY
@given(st.integers(1, 39))
def test_half_a_token_at_the_border_is_not_shown(shift: int) -> None:
    token = "Ab1" * 20
    assert "Ab1" not in clean(" " * (redaction._MOST_SEARCHED - shift) + token)
    assert "Ab1" not in clean(" " * (redaction._MOST_READ - shift) + token)


def test_lasting_secrets_outlast_any_number_of_tokens(memory: redaction._Memory) -> None:
    remember(PEM, lasting=True)
    remember("the-clients-secret", lasting=True)
    remember("an-early-token-of-none")
    for number in range(1500):
        remember(f"a-token-that-passes-{number:06}")
    said = hide("MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGb the-clients-secret a-token-that-passes-001499")
    assert said == f"{HIDDEN} {HIDDEN} {HIDDEN}"
    assert "early" in hide("an-early-token-of-none")


def test_what_is_remembered_is_bounded(memory: redaction._Memory) -> None:
    for number in range(redaction._MOST_LASTING + 10):
        remember(f"renewed-{number:06}", lasting=True)
    assert len(memory.known) == redaction._MOST_LASTING
    assert hide("renewed-004009") == HIDDEN


def test_no_piece_takes_the_middle_out_of_a_longer_secret(memory: redaction._Memory) -> None:
    remember("password")
    remember("my password, that is long")
    assert hide("it is my password, that is long") == f"it is {HIDDEN}"


def test_threads_remember_one_after_the_other_and_nobody_waits_to_hide(memory: redaction._Memory) -> None:
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with memory._lock:
            held.set()
            free.wait()

    remember("known-before")
    threads = [threading.Thread(target=hold), threading.Thread(target=remember, args=("known-later",))]
    threads[0].start()
    held.wait()
    threads[1].start()
    threads[1].join(1)
    waited = threads[1].is_alive()
    said = hide("known-before, known-later")
    free.set()
    for thread in threads:
        thread.join()
    assert waited
    assert said == f"{HIDDEN}, known-later"
    assert hide("known-later") == HIDDEN


def test_a_child_remembers_though_it_was_forked_in_the_midst_of_it() -> None:
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with redaction._memory._lock:
            held.set()
            free.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        remember("of the child only")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    free.set()
    thread.join()
    assert status == 0
