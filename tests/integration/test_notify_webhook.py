"""Notices over a real HTTP server: taken, refused, late, away; and what is remembered of it."""

from __future__ import annotations

import json
import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from webhook_receiver import Receiver, start_receiver

from pipeline.cli import _exit_code
from pipeline.config import Config
from pipeline.config import Notifier as Settings
from pipeline.errors import ConfigError, ExportError, ServerRefused, Unreachable
from pipeline.lake.lake import open_lake
from pipeline.notify import delivery as deliveries
from pipeline.notify import webhook
from pipeline.notify.bodies import BODIES
from pipeline.notify.delivery import Delivery
from pipeline.notify.kinds import KINDS, Addressee, addressees
from pipeline.notify.notice import Notice

EVENTS = ("run-failed", "held", "rejected", "gone", "incomplete", "damaged")


def notice(event: str = "held", export_id: str = "20260101T020000Z", **members: object) -> Notice:
    return Notice(
        event=event,  # type: ignore[arg-type]
        source="hosp",
        state="held",
        reason=str(members.get("reason", "3 attempts failed; the last one: disk full")),
        next_step="make room, then retry",
        at=datetime(2026, 1, 1, 2, tzinfo=UTC),
        export_id=export_id,
        run_id="run-1",
        job="hosp_ingest",
        instance=str(members.get("instance", "")),
    )


def config_for(folder: Path, *receivers: Receiver, **settings: object) -> Config:
    folder.mkdir(exist_ok=True)
    notify = []
    for number, receiver in enumerate(receivers):
        (folder / f"hook{number}").write_text(receiver.url + "\n")
        notify.append({"url": f"file:hook{number}", "format": "json", **settings})
    config = Config.model_validate({"lake": str(folder / "lake"), "notify": notify})
    return config.model_copy(update={"folder": folder})


def only(config: Config) -> Addressee:
    (addressee,) = addressees(config)
    return addressee


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", ["text", "adaptive-card", "json"])
def test_every_event_has_a_body_with_its_reason_and_next_step_in_every_format(name: str, event: str) -> None:
    body = json.dumps(BODIES[name](notice(event)))
    assert "disk full" in body
    assert "make room" in body
    assert "hosp/20260101T020000Z" in body
    if name == "text":
        assert set(json.loads(body)) == {"text"}
    if name == "adaptive-card":
        (card,) = json.loads(body)["attachments"]
        assert json.loads(body)["type"] == "message"
        assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
        assert card["content"]["type"] == "AdaptiveCard"


def test_a_servers_words_call_nobody_and_carry_no_secret() -> None:
    """Slack reads `<!channel>` as a call of everybody; Teams reads Markdown in text blocks."""
    hostile = notice(
        reason="<!channel> https://h.example/x?sig=abcdef0123456789 Bearer abcdefgh1234\nnew line"
    )
    text = BODIES["text"](hostile)["text"]
    assert "<!channel>" not in text
    assert "abcdef0123456789" not in text
    assert "abcdefgh1234" not in text
    assert "\nnew line" not in text
    assert 'TextBlock"' not in json.dumps(BODIES["adaptive-card"](hostile)).replace("RichTextBlock", "")


def test_a_notice_is_posted_and_its_url_is_in_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """httpx logs each request's whole URL (facts/dagster.md 12); a webhook's path is its secret."""
    caplog.set_level(logging.DEBUG)
    with start_receiver() as receiver:
        only(config_for(tmp_path, receiver)).notifier.tell(notice())
    assert receiver.bodies[0]["reason"].startswith("3 attempts failed")
    assert receiver.paths == ["/services/T0SECRETPATH/B0?sig=SECRETQUERY"]
    assert "T0SECRETPATH" not in caplog.text
    assert "SECRETQUERY" not in caplog.text


@pytest.mark.parametrize("url", ["http://hooks.example.org/x", "hooks.example.org/TOPSECRET", "ftp://h/x"])
def test_a_url_without_tls_off_this_machine_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    (tmp_path / "hook").write_text(url)
    config = Config.model_validate({"lake": "lake", "notify": [{"url": "file:hook"}]})
    with pytest.raises(ConfigError) as refused:
        only(config.model_copy(update={"folder": tmp_path})).notifier.tell(notice())
    assert "file:hook" in str(refused.value)
    assert url not in str(refused.value)
    assert "TOPSECRET" not in str(refused.value)


def test_trouble_that_passes_is_tried_again_at_once_and_a_refusal_is_not(tmp_path: Path) -> None:
    with start_receiver() as receiver:
        answers = iter([(503, {}, b""), (200, {}, b"ok")])
        receiver.answer = lambda: next(answers)
        only(config_for(tmp_path, receiver)).notifier.tell(notice())
        assert (receiver.tries, len(receiver.bodies)) == (2, 1)
        receiver.answer = lambda: (403, {}, b"")
        with pytest.raises(ServerRefused) as refused:
            only(config_for(tmp_path, receiver)).notifier.tell(notice())
        assert receiver.tries == 3
        assert "SECRET" not in str(refused.value)


def test_a_delivery_that_teams_could_not_make_is_no_delivery(tmp_path: Path) -> None:
    """Its older connectors answer 200 with the failure in words."""
    with start_receiver() as receiver:
        receiver.answer = lambda: (200, {}, b"Webhook message delivery failed with error: 429")
        with pytest.raises(Unreachable):
            only(config_for(tmp_path, receiver)).notifier.tell(notice())


def test_an_answer_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "SECONDS", 1.0)
    with start_receiver() as receiver:
        receiver.drip = True
        tell = only(config_for(tmp_path, receiver)).notifier.tell
        telling = threading.Thread(target=tell, args=(notice(),), daemon=True)
        telling.start()
        telling.join(40)
        assert not telling.is_alive()
        assert len(receiver.bodies) == 1


def test_what_could_not_be_told_is_told_at_a_later_tick_and_then_never_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "_FIRST_PAUSE", 0.5)
    with start_receiver() as receiver:
        port = receiver.port
        config = config_for(tmp_path, receiver)
    lake = open_lake(config.lake, tmp_path)
    delivery = Delivery("hosp", addressees(config))
    (trouble,) = delivery.tell(lake, [notice()], print)
    assert "cannot be reached" in trouble
    assert not delivery.has_told(lake, notice())
    with start_receiver(port) as receiver:
        deadline = time.monotonic() + 60
        while not receiver.bodies and time.monotonic() < deadline:
            delivery.tell(lake, [notice()], print)
            time.sleep(0.1)
        assert delivery.has_told(lake, notice())
        for _ in range(3):  # the same process, and one that is new
            assert delivery.tell(lake, [notice()], print) == []
            assert Delivery("hosp", addressees(config)).tell(lake, [notice()], print) == []
        assert len(receiver.bodies) == 1
        delivery.tell(lake, [notice(instance="held again")], print)
        assert len(receiver.bodies) == 2, "another one of the same kind is told"


def test_who_says_when_is_not_asked_before(tmp_path: Path) -> None:
    """429 with Retry-After (protocol 17): as everywhere else."""
    with start_receiver() as receiver:
        receiver.answer = lambda: (429, {"Retry-After": "3600"}, b"")
        config = config_for(tmp_path, receiver)
        lake = open_lake(config.lake, tmp_path)
        delivery = Delivery("hosp", addressees(config))
        (trouble,) = delivery.tell(lake, [notice()], print)
        assert "3600 s" in trouble
        for _ in range(5):
            delivery.tell(lake, [notice()], print)
        assert receiver.tries == 1


def test_a_slow_addressee_holds_up_neither_the_tick_nor_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts/dagster.md 4: a tick stays short."""
    monkeypatch.setattr(deliveries, "WAIT_SECONDS", 1.0)
    monkeypatch.setattr(webhook, "SECONDS", 60.0)  # it does not give the slow one up
    go_on = threading.Event()

    def late() -> tuple[int, dict[str, str], bytes]:
        go_on.wait(30)
        return 200, {}, b"ok"

    with start_receiver() as slow, start_receiver() as quick:
        slow.answer = late
        config = config_for(tmp_path, slow, quick)
        lake = open_lake(config.lake, tmp_path)
        delivery = Delivery("hosp", addressees(config))
        begun = time.monotonic()
        delivery.tell(lake, [notice()], print)
        took = time.monotonic() - begun
        assert took < 15
        deadline = time.monotonic() + 15
        while not quick.bodies and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(quick.bodies) == 1
        delivery.tell(lake, [notice()], print)  # while the first is under way
        assert slow.bodies == []
        go_on.set()
        deadline = time.monotonic() + 60
        while not delivery.has_told(lake, notice()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(slow.bodies) == 1, "not sent again while it is under way"


def test_events_and_sources_choose_who_is_told(tmp_path: Path) -> None:
    with start_receiver() as receiver:
        config = config_for(tmp_path, receiver, events=["held"], sources=["hosp"])
        lake = open_lake(config.lake, tmp_path)
        Delivery("hosp", addressees(config)).tell(lake, [notice("gone"), notice("held")], print)
        assert receiver.events == ["held"]
    assert not only(config_for(tmp_path, receiver, sources=["other"])).wants(notice())


def test_a_lake_that_cannot_be_written_is_told_of_all_the_same_and_once_by_a_process(tmp_path: Path) -> None:
    with start_receiver() as receiver:
        config = config_for(tmp_path, receiver)
        (tmp_path / "lake").write_text("a file where the lake should be")
        lake = open_lake(config.lake, tmp_path)
        said: list[str] = []
        delivery = Delivery("hosp", addressees(config))
        for _ in range(3):
            delivery.tell(lake, [notice()], said.append)
        assert len(receiver.bodies) == 1
        assert any("could not be written down" in each for each in said)


def test_the_command_sends_everybody_a_test_and_says_how_each_took_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "exports.yaml"
    with start_receiver() as receiver:
        (tmp_path / "hook0").write_text(receiver.url)
        config.write_text(
            json.dumps({"lake": "lake", "notify": [{"url": "file:hook0"}, {"url": "env:NOT_SET"}]})
        )
        assert _exit_code(["--config", str(config), "notify"]) == 0
        assert receiver.tries == 0
        assert _exit_code(["--config", str(config), "notify", "--test"]) == ConfigError.exit_code
        assert len(receiver.bodies) == 1
    printed = capsys.readouterr()
    assert "ok      webhook file:hook0" in printed.out
    assert "bad     webhook env:NOT_SET" in printed.out
    assert "SECRET" not in printed.out + printed.err


def test_another_kind_can_be_plugged_in_and_may_fail_as_it_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bell:
        name = "bell"

        def tell(self, notice: Notice, /) -> None:
            raise RuntimeError("https://hooks.example.org/SECRET")

    monkeypatch.setitem(KINDS, "bell", lambda config, settings: Bell())
    settings = Settings.model_construct(kind="bell", url="env:X", format="text", events=EVENTS, sources=())
    config = Config(lake=str(tmp_path / "lake")).model_copy(update={"notify": (settings,)})
    (trouble,) = Delivery("hosp", addressees(config)).tell(
        open_lake(config.lake, tmp_path), [notice()], print
    )
    assert "unexpected RuntimeError" in trouble
    assert "SECRET" not in trouble
    wrong = settings.model_copy(update={"kind": "pigeon"})
    with pytest.raises(ExportError, match="pigeon"):
        addressees(config.model_copy(update={"notify": (wrong,)}))
