"""Starting the cloud as a process of its own, and arranging what it holds, for the demo and the tests."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pipeline.sandbox.ending import end

_START_SECONDS = 60.0


class CloudNotStarted(Exception):
    """The process ended or did not answer in time."""


class CloudProcess:
    """A running cloud. URLs have no final slash.

    The clients' own settings reach it: azure-identity's `authority=cloud.authority` with
    `disable_instance_discovery=True`, azure-keyvault's `verify_challenge_resource=False`, and the server's CA
    in the environment (SSL_CERT_FILE, REQUESTS_CA_BUNDLE).
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        ready: Mapping[str, Any],
        certificate: Path,
        folder: tempfile.TemporaryDirectory[str],
    ) -> None:
        self._process = process
        self._folder = folder
        self._password: str = ready["control_password"]
        self._identity_header: str = ready["identity_header"]
        self._context = _trusting(certificate)
        self.authority: str = ready["authority"]
        self.vault_url: str = ready["vault_url"]
        self.identity_url: str = ready["identity_url"]
        self.tenant: str = ready["tenant"]
        self.federated_issuer: str = ready["federated_issuer"]

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    @property
    def token_url(self) -> str:
        """Entra's v2.0 token endpoint."""
        return f"{self.authority}/{self.tenant}/oauth2/v2.0/token"

    @property
    def token_url_v1(self) -> str:
        """Entra's v1.0 token endpoint."""
        return f"{self.authority}/{self.tenant}/oauth2/token"

    @property
    def token_keys_url(self) -> str:
        """The JWK Set of the keys that sign access tokens."""
        return f"{self.authority}/{self.tenant}/discovery/v2.0/keys"

    @property
    def identity_environment(self) -> dict[str, str]:
        """What App Service sets for its managed identity; plain http on this machine, as there."""
        return {
            "IDENTITY_ENDPOINT": self.identity_url + "/msi/token",
            "IDENTITY_HEADER": self._identity_header,
        }

    @property
    def identity_environment_over_tls(self) -> dict[str, str]:
        """The same over TLS."""
        return {**self.identity_environment, "IDENTITY_ENDPOINT": self.authority + "/msi/token"}

    @property
    def imds_environment(self) -> dict[str, str]:
        """Instead of 169.254.169.254, where a virtual machine asks for its identity."""
        return {"AZURE_POD_IDENTITY_AUTHORITY_HOST": self.identity_url}

    def workload_environment(
        self, client_id: str, folder: Path, *, seconds: float = 3600, **claims: Any
    ) -> dict[str, str]:
        """Writes a federated token into `folder`; what a Kubernetes pod with workload identity has."""
        path = folder / "azure-identity-token"
        path.write_text(self.federated_token(seconds=seconds, **claims), encoding="utf-8")
        return {
            "AZURE_AUTHORITY_HOST": self.authority,
            "AZURE_TENANT_ID": self.tenant,
            "AZURE_CLIENT_ID": client_id,
            "AZURE_FEDERATED_TOKEN_FILE": str(path),
        }

    def federated_token(
        self,
        *,
        issuer: str | None = None,
        subject: str | None = None,
        audience: str | None = None,
        seconds: float = 3600,
        **claims: Any,
    ) -> str:
        """A token of the trusted issuer; `seconds` may be negative for one that has expired."""
        named = {"iss": issuer, "sub": subject, "aud": audience}
        given = {name: value for name, value in named.items() if value is not None}
        token: str = self.control("federated_token", seconds=seconds, claims={**given, **claims})
        return token

    def register_application(
        self,
        client_id: str | None = None,
        *,
        object_id: str | None = None,
        secret: str | None = None,
        secret_seconds: float | None = None,
        certificate_pem: str | bytes | None = None,
        federated: Mapping[str, str] | bool = False,
        roles: Mapping[str, Sequence[str]] | None = None,
        vault_roles: Sequence[str] | None = None,
    ) -> dict[str, str]:
        """An application with these credentials besides those it has; returns `client_id` and `object_id`.

        `federated` is {"issuer", "subject"[, "audience"]}, or True for the cloud's own issuer and subject.
        `roles`: audience -> app roles. `vault_roles`: names of Azure's built-in roles; None changes nothing.
        """
        pem = certificate_pem.decode() if isinstance(certificate_pem, bytes) else certificate_pem
        registered: dict[str, str] = self.control(
            "register_application",
            client_id=client_id,
            object_id=object_id,
            secret=secret,
            secret_seconds=secret_seconds,
            certificate_pem=pem,
            federated=federated if isinstance(federated, bool) else dict(federated),
            roles={audience: list(names) for audience, names in (roles or {}).items()},
            vault_roles=None if vault_roles is None else list(vault_roles),
        )
        return registered

    def forget_application(self, client_id: str) -> None:
        """Unknown to the tenant from now on."""
        self.control("forget_application", client_id=client_id)

    def expire_secret(self, client_id: str) -> None:
        """Every secret it has now is over."""
        self.control("expire_secret", client_id=client_id)

    def allow_resource(self, audience: str) -> None:
        """Tokens for that audience may be asked for."""
        self.control("allow_resource", audience=audience)

    def assign_identity(
        self,
        client_id: str | None = None,
        *,
        object_id: str | None = None,
        resource_id: str | None = None,
        system: bool = True,
        roles: Mapping[str, Sequence[str]] | None = None,
        vault_roles: Sequence[str] = (),
    ) -> dict[str, str]:
        """A managed identity of the machine; returns `client_id` and `object_id`."""
        assigned: dict[str, str] = self.control(
            "assign_identity",
            client_id=client_id,
            object_id=object_id,
            resource_id=resource_id,
            system=system,
            roles={audience: list(names) for audience, names in (roles or {}).items()},
            vault_roles=list(vault_roles),
        )
        return assigned

    def allow_vault(self, object_id: str, roles: Sequence[str]) -> None:
        """Exactly these roles on the vault; none takes everything away."""
        self.control("allow_vault", object_id=object_id, roles=list(roles))

    def vault_secret(
        self,
        name: str,
        value: str,
        tags: Mapping[str, str] | None = None,
        enabled: bool = True,
        content_type: str | None = None,
    ) -> dict[str, Any]:
        """A new version of a secret; its bundle."""
        wanted: dict[str, Any] = {
            "value": value,
            "tags": dict(tags or {}),
            "attributes": {"enabled": enabled},
        }
        if content_type is not None:
            wanted["contentType"] = content_type
        bundle: dict[str, Any] = self.control("vault_secret", name=name, wanted=wanted)
        return bundle

    def vault_key(
        self,
        name: str,
        kty: str = "EC",
        *,
        curve: str = "P-384",
        size: int = 3072,
        nbf: int | None = None,
        exp: int | None = None,
        enabled: bool = True,
        tags: Mapping[str, str] | None = None,
        pem: str | bytes | None = None,
    ) -> dict[str, Any]:
        """A new version of a key, made there or taken over from `pem`; its bundle (public parts)."""
        wanted = {
            "kty": kty,
            "crv": curve,
            "key_size": size,
            "attributes": {"enabled": enabled, "nbf": nbf, "exp": exp},
            "tags": dict(tags or {}),
        }
        text = pem.decode() if isinstance(pem, bytes) else pem
        bundle: dict[str, Any] = self.control("vault_key", name=name, pem=text, wanted=wanted)
        return bundle

    def fail(
        self,
        next: int = 1,  # noqa: A002 - reads as what it says: fail the next N
        *,
        status: int = 429,
        on: str = "vault",
        retry_after: float | None = None,
        path: str = "",
    ) -> None:
        """The next requests to `on` (entra, identity, vault) whose path has the pattern get `status`.

        0 takes away what is planned there. 403 is the vault's firewall.
        """
        self.control("fail", on=on, count=next, status=status, retry_after=retry_after, path=path)

    def roll_token_key(self) -> str:
        """Access tokens are signed with a new key from now on; returns its kid."""
        kid: str = self.control("roll_token_key")
        return kid

    def revoke_tokens(self) -> None:
        """The vault refuses every token issued until now."""
        self.control("revoke_tokens")

    def requests(self, on: str | None = None) -> list[dict[str, Any]]:
        """Oldest first; `bearer` is 16 digits of the SHA-256 of the Authorization credential."""
        entries: list[dict[str, Any]] = self.control("requests", on=on)
        return entries

    def control(self, action: str, **arguments: Any) -> Any:
        """One request to the control endpoint. ValueError with its reason where it refuses."""
        request = urllib.request.Request(  # noqa: S310 - our own https URL
            self.authority + "/control",
            json.dumps({"do": action, **arguments}).encode(),
            {"Authorization": f"Bearer {self._password}", "Content-Type": "application/json"},
        )
        # No proxy of the environment comes between this process and its own child.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context)
        )
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.load(error)["reason"]) from None

    def stop(self) -> int:
        """End it with SIGTERM, after ten seconds with SIGKILL; returns its exit code. May be called again."""
        return end(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()


def start_cloud(*, certificate: Path, key: Path, **options: Any) -> CloudProcess:
    """Start a cloud with this interpreter and wait until it answers; a `with` block ends it.

    It also ends when this process does. `options` are those of the command line, with underscores
    (`token_seconds=60`, `tenant=GUID`, ...). Raises CloudNotStarted where it does not start.
    """
    folder = tempfile.TemporaryDirectory(prefix="cloud-")
    ready = Path(folder.name) / "ready.json"
    command = [sys.executable, "-m", "pipeline.sandbox.cloud", "--until-stdin-closes"]
    for name, value in {"certificate": certificate, "key": key, "ready_file": ready, **options}.items():
        if value is not None:
            command.append(f"--{name.replace('_', '-')}={value}")
    # The folder of the package first, so that it starts from any folder, installed or not.
    search = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(  # noqa: S603 - our own module
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
    )
    try:
        return CloudProcess(process, _wait(process, ready), certificate, folder)
    except BaseException:
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()
        folder.cleanup()
        raise


def _wait(process: subprocess.Popen[bytes], ready: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if ready.exists():
            told: dict[str, Any] = json.loads(ready.read_bytes())
            return told
        if process.poll() is not None:
            raise CloudNotStarted(
                f"The cloud ended at once with exit code {process.returncode}; see its output"
            )
        time.sleep(0.03)
    raise CloudNotStarted(f"The cloud did not start within {_START_SECONDS:.0f} seconds")


def _trusting(certificate: Path) -> ssl.SSLContext:
    """Trusts this very certificate and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(certificate))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
