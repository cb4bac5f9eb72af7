"""The lists of defences, and the script that takes each of them out."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("remove_defences", ROOT / "scripts" / "remove_defences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["remove_defences"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_each_defence_stands_once_where_its_list_says_and_its_tests_are_there(script: ModuleType) -> None:
    wrong = []
    for each in script.read_defences(script.LISTS):
        path = ROOT / each.file
        if not each.file.startswith("pipeline/") or path.read_text(encoding="utf-8").count(each.find) != 1:
            wrong.append(each.defence)
        for test in each.tests:
            file, _, name = test.partition("::")
            function = re.escape(name.partition("[")[0]) if name else ""
            path = ROOT / file
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            if not re.search(rf"^def {function}", text, re.MULTILINE):
                wrong.append(test)
    assert wrong == []


def test_a_malformed_list_is_named(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("- {defence: a, file: b, find: c, replace: d, tests: []}\n")
    with pytest.raises(ValueError, match=r"one\.yaml, entry 1"):
        script.read_defences(tmp_path)


def test_a_defence_is_removed_in_a_copy_only_and_the_test_that_notices_is_named(
    script: ModuleType, tmp_path: Path
) -> None:
    here = "tests/unit/test_retry_after.py"
    source = ROOT / "pipeline" / "retry_after.py"
    before = source.read_bytes()
    capped = "            return min(seconds, LONGEST_WAIT)\n"
    defence = script.Defence(
        "cap", "pipeline/retry_after.py", capped, "            return seconds\n", (here,)
    )
    verdict = script.remove(defence, also_intact=True)
    assert verdict.noticed_by is not None, verdict.problem
    assert verdict.noticed_by.startswith(here)
    unneeded = script.Defence("docstring", "pipeline/retry_after.py", "Pure rules", "Rules", (here,))
    assert script.remove(unneeded, also_intact=False).problem == "no test noticed"
    absent = script.Defence("absent", "pipeline/retry_after.py", "no such text", "", (here,))
    assert "0 times" in script.remove(absent, also_intact=False).problem
    assert source.read_bytes() == before
