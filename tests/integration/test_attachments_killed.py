"""`fhir-export attachments`, killed in the middle and run again: what is stored is not asked for twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest
from attachments_server import EXPORTS, Answer, Asked, Place, document, open_place
from nightly_site import BIN, eventually

from pipeline.errors import ConfigError
from pipeline.terminal.attachments import fetch

ONE, TWO, _ = EXPORTS


def spawn(place: Place, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(BIN / "fhir-export"), "--config", str(place.config_path), "attachments", "hosp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DAGSTER_HOME": str(place.folder)},
        start_new_session=True,
    )


def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path: Path) -> None:
    with open_place(tmp_path) as place:
        place.configure(downloads={"concurrency": 2})
        names = [f"n{number:02d}" for number in range(70)]
        reached, go_on = threading.Event(), threading.Event()

        def hang(asked: Asked) -> Answer:
            reached.set()
            go_on.wait(60)
            return Answer(asked.path.encode())

        for name in names:
            place.server.answers[f"/fhir/Binary/{name}"] = (
                hang if name == "n60" else lambda asked: Answer(asked.path.encode())
            )
        place.publish(ONE, DocumentReference=[document(each, url=f"Binary/{each}") for each in names])
        killed = spawn(place)
        try:
            assert reached.wait(60)
            notes = tmp_path / "lake" / "hosp" / "attachments" / "_fetched" / ONE
            eventually(lambda: list(notes.glob("*.json")), 30)
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
            killed.communicate()
            go_on.set()
        assert not place.links(ONE)
        noted = [key for path in notes.glob("*.json") for key in json.loads(path.read_text())]
        assert noted
        before = Counter(place.server.paths("/fhir/Binary"))

        second = spawn(place, "--json")
        said, _ = second.communicate(timeout=120)
        assert second.returncode == 0
        found = json.loads(said)["exports"][ONE]
        assert found["states"] == {"stored": 70}
        assert found["fetched"] == 70 - len(noted)
        twice = Counter(place.server.paths("/fhir/Binary")) - before
        assert sum(twice.values()) == 70 - len(noted), "what was noted is not asked for again"
        assert len(place.blobs) == 70
        assert len(place.links(ONE)) == 70
        assert not list(notes.glob("*"))


def test_the_command_tells_what_became_of_them_and_exits_by_it(tmp_path: Path) -> None:
    with open_place(tmp_path) as place:
        place.server.binary("letter", b"letter")
        place.server.answers["/fhir/Binary/broken"] = Answer(status=500)
        place.publish(
            ONE,
            DocumentReference=[
                document("letter", url="Binary/letter"),
                document("broken", url="Binary/broken"),
            ],
        )
        done = spawn(place)
        said, problems = done.communicate(timeout=120)
        assert done.returncode == 6
        assert said.split() == [
            *["export", "stored", "failed", "fetched", "now", "bytes"],
            f"hosp/{ONE}",
            *["1", "1", "1", "6"],
        ]
        assert "1 attachments could not be fetched" in problems
        assert "letter" not in said + problems, "ids of resources are no words for a terminal"
        for attachments, export, cause in (
            (True, f"other/{ONE}", "no export run of"),
            (False, None, "to fetch"),
        ):
            place.configure(attachments)
            with pytest.raises(ConfigError, match=cause):
                fetch(place.config, place.config.source(None), export, print)
