"""The configuration file: each mistake is named by its key, and no secret is ever repeated."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from pipeline.config import Config, default_config_path, load_config, resolve_secret, secret_path
from pipeline.errors import ConfigError
from pipeline.exports.connection import profile_of

SECRET = "hunter2-Tr0ub4dor"


def whole() -> dict[str, Any]:
    return {
        "lake": "lake",
        "sources": [
            {
                "name": "hosp_a",
                "fhir_url": "https://fhir.example.org/r4/",
                "auth": {"client_id": "nightly", "private_key": "file:keys/a.pem"},
                "export": {"group": "123"},
            }
        ],
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good configuration with one key set; `sources.0.auth.kid` reaches into lists."""
    data = whole()
    place: Any = data
    *parents, last = path.split(".")
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    place[last] = value
    return data


def load(folder: Path, data: Any) -> Config:
    path = folder / "exports.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return load_config(path)


def complaint(folder: Path, data: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        load(folder, data)
    error = refused.value
    assert error.__context__ is None or error.__suppress_context__, "the cause may quote the file"
    return str(error)


def test_the_smallest_configuration_gets_safe_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, whole())
    source = config.source(None)
    assert source.fhir_url == "https://fhir.example.org/r4"
    assert (source.profile, source.schedule, source.timezone) == ("smart", "0 2 * * *", "UTC")
    assert (source.max_attempts, source.release, source.keep_raw) == (3, True, True)
    assert (source.on_count_mismatch, source.export.since, source.downloads.auth) == ("fail", "auto", "auto")
    assert (source.auth.kind, source.auth.algorithm) == ("smart", "RS384")
    assert profile_of(source).scope == "system/*.rs"


@pytest.mark.parametrize(
    ("written", "lines", "allowed"),
    [
        (None, 9_999, 10),
        (None, 20_000, 20),
        (0, 1_000_000, 0),
        (25, 1_000_000, 25),
        ({"lines": 3}, 100, 3),
        ({"lines": 3}, 4_000, 4),
        ({"share": 0.29}, 100, 29),
        ({"lines": 0, "share": 0}, 100, 0),
        ({"lines": 0, "share": 1}, 100, 100),
    ],
)
def test_bad_lines_are_allowed_by_number_and_share_whichever_is_more(
    tmp_path: Path, written: Any, lines: int, allowed: int
) -> None:
    data = whole() if written is None else changed("sources.0.max_quarantined", written)
    assert load(tmp_path, data).source(None).max_quarantined.limit(lines) == allowed


def test_lanes_are_the_cores_that_this_process_may_use_at_most_four(tmp_path: Path) -> None:
    assert load(tmp_path, whole()).conversion.lanes == min(4, len(os.sched_getaffinity(0)))
    assert load(tmp_path, changed("conversion.lanes", 7)).conversion.lanes == 7


MISTAKES = [
    ("conversion.lanes", 0, "conversion.lanes: "),
    ("conversion", {"lane": 2}, "conversion.lane: there is no such key"),
    ("sources.0.max_quarantined", -1, "sources[hosp_a].max_quarantined.lines: "),
    ("sources.0.max_quarantined", True, "sources[hosp_a].max_quarantined: must be a number of lines"),
    ("sources.0.max_quarantined", "1%", "sources[hosp_a].max_quarantined: must be a number of lines"),
    ("sources.0.max_quarantined", 0.001, "sources[hosp_a].max_quarantined: must be a number of lines"),
    ("sources.0.max_quarantined", {"share": 2}, "sources[hosp_a].max_quarantined.share: "),
    ("sources.0.max_quarantined", {"rows": 2}, "sources[hosp_a].max_quarantined.rows: there is no such key"),
    ("lake", "s3://bucket/x", "lake: must be a folder"),
    ("sourcs", [], "sourcs: there is no such key"),
    ("sources.0.fhirurl", "x", "sources[hosp_a].fhirurl: there is no such key"),
    ("sources.0.name", "Hosp-A", "sources[Hosp-A].name: must be lower case"),
    ("sources.0.profile", "epic", "sources[hosp_a].profile: "),
    (
        "sources.0.fhir_url",
        "fhir.example.org",
        "sources[hosp_a].fhir_url: must be the server's FHIR base URL",
    ),
    ("sources.0.fhir_url", "http://fhir.example.org", "sources[hosp_a].fhir_url: must be https"),
    ("sources.0.fhir_url", "https://fhir.example.org/r4?x=1", "sources[hosp_a].fhir_url: must be"),
    ("sources.0.schedule", "nightly", "sources[hosp_a].schedule: must be a cron expression of five fields"),
    ("sources.0.schedule", "0 2 * * * *", "sources[hosp_a].schedule: must be a cron expression"),
    ("sources.0.schedule", "61 2 * * *", "sources[hosp_a].schedule: must be a cron expression"),
    ("sources.0.timezone", "Mars/Olympus", "sources[hosp_a].timezone: must be a time zone such as"),
    ("sources.0.timezone", "../../etc/passwd", "sources[hosp_a].timezone: must be a time zone such as"),
    ("sources.0.max_attempts", 0, "sources[hosp_a].max_attempts: "),
    ("sources.0.deadline_hours", -1, "sources[hosp_a].deadline_hours: "),
    ("sources.0.on_count_mismatch", "ignore", "sources[hosp_a].on_count_mismatch: Input should be 'fail' or"),
    ("sources.0.export.level", "all", "sources[hosp_a].export.level: Input should be 'group', 'patient' or"),
    ("sources.0.export.group", "Group/123", "sources[hosp_a].export.group: a group is named by its FHIR id"),
    ("sources.0.export.group", None, "sources[hosp_a].export: level group needs group"),
    (
        "sources.0.export.since",
        "yesterday",
        "sources[hosp_a].export.since: must be auto, never or an instant",
    ),
    ("sources.0.export.types", ["patient"], "sources[hosp_a].export.types: must be names of resource types"),
    ("sources.0.export.types", "Patient", "sources[hosp_a].export.types: must be a list"),
    ("sources.0.export.level", "system", "sources[hosp_a].export: level system exports no group"),
    ("sources.0.auth.kind", "basic", "sources[hosp_a].auth.kind: "),
    (
        "sources.0.auth.algorithm",
        "RS256",
        "sources[hosp_a].auth.algorithm: Input should be 'RS384' or 'ES384'",
    ),
    ("sources.0.auth.client_id", None, "sources[hosp_a].auth: kind smart needs client_id"),
    ("sources.0.auth", {"kind": "entra-secret", "client_id": "x"}, "auth: kind entra-secret needs tenant_id"),
    (
        "sources.0.auth",
        {"kind": "entra-secret", "client_id": "x", "tenant_id": "y"},
        "auth: kind entra-secret needs one of client_secret and certificate",
    ),
    ("sources.0.auth.authority", "http://login.example.org", "authority: must be an https URL"),
    ("sources.0.auth.jku", "https://a:b@keys.example.org", "jku: must be a plain https URL"),
    ("sources.0.downloads", {"auth": "storage"}, "downloads: auth storage needs storage"),
    (
        "sources.0.downloads",
        {"storage": {"account": "A_b"}},
        "storage.account: must be the storage account's",
    ),
    (
        "sources.0.downloads",
        {"auth": "bearer", "storage": {"account": "exports"}},
        "downloads: auth bearer and storage do not go together",
    ),
    (
        "sources.0.downloads.storage",
        {"account": "exports", "kind": "sas"},
        "storage: kind sas and the key sas go together",
    ),
    ("sources.0.knobs", {"frist_poll": 3}, "sources[hosp_a]: profile smart has no knob frist_poll"),
    ("sources.0.knobs", {"first_poll": -3}, "sources[hosp_a]: the knob first_poll of profile smart"),
    ("lake_auth", {"kind": "key"}, "lake_auth.kind: "),
    ("lake_auth", {"kind": "sas"}, "lake_auth: kind sas and the key sas go together"),
    ("lake_auth", {"sas": "env:X"}, "lake_auth: kind sas and the key sas go together"),
    ("lake_auth", {"kind": "sas", "sas": "sv=1&sig=x"}, "lake_auth.sas: a secret must be a reference"),
    (
        "lake_auth",
        {"kind": "service-principal", "client_id": "x"},
        "lake_auth: kind service-principal needs tenant_id",
    ),
    ("lake_auth.endpoint", "http://blobs.example.org", "lake_auth.endpoint: must be an https URL"),
    ("keyvault_auth", {"kind": "none"}, "keyvault_auth.kind: "),
    ("key_rotation", {"wait_minutes": -1}, "key_rotation.wait_minutes: "),
    ("sources.0.shards", {"Patient": 0}, "sources[hosp_a].shards.Patient: "),
    ("sources.0.downloads.concurrency", 100, "sources[hosp_a].downloads.concurrency: "),
    ("sources", "hosp_a", "sources: "),
]


@pytest.mark.parametrize(("key", "value", "words"), MISTAKES)
def test_a_mistake_is_named_by_its_key_with_what_is_accepted(
    tmp_path: Path, key: str, value: Any, words: str
) -> None:
    assert words in complaint(tmp_path, changed(key, value))


def test_what_is_missing_is_named_in_words(tmp_path: Path) -> None:
    assert "\n  lake: is missing" in complaint(tmp_path, "sources: []\n")


@pytest.mark.parametrize(
    "instant", ["2026-01-31T00:00:00Z", "'2026-01-31T00:00:00Z'", "2026-01-31T00:00:00+01:00"]
)
def test_an_instant_need_not_be_in_quotes(tmp_path: Path, instant: str) -> None:
    """YAML has a type of its own for it, that is no text."""
    text = yaml.safe_dump(changed("sources.0.export.since", "INSTANT")).replace("INSTANT", instant)
    (tmp_path / "exports.yaml").write_text(text)
    assert load_config(tmp_path / "exports.yaml").source(None).export.since == instant.strip("'")


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    data = changed("sources.0.schedule", "nightly")
    data["sources"][0]["timezone"] = "Mars"
    data["extra"] = 1
    text = complaint(tmp_path, data)
    assert all(key in text for key in ("schedule", "timezone", "extra"))


@pytest.mark.parametrize(
    "key",
    [
        "sources.0.auth.private_key",
        "sources.0.auth.client_secret",
        "sources.0.auth.certificate",
        "lake_auth.sas",
        "lake_auth.client_secret",
        "lake_auth.connection_string",
    ],
)
@pytest.mark.parametrize("value", [SECRET, f"-----BEGIN PRIVATE KEY-----\n{SECRET}", [SECRET], {"x": SECRET}])
def test_a_literal_secret_is_refused_and_not_repeated(tmp_path: Path, key: str, value: Any) -> None:
    text = complaint(tmp_path, changed(key, value))
    assert SECRET not in text
    assert key.rsplit(".", 1)[-1] in text


@pytest.mark.parametrize(
    "line",
    [
        f"      client_secret: !{SECRET}",
        f"      client_secret: *{SECRET}",
        f"      client_secret: '{SECRET}",
        f"      client_secret: {SECRET}: x",
        f"      client_secret: [{SECRET}",
        f"      client_secret: %{SECRET}",
        f"      client_secret: @{SECRET}",
        f'      client_secret: "{SECRET}\\q"',
    ],
)
def test_text_that_is_not_yaml_is_named_by_its_place_and_not_repeated(tmp_path: Path, line: str) -> None:
    """A generated password may begin with any character, also with one that means something to YAML."""
    text = complaint(tmp_path, f"lake: lake\nsources:\n  - name: hosp_a\n    auth:\n{line}\n")
    assert SECRET not in text
    assert "exports.yaml" in text


@pytest.mark.parametrize(
    "url", [f"https://me:{SECRET}@fhir.example.org", f"https://:{SECRET}@fhir.example.org"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    text = complaint(tmp_path, changed("sources.0.fhir_url", url))
    assert "fhir_url" in text
    assert SECRET not in text


def test_a_group_id_or_instant_with_a_line_end_is_refused(tmp_path: Path) -> None:
    assert "group" in complaint(tmp_path, changed("sources.0.export.group", "123\n"))
    assert "since" in complaint(tmp_path, changed("sources.0.export.since", "2026-01-31T00:00:00Z\n"))


def test_an_instant_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "since" in complaint(tmp_path, changed("sources.0.export.since", "2026-13-31T00:00:00Z"))


@pytest.mark.parametrize("text", ["", "- 1\n", "just words\n", "42\n"])
def test_a_file_that_holds_no_keys_is_refused(tmp_path: Path, text: str) -> None:
    assert "must hold the keys lake and sources" in complaint(tmp_path, text)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration at .*nowhere\.yaml") as refused:
        load_config(tmp_path / "nowhere.yaml")
    assert "EXPORTS_CONFIG" in refused.value.advice
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("lake: lake\n  sources: [\n", "Check indentation and quotes at that place"),
        ("lake: 'lake\n", "Check indentation and quotes at that place"),
        ("lake: a\nlake: b\n", "Leave one of the two out"),
    ],
)
def test_a_file_that_is_no_yaml_says_where_and_what_to_do(tmp_path: Path, text: str, advice: str) -> None:
    (tmp_path / "exports.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"not valid YAML at line \d+, column \d+") as refused:
        load_config(tmp_path / "exports.yaml")
    assert refused.value.advice == advice


def test_several_sources_are_told_apart_by_name(tmp_path: Path) -> None:
    data = whole()
    second = {**data["sources"][0], "name": "hosp_b", "schedule": "30 3 * * 1-5", "timezone": "Europe/Berlin"}
    data["sources"].append(second)
    config = load(tmp_path, data)
    assert [source.name for source in config.sources] == ["hosp_a", "hosp_b"]
    assert config.source("hosp_b").timezone == "Europe/Berlin"
    with pytest.raises(ConfigError, match="name a source") as unnamed:
        config.source(None)
    assert "hosp_a, hosp_b" in unnamed.value.advice
    with pytest.raises(ConfigError, match="no source 'hosp_c'"):
        config.source("hosp_c")
    data["sources"].append(second)
    assert "two sources are named hosp_b" in complaint(tmp_path, data)


def test_the_mistake_of_one_source_names_that_source(tmp_path: Path) -> None:
    data = whole()
    data["sources"].append({**data["sources"][0], "name": "hosp_b", "timezone": "Mars"})
    text = complaint(tmp_path, data)
    assert "sources[hosp_b].timezone" in text
    assert "hosp_a" not in text


def test_relative_paths_start_at_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "keys").mkdir(parents=True)
    (home / "keys" / "a.pem").write_bytes(b"key")
    (home / "exports.yaml").write_text(yaml.safe_dump(whole()))
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("home/exports.yaml"))
    assert config.folder == home
    assert resolve_secret("file:keys/a.pem", config.folder) == b"key"
    assert secret_path("file:keys/a.pem", config.folder) == home / "keys" / "a.pem"
    assert secret_path("env:KEY", config.folder) is None
    absolute = home / "keys" / "a.pem"
    assert resolve_secret(f"file:{absolute}", tmp_path) == b"key"


def test_a_missing_secret_fails_only_the_source_that_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setenv("HOSP_B_KEY", SECRET)
    data = whole()
    data["sources"].append(
        {
            **data["sources"][0],
            "name": "hosp_b",
            "auth": {"client_id": "b", "private_key": "env:HOSP_B_KEY"},
        }
    )
    config = load(tmp_path, data)
    keys = [source.auth.private_key or "" for source in config.sources]
    assert resolve_secret(keys[1], config.folder) == SECRET.encode()
    with pytest.raises(ConfigError, match=r"keys.a\.pem") as missing:
        resolve_secret(keys[0], config.folder)
    assert missing.value.advice == (
        "It is named by file:keys/a.pem. Put the secret there, or correct the path; for a private key "
        "`fhir-export keys new --out keys/a.pem` makes one"
    )
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        resolve_secret("env:NO_SUCH_KEY", config.folder)
    with pytest.raises(ConfigError) as literal:
        resolve_secret(SECRET, config.folder)
    assert SECRET not in str(literal.value)


def test_the_file_is_looked_for_in_the_documented_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXPORTS_CONFIG", raising=False)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert default_config_path() == Path("dagster_home") / "exports.yaml"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert default_config_path() == Path("dagster_home") / "exports.yaml"
    (tmp_path / "exports.yaml").write_text("")
    assert default_config_path() == tmp_path / "exports.yaml"
    monkeypatch.setenv("EXPORTS_CONFIG", str(tmp_path / "other.yaml"))
    assert default_config_path() == tmp_path / "other.yaml"


def test_the_example_of_the_design_is_accepted(tmp_path: Path) -> None:
    """Every name of the contract that this version knows."""
    text = """
        lake: file:///var/lib/exports
        lake_auth: {kind: default}
        sources:
          - name: hosp_a
            profile: smart
            fhir_url: https://fhir.example.org/r4
            auth:
              kind: smart
              client_id: nightly
              private_key: file:keys/hosp_a.pem
              algorithm: RS384
              kid: null
              token_url: null
              audience: null
              scope: system/*.rs
              token_body: form
            export:
              level: group
              group: "123"
              types: [Patient, Observation]
              type_filters: []
              elements: []
              since: auto
            downloads: {auth: auto, allow_hosts: []}
            tenant: null
            schedule: "0 2 * * *"
            timezone: UTC
            max_attempts: 3
            release: true
            deadline_hours: 24
            keep_raw: true
            on_count_mismatch: fail
    """
    assert load(tmp_path, dedent(text)).source("hosp_a").export.types == ("Patient", "Observation")
