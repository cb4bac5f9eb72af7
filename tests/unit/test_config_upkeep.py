"""The keys for limits, asking again, retention and telling people: what they accept, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError

SOURCE: dict[str, Any] = {
    "name": "hosp_a",
    "fhir_url": "https://fhir.example.org/r4",
    "auth": {"client_id": "nightly", "private_key": "file:key.pem"},
    "export": {"group": "1"},
}


def load(folder: Path, source: dict[str, Any] | None = None, **top: Any) -> Config:
    path = folder / "exports.yaml"
    path.write_text(yaml.safe_dump({"lake": "lake", "sources": [SOURCE | (source or {})], **top}))
    return load_config(path)


def test_the_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    config = load(tmp_path)
    source = config.source(None)
    assert source.ask_again.model_dump() == {"gone": 1, "failed": 1, "deadline": 0}
    assert source.on_partial == "publish"
    assert source.timeouts.model_dump() == {
        "connect_seconds": 8,
        "read_seconds": 60,
        "answer_seconds": 120,
        "slowest_bytes_per_second": 1024,
    }
    assert source.downloads.limits.model_dump() == {
        "file_gigabytes": 200,
        "ratio": 200,
        "line_megabytes": 256,
        "files": 1_000_000,
    }
    assert not config.spool.wipe
    assert config.retention.model_dump() == {"orphans_days": 7, "raw_days": None, "schedule": "30 4 * * 0"}
    assert config.notify == ()


def test_one_number_is_that_many_further_runs_for_each_cause(tmp_path: Path) -> None:
    source = load(tmp_path, {"ask_again": 3}).source(None)
    assert source.ask_again.model_dump() == {"gone": 3, "failed": 3, "deadline": 3}


def test_a_notifier_tells_of_everything_unless_events_are_named(tmp_path: Path) -> None:
    config = load(tmp_path, notify=[{"url": "env:HOOK"}, {"url": "env:HOOK", "events": ["held"]}])
    assert config.notify[0].events == ("run-failed", "held", "rejected", "gone", "incomplete", "damaged")
    assert config.notify[1].events == ("held",)


@pytest.mark.parametrize(
    ("source", "top", "said"),
    [
        ({"ask_again": True}, {}, "sources[hosp_a].ask_again"),
        ({"ask_again": {"gone": 11}}, {}, "sources[hosp_a].ask_again.gone"),
        ({"on_partial": "perhaps"}, {}, "sources[hosp_a].on_partial"),
        ({"timeouts": {"connect_seconds": 0}}, {}, "sources[hosp_a].timeouts.connect_seconds"),
        ({"downloads": {"limits": {"ratio": 1}}}, {}, "sources[hosp_a].downloads.limits.ratio"),
        ({}, {"retention": {"orphans_days": 0.5}}, "retention.orphans_days"),
        ({}, {"retention": {"schedule": "weekly"}}, "must be a cron expression of five fields"),
        ({}, {"notify": [{"url": "https://hooks.example.org/secret-path"}]}, "must be a reference"),
        ({}, {"notify": [{"url": "env:HOOK", "events": ["everything"]}]}, "notify[0].events"),
    ],
)
def test_what_is_not_accepted_is_named(
    tmp_path: Path, source: dict[str, Any], top: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, source, **top)
    assert said in str(refused.value)
    assert "secret-path" not in str(refused.value)
