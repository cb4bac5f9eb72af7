"""The server's own data, by a raw client: sign in, kick off, poll, read every file. No code of ours."""

from __future__ import annotations

import gzip
import json
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import jwt

_DEADLINE = 90.0


class ServerTruth:
    """What an export of these parameters delivers, as lines of bytes; asked for once."""

    def __init__(self, base_url: str, key: Path) -> None:
        self._base = base_url
        self._key = key
        self._http = httpx.Client(timeout=30, headers={"Accept-Encoding": "identity"})
        self._known: dict[str, dict[str, Counter[bytes]]] = {}
        self.jobs: set[str] = set()
        """Those that this asked for."""

    def control(self) -> dict[str, Any]:
        """The server's account of its jobs."""
        answer: dict[str, Any] = self._http.get(self._base + "/control").raise_for_status().json()
        return answer

    def of_job(self, job: dict[str, Any]) -> dict[str, Counter[bytes]]:
        """Lines by what they are: a resource type, or `deleted` and `error` with their lines as they are."""
        same = json.dumps([job["night"], job["level"], job["group"], job["parameters"]])
        if same not in self._known:
            self._http.post(self._base + "/control", json={"night": job["night"]}).raise_for_status()
            self._known[same] = self._export(job)
        return self._known[same]

    def types(self) -> set[str]:
        """Resource types that were met."""
        return {kind for lines in self._known.values() for kind in lines}

    def close(self) -> None:
        self._http.close()

    def _export(self, job: dict[str, Any]) -> dict[str, Counter[bytes]]:
        bearer = {"Authorization": f"Bearer {self._token()}"}
        place = {"system": "/fhir/$export", "patient": "/fhir/Patient/$export"}
        path = place.get(job["level"], f"/fhir/Group/{job['group']}/$export")
        asking = {**bearer, "Accept": "application/fhir+json", "Prefer": "respond-async"}
        until = time.monotonic() + _DEADLINE
        while True:
            answer = self._kick_off(self._base + path, job["parameters"], asking)
            if answer.status_code != 429 or time.monotonic() > until:
                break
            time.sleep(0.5)
        if answer.status_code != 202:
            raise AssertionError(
                f"the server refuses the oracle's export: {answer.status_code} {answer.text[:300]}"
            )
        status = answer.headers["Content-Location"]
        self.jobs.add(status.rsplit("/", 1)[1])
        lines: dict[str, Counter[bytes]] = {}
        for page in self._pages(status, {**bearer, "Accept": "application/json"}, until):
            for kind in ("output", "deleted", "error"):
                for entry in page.get(kind, []):
                    body = self._http.get(entry["url"], headers=bearer).raise_for_status().content
                    if body[:2] == b"\x1f\x8b":  # a server that compresses and does not say so
                        body = gzip.decompress(body)
                    found = [line for line in body.split(b"\n") if line.strip()]
                    assert len(found) == entry["count"], "the oracle's own read is not whole"
                    name = entry["type"] if kind == "output" else kind
                    lines.setdefault(name, Counter()).update(found)
        self._http.delete(status, headers=bearer)
        return lines

    def _kick_off(self, url: str, parameters: Any, headers: dict[str, str]) -> httpx.Response:
        """As a POST where patients are named, which only that can do."""
        if not any(name == "patient" for name, _ in parameters):
            return self._http.get(url, params=parameters, headers=headers)
        posted = [
            {"name": "patient", "valueReference": {"reference": value}}
            if name == "patient"
            else {"name": name, "valueInstant" if name == "_since" else "valueString": value}
            for name, value in parameters
        ]
        body = {"resourceType": "Parameters", "parameter": posted}
        return self._http.post(url, json=body, headers={**headers, "Content-Type": "application/fhir+json"})

    def _pages(self, url: str, headers: dict[str, str], until: float) -> list[dict[str, Any]]:
        pages: list[dict[str, Any]] = []
        following: str | None = url
        while following:
            answer = self._http.get(following, headers=headers)
            if answer.status_code in (202, 429) and time.monotonic() < until:
                time.sleep(0.6)
                continue
            pages.append(answer.raise_for_status().json())
            links = pages[-1].get("link", [])
            following = next((link["url"] for link in links if link["relation"] == "next"), None)
        return pages

    def _token(self) -> str:
        where = self._base + "/auth/token"
        claims = {
            "iss": "nightly",
            "sub": "nightly",
            "aud": where,
            "exp": int(time.time()) + 240,
            "jti": uuid.uuid4().hex,
        }
        signed = jwt.encode(claims, self._key.read_bytes(), "ES384", headers={"kid": "oracle", "typ": "JWT"})
        form = {
            "grant_type": "client_credentials",
            "scope": "system/*.rs",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": signed,
        }
        answer = self._http.post(where, data=form).raise_for_status()
        token: str = answer.json()["access_token"]
        return token
