"""One exports.yaml with all five systems, run by their schedules, each with credentials of its own (issue 4).

Which token went where is read from the logs of the servers, never from our own code.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from authority import Authority
from azure_storage import ACCOUNT, Azurite, start_azurite
from boxes import box_entry
from course import PATIENTS, SEED, bearers_at
from installation import Installation, truth_of

from pipeline.sandbox.cloud.process import CloudProcess, start_cloud
from pipeline.sandbox.process import SandboxProcess, start_sandbox

AUDIENCES = {
    "azure": "https://one-fhir.fhir.azurehealthcareapis.com",
    "exporting": "https://two-fhir.fhir.azurehealthcareapis.com",
}
NAMES = ("apim", "aidbox", "azure", "exporting", "smartbox")
TYPES = ("Patient",)


@dataclass
class Five:
    site: Installation
    cloud: CloudProcess
    lake: Azurite
    exports: Azurite
    boxes: dict[str, SandboxProcess] = field(default_factory=dict)

    def published(self, source: str) -> list[str]:
        """Exports with a receipt."""
        names = self.site.blobs(f"{source}/exports/")
        return sorted({name.split("/")[2] for name in names if "/receipts/" in name})


@contextmanager
def five_systems(folder: Path, authority: Authority) -> Iterator[Five]:
    tls = {"certificate": authority.certificate, "key": authority.key}
    with ExitStack() as stack:
        lake = stack.enter_context(start_azurite(folder / "lake", authority, headers=True))
        exports = stack.enter_context(start_azurite(folder / "exports", authority, headers=True))
        cloud = stack.enter_context(start_cloud(**tls))
        site = Installation(folder, lake, lake.new_container(), [])
        five = Five(site, cloud, lake, exports)
        identity = {"tenant_id": cloud.tenant, "authority": cloud.authority}
        for name in ("lake-writer", "blob-reader"):
            cloud.register_application(client_id=name, secret=f"secret of {name}")
        site.lake_auth = {
            "kind": "service-principal",
            "client_id": "lake-writer",
            "client_secret": site.secret("lake-writer", "secret of lake-writer"),
            "endpoint": lake.endpoint,
            **identity,
        }

        def start(name: str, stand_in: str, **options: Any) -> SandboxProcess:
            common = {"patients": PATIENTS, "seed": SEED, "export_seconds": 0.5, **tls}
            box = stack.enter_context(start_sandbox(stand_in=stand_in, **{**common, **options}))
            five.boxes[name] = box
            return box

        def entra(name: str) -> dict[str, Any]:
            audience = AUDIENCES[name]
            cloud.register_application(
                client_id=name, secret=f"of {name}", roles={audience: ["FHIR Data Exporter"]}
            )
            secret = site.secret(name, f"of {name}")
            return {
                "kind": "entra-secret",
                "client_id": name,
                "client_secret": secret,
                "audience": audience,
                **identity,
            }

        def add(entry: dict[str, Any]) -> None:
            entry["export"] = {"group": "demo", "types": list(TYPES), "since": "never"}
            site.sources.append(
                {
                    "flat": False,
                    "current": False,
                    "schedule": "* * * * *",
                    "knobs": {"first_poll": 0.5},
                    **entry,
                }
            )

        apim = start("apim", "apim", jwks=site.new_key("apim"), apim_host="https://front.example.org")
        auth = {"client_id": "nightly", "private_key": "file:keys/apim.pem"}
        auth["audience"] = "https://front.example.org/auth/token"
        add({"name": "apim", "profile": "apim-smart", "fhir_url": apim.fhir_url, "auth": auth})
        for name in ("aidbox", "smartbox"):
            box = start(name, name, jwks=site.new_key(name), registered=True)
            add(box_entry(name, box, box.fhir_url))
        known = {"token_keys": cloud.token_keys_url}
        one = start("azure", "azure-fhir", token_audience=AUDIENCES["azure"], **known)
        add({"name": "azure", "profile": "azure-fhir", "fhir_url": one.fhir_url, "auth": entra("azure")})
        two = start(
            "exporting",
            "azure-export",
            token_audience=AUDIENCES["exporting"],
            storage=exports.connection_string,
            storage_container=exports.new_container("exports"),
            **known,
        )
        storage = {
            "account": ACCOUNT,
            "endpoint": exports.endpoint,
            "kind": "service-principal",
            "client_id": "blob-reader",
            "client_secret": site.secret("blob-reader", "secret of blob-reader"),
            **identity,
        }
        add(
            {
                "name": "exporting",
                "profile": "azure-fhir-export",
                "fhir_url": two.fhir_url,
                "auth": entra("exporting"),
                "downloads": {"storage": storage},
            }
        )
        site.write()
        yield five


def eventually(what: Callable[[], bool], seconds: float, site: Installation) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, (site.folder / "daemon.log").read_text()[-4000:]
        time.sleep(1)


def refused(site: Installation, source: str) -> set[str]:
    """Exports for which no token was given, by the facts."""
    names = [each for each in site.blobs(f"{source}/exports/") if each.endswith(".error.json")]
    return {each.split("/")[2] for each in names if b"AADSTS7000215" in site.read(each)}


def tokens_at(account: Azurite) -> set[str]:
    """Fingerprints of the bearer tokens in the headers that Azurite has written down."""
    sent = re.findall(r'"authorization":"Bearer ([^"]+)"', account.headers_log.read_text())
    return {hashlib.sha256(each.encode()).hexdigest()[:16] for each in sent}


def test_five_systems_run_by_their_schedules_and_one_broken_credential_harms_no_other(
    tmp_path: Path, authority: Authority
) -> None:
    with five_systems(tmp_path, authority) as five:
        site = five.site
        with site.daemon():
            eventually(lambda: all(five.published(name) for name in NAMES), 1200, site)
            site.secret("azure", "no longer the secret")
            # what had a token may still publish: the others' turn counts from the refusal on
            eventually(lambda: bool(refused(site, "azure")), 1200, site)
            before = {name: len(five.published(name)) for name in NAMES}
            others = [each for each in NAMES if each != "azure"]
            eventually(lambda: all(len(five.published(each)) > before[each] for each in others), 1200, site)
        assert "another schedule has begun" not in (site.folder / "daemon.log").read_text()
        for name in NAMES:
            for export_id in five.published(name):
                site.require_same(name, export_id, truth_of(SEED, PATIENTS, 1, TYPES))
        assert len(five.published("azure")) == before["azure"]
        assert not refused(site, "azure") & set(five.published("azure"))
        listed = json.loads(site.cli("exports", "azure", "--json").stdout)
        assert max(listed, key=lambda each: each["export_id"])["state"] != "published"
        prove_tokens(five)


def prove_tokens(five: Five) -> None:
    """Each bearer token was seen by one server alone, and each storage credential by its own account."""
    seen = {name: bearers_at(box.access_log()) for name, box in five.boxes.items()}
    seen["the lake"] = tokens_at(five.lake)
    seen["the exports' account"] = tokens_at(five.exports)
    assert all(seen.values()), {name: len(tokens) for name, tokens in seen.items()}
    for one, other in itertools.combinations(seen, 2):
        assert seen[one] & seen[other] == set(), (one, other)
    for box in five.boxes.values():
        assert not [each for each in box.access_log() if each.get("note")]
    for account in (five.lake, five.exports):
        assert not re.search(r"RequestURL=\S*[?&]sig=", account.headers_log.read_text())
