"""A notice that cannot be delivered is spoken of and tried again, and stands in nobody's way."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from raw_server import RawServer, sending
from test_notify_webhook import EVENTS, config_for, notice
from webhook_receiver import start_receiver

from pipeline.config import Config, LakeAuth
from pipeline.config import Notifier as Settings
from pipeline.errors import ConfigError, ServerRefused, Unreachable
from pipeline.lake.lake import open_lake
from pipeline.notify import delivery as deliveries
from pipeline.notify import webhook
from pipeline.notify.bodies import BODIES
from pipeline.notify.delivery import Delivery
from pipeline.notify.kinds import KINDS, Addressee, addressees, tell_all
from pipeline.notify.notice import Notice
from pipeline.notify.webhook import Webhook

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def hook(server: RawServer) -> Webhook:
    return Webhook(lambda: f"{server.origin}/S3CRET", BODIES["json"], "env:HOOK")


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (CHUNKED + b"1;", b"x"),
        (CHUNKED + b"0\r\n", b"X"),
    ],
    ids=["headers", "1xx", "extension", "trailer"],
)
def test_an_answer_that_drips_out_of_sight_ends(
    first: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that never comes back would be skipped at each tick, with all notices to come."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in range(400):  # not for ever: who has no patience's end must fail too
            connection.sendall(piece)
            time.sleep(0.02)

    monkeypatch.setattr(webhook, "SECONDS", 0.5)
    monkeypatch.setattr(webhook, "TRIES", 1)
    with RawServer(drip) as server, pytest.raises(Unreachable, match="in time"):
        hook(server).tell(notice())


@pytest.mark.parametrize("encoding", [b"br", b"gzip, gzip", b"gzip"])
def test_an_answer_that_cannot_be_unpacked_is_taken_by_its_status(encoding: bytes) -> None:
    """Else the same notice would be told at each tick."""
    body = gzip.compress(gzip.compress(b"ok"))[:-1]
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body))
    with RawServer(sending(head, body)) as server:
        hook(server).tell(notice())
        assert len(server.requests) == 1


def test_a_huge_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(400):
            connection.sendall(b"x" * (1 << 18))
            sent += 1 << 18

    with RawServer(flood) as server:
        hook(server).tell(notice())
    assert sent < 32 << 20


def test_a_webhook_with_a_name_and_a_password_in_its_url_sends_them() -> None:
    with RawServer(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as server:
        url = server.origin.replace("://", "://me:S3CRET@")
        Webhook(lambda: f"{url}/x", BODIES["json"], "env:HOOK").tell(notice())
        assert b"authorization: basic " in server.requests[0].lower()


def test_a_proxy_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALL_PROXY", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "socks5://proxy.example:1080")
    told = Webhook(lambda: "https://hooks.example.org/S3CRET", BODIES["json"], "env:HOOK")
    with pytest.raises(ConfigError, match="SOCKS") as refused:
        told.tell(notice())
    assert "S3CRET" not in str(refused.value)


# --- the delivery itself, with notifiers that are plugged in ----------------------------------------------


@dataclass
class Plugged:
    """Does what it is told."""

    does: Callable[[Notice], None]
    name: str = "plugged"
    told: list[str] = field(default_factory=list)

    def tell(self, one: Notice, /) -> None:
        self.does(one)
        self.told.append(one.instance)


def delivery_to(notifier: Plugged) -> Delivery:
    settings = Settings.model_construct(kind="plugged", url="env:X", format="text", events=EVENTS, sources=())
    return Delivery("hosp", [Addressee(settings, notifier)])


def test_a_notifier_that_does_not_come_back_is_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(deliveries, "LONG_SECONDS", 0.4)
    free = threading.Event()

    def hang(_: Notice) -> None:
        free.wait(60)

    hanging = Plugged(hang)
    lake, delivery = open_lake(str(tmp_path / "lake"), tmp_path), delivery_to(hanging)
    try:
        delivery.tell(lake, [notice()], print)
        time.sleep(0.5)
        (said,) = delivery.tell(lake, [notice(), notice(instance="another")], print)
        assert "has not come back" in said
    finally:
        free.set()
    deadline = time.monotonic() + 60
    while not delivery.has_told(lake, notice(instance="another")) and time.monotonic() < deadline:
        said_then = delivery.tell(lake, [notice(), notice(instance="another")], print)
        time.sleep(0.05)
    assert hanging.told == ["", "another"]
    assert said_then == []


def test_a_notice_that_is_refused_each_time_does_not_stand_before_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would be skipped until nobody tells them any more."""
    monkeypatch.setattr(deliveries, "_FIRST_PAUSE", 0.5)
    monkeypatch.setattr(deliveries, "_LONGEST_PAUSE", 0.5)

    def picky(one: Notice) -> None:
        if one.instance == "too long":
            raise ServerRefused("the webhook at hooks.example.org answers 413")

    notifier = Plugged(picky)
    lake, delivery = open_lake(str(tmp_path / "lake"), tmp_path), delivery_to(notifier)
    notices = [notice(instance=each) for each in ("too long", "second", "third")]
    deadline = time.monotonic() + 60
    while len(notifier.told) < 2 and time.monotonic() < deadline:
        (said,) = delivery.tell(lake, notices, print)
        assert "413" in said
        time.sleep(0.1)
    assert notifier.told == ["second", "third"]
    assert not delivery.has_told(lake, notices[0]), "and it is tried again"


def test_a_lake_that_may_not_be_read_keeps_nobody_from_being_told(tmp_path: Path) -> None:
    """A credential that is gone is no `LakeError`: that is the very night to tell somebody."""

    def gone(_: str) -> bytes:
        raise ConfigError("the variable LAKE is not set")

    auth = LakeAuth(kind="connection-string", connection_string="env:LAKE")
    lake = open_lake("abfss://lake@contoso.dfs.core.windows.net/x", tmp_path, auth, gone)
    said: list[str] = []
    notifier = Plugged(lambda _: None)
    delivery = delivery_to(notifier)
    for _ in range(3):
        assert delivery.tell(lake, [notice(instance="one"), notice(instance="two")], said.append) == []
    assert notifier.told == ["one", "two"], "in this process it is remembered"
    assert len(said) == 2
    assert all("could not be written down" in each for each in said)


def test_whatever_goes_wrong_with_the_memory_the_rest_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks into the thread that tells: what ends it there would be heard of nowhere."""
    lake = open_lake(str(tmp_path / "lake"), tmp_path)

    def broken(*_: object) -> bool:
        raise OSError(5, "S3CRET")

    monkeypatch.setattr(type(lake), "put_new", broken)
    said: list[str] = []
    notifier = Plugged(lambda _: None)
    delivery_to(notifier).tell(lake, [notice(instance="one"), notice(instance="two")], said.append)
    assert notifier.told == ["one", "two"]
    assert len(said) == 2
    assert "S3CRET" not in " ".join(said)


def test_a_test_notice_reaches_everybody_whatever_the_first_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Notice) -> None:
        raise RuntimeError("S3CRET")

    monkeypatch.setitem(KINDS, "bell", lambda config, settings: Plugged(broken, "bell"))
    with start_receiver() as receiver:
        config = config_for(tmp_path, receiver)
        bell = Settings.model_construct(kind="bell", url="env:X", format="text", events=EVENTS, sources=())
        both: Config = config.model_copy(update={"notify": (bell, *config.notify)})
        assert len(addressees(both)) == 2
        test = Notice("test", "hosp", "test", "a test", "nothing", datetime.now(UTC))
        verdicts = tell_all(both, test)
        assert len(receiver.bodies) == 1
    assert "unexpected RuntimeError" in str(verdicts.pop("bell"))
    assert list(verdicts.values()) == [None]
