"""The whole configuration file: read, checked, and told in words where it is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator

from pipeline.config.identity import KeyRotation, KeyVaultAuth, LakeAuth
from pipeline.config.model import Strict
from pipeline.config.secrets import resolve_secret
from pipeline.config.source import Source
from pipeline.config.upkeep import Notifier, Retention, Spool
from pipeline.errors import ConfigError


def _usable_cores() -> int:
    # sched_getaffinity knows of taskset and cpuset limits, which cpu_count does not; macOS lacks it.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Conversion(Strict):
    """How NDJSON is turned into tables."""

    lanes: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=lambda: min(4, _usable_cores()))
    """Threads that convert blocks of one file at the same time, in each staging step."""


class Config(Strict):
    """The whole file."""

    lake: str
    lake_auth: LakeAuth = LakeAuth()
    keyvault_auth: KeyVaultAuth = KeyVaultAuth()
    key_rotation: KeyRotation = KeyRotation()
    executor: Literal["in_process", "multiprocess"] = "in_process"
    """How the steps of a run are executed: one after the other in the run's process, or in processes."""
    conversion: Conversion = Field(default_factory=Conversion)
    spool: Spool = Spool()
    retention: Retention = Retention()
    notify: tuple[Notifier, ...] = ()
    """Who is told when a run fails or an export needs somebody."""
    sources: tuple[Source, ...] = ()
    folder: Path = Field(default=Path(), exclude=True)
    """Where the file lies: relative paths start here. Set by `load_config`, not in the file."""

    @field_validator("sources")
    @classmethod
    def _unique(cls, value: tuple[Source, ...]) -> tuple[Source, ...]:
        names = [source.name for source in value]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"two sources are named {', '.join(doubles)}")
        return value

    @field_validator("lake")
    @classmethod
    def _lake_url(cls, value: str) -> str:
        scheme = urlsplit(value).scheme
        if scheme not in ("", "file", "abfs", "abfss"):
            raise ValueError(
                "must be a folder, file:///path or abfs://container@account.dfs.core.windows.net/path"
            )
        return value

    def secret(self, reference: str) -> bytes:
        """The secret that `reference` names; `keyvault:` ones with `keyvault_auth`. Raises as
        `resolve_secret` does, and `AuthError`, `Unreachable` for the vault.
        """
        return resolve_secret(reference, self.folder, self.keyvault_auth)

    def source(self, name: str | None) -> Source:
        """The source of that name; without a name, the only one there is."""
        names = ", ".join(source.name for source in self.sources)
        if name is None:
            if len(self.sources) == 1:
                return self.sources[0]
            raise ConfigError("name a source", f"There are: {names or 'none'}")
        for source in self.sources:
            if source.name == name:
                return source
        raise ConfigError(f"there is no source {name!r}", f"There are: {names or 'none'}")


def default_config_path() -> Path:
    """Where the configuration is looked for; see the module's docstring."""
    named = os.environ.get("EXPORTS_CONFIG")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("DAGSTER_HOME")
    if home and (Path(home) / "exports.yaml").is_file():
        return Path(home) / "exports.yaml"
    return Path("dagster_home") / "exports.yaml"


def load_config(path: Path | None = None) -> Config:
    """Reads and checks the configuration. Raises `ConfigError` naming each wrong key and what it takes."""
    path = (path or default_config_path()).absolute()
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration at {path}", "Set EXPORTS_CONFIG to the path of your exports.yaml"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # The parser's own words may repeat a value that is a secret.
        problem = f": {error.problem}" if isinstance(error, _DuplicateKey) else ""
        advice = "Leave one of the two out" if problem else "Check indentation and quotes at that place"
        raise ConfigError(f"{path} is not valid YAML{where}{problem}", advice) from None
    if not isinstance(data, dict):
        found = "is empty" if data is None else "holds something else"
        raise ConfigError(f"{path} {found}: it must hold the keys lake and sources", _EXAMPLE)
    if "folder" in data:
        raise ConfigError(f"{path} is wrong:\n  folder: there is no such key")
    try:
        return Config.model_validate({**data, "folder": path.parent})
    except ValidationError as error:
        raise ConfigError(f"{path} is wrong:\n{_explain(error, data)}") from None


_EXAMPLE = "docs/configuration.md has one with every key"
_WORDS = {
    "extra_forbidden": "there is no such key",
    "missing": "is missing",
    "tuple_type": "must be a list, such as [one, another]",
    "string_type": "must be text",
    "dict_type": "must be keys with values below it",
    "model_type": "must be keys with values below it",
}
"""What pydantic says in Python's words, in those of a YAML file."""


class _DuplicateKey(yaml.constructor.ConstructorError):
    """A key that is written twice: one of the two would be lost."""


class _Loader(yaml.SafeLoader):
    # `since: 2026-01-31T00:00:00Z` is the text that it looks like, quoted or not.
    yaml_implicit_resolvers = {  # noqa: RUF012 - as the class above has it
        first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names.count(key.value) > 1:
                raise _DuplicateKey(problem=f"the key {key.value} comes twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _explain(error: ValidationError, data: dict[str, Any]) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        message = problem["msg"].removeprefix("Value error, ")
        message = _WORDS.get(problem["type"], message)
        lines.append(f"  {_key_path(problem['loc'], data)}: {message}")
    return "\n".join(lines)


def _key_path(location: tuple[int | str, ...], data: Any) -> str:
    """`sources[hosp_a].auth.client_id`: an entry of a list is named by its `name` where it has one."""
    path = ""
    for key in location:
        if isinstance(key, int):
            entry = data[key] if isinstance(data, list) and key < len(data) else None
            name = entry.get("name") if isinstance(entry, dict) else None
            path += f"[{name if isinstance(name, str) else key}]"
            data = entry
        else:
            path += f".{key}" if path else key
            data = data.get(key) if isinstance(data, dict) else None
    return path or "the file"
