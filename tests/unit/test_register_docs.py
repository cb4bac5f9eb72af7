"""docs/systems: what a reader copies works, as far as it can be told without the system."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipeline.cli import app
from pipeline.config import PROFILE_NAMES, Config
from pipeline.registration.steps import Known
from pipeline.registration.systems import registration

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["apim-smart", "aidbox", "smartbox", "azure-fhir", "azure-fhir-export"]
JWKS = {"keys": [{"kty": "RSA", "n": "x", "e": "AQAB", "kid": "k", "alg": "RS384", "use": "sig"}]}


def text(page: str) -> str:
    return (DOCS / "systems" / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)


def configured(page: str) -> Config:
    (block,) = blocks(page, "yaml")
    return Config.model_validate(yaml.safe_load(block))


def test_every_profile_but_the_plain_one_has_a_page() -> None:
    assert sorted([*PAGES, "smart"]) == sorted(PROFILE_NAMES)


@pytest.mark.parametrize("page", PAGES)
def test_the_configuration_of_the_page_is_accepted_and_can_be_registered(page: str) -> None:
    (source,) = configured(page).sources
    assert source.profile == page
    assert registration(source, JWKS, Known()).steps


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page_exist_with_their_options_and_its_source(page: str) -> None:
    (source,) = configured(page).sources
    commands: Any = typer.main.get_command(app)
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "fhir-export", line
        command = commands.commands[words[0]]
        rest = words[1:]
        if hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, line
        if command.name in ("register", "check", "run"):
            assert rest[0] == source.name, line


@pytest.mark.parametrize("page", PAGES)
def test_the_page_has_every_part(page: str) -> None:
    titles = re.findall(r"^## (.*)$", text(page), re.MULTILINE)
    assert titles[1:4] == ["2. The configuration", "3. The registration", "4. Check, run, look"]
    assert titles[4:] == ["Three quirks", "What you may meet"]
    quirks = text(page).split("## Three quirks")[1].split("## ")[0]
    assert len(re.findall(r"^\| (?!-|what it does)", quirks, re.MULTILINE)) == 3
    (source,) = configured(page).sources
    assert f"/{source.name}/tables/patient" in text(page)
    assert f"{source.name}_schedule" in text(page)


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", ["README", *PAGES])
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        path, _, anchor = target.partition("#")
        file = (DOCS / "systems" / path).resolve()
        assert file.is_file(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [_anchor(each) for each in titles], target
