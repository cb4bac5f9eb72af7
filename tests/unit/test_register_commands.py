"""The `az` and `curl` commands that `register` prints: words as a shell reads them, JSON that loads."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest

from pipeline.config import Source
from pipeline.errors import ConfigError
from pipeline.registration.apim_smart import jwks_url
from pipeline.registration.shell import Substituted, command, into_file
from pipeline.registration.steps import PLACEHOLDERS, Known, Registration
from pipeline.registration.systems import registration

CLIENT = "6f2c7e0a-1111-4222-8333-944445555666"
JWKS = {"keys": [{"kty": "RSA", "n": "0vx7-_Q", "e": "AQAB", "kid": "2026-01", "alg": "RS384", "use": "sig"}]}
SERVICE = (
    "/subscriptions/<subscription-id>/resourceGroups/<resource-group>/providers/Microsoft.HealthcareApis"
    "/workspaces/clinic/fhirservices/main-fhir"
)


def source(profile: str, fhir_url: str, auth: dict[str, Any], **changes: Any) -> Source:
    return Source.model_validate(
        {
            "name": "hosp_a",
            "profile": profile,
            "fhir_url": fhir_url,
            "auth": auth,
            "export": {"group": "g"},
            **changes,
        }
    )


APIM = source(
    "apim-smart", "https://apim.example.org/smart", {"client_id": CLIENT, "private_key": "file:key.pem"}
)
FHIR = "https://clinic-main-fhir.fhir.azurehealthcareapis.com"
SECRET = {
    "kind": "entra-secret",
    "client_id": CLIENT,
    "tenant_id": "contoso.example",
    "client_secret": "file:secrets/hosp_a.txt",
}


def commands(found: Registration) -> list[list[str]]:
    return [shlex.split(line) for step in found.steps for line in step.commands]


def one(found: Iterable[list[str]], *begins: str) -> list[str]:
    """The one command that begins with these words."""
    matching = [words for words in found if words[: len(begins)] == list(begins)]
    assert len(matching) == 1, (begins, matching)
    return matching[0]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


# --- apim-smart --------------------------------------------------------------------------------------


def test_apim_wants_a_key_vault_secret_named_for_the_client_with_the_url_of_the_keys() -> None:
    """azure-and-aidbox A: name = client id, value = Entra secret, tag jwks_url."""
    known = Known(vault="contosobackkv", secret_file="/run/secrets/entra")
    words = one(commands(registration(APIM, JWKS, known)), "az", "keyvault", "secret", "set")
    assert option(words, "--vault-name") == "contosobackkv"
    assert option(words, "--name") == CLIENT
    assert option(words, "--file") == "/run/secrets/entra"
    assert option(words, "--tags") == "jwks_url=https://apim.example.org/smart/.well-known/jwks.json"
    assert "--value" not in words, "a secret on a command line is seen by everyone on the machine"


def test_apim_wants_our_keys_in_its_named_value() -> None:
    """azure-and-aidbox A: named value `JWKS`."""
    known = Known(resource_group="rg-fhir", apim_name="contoso-apim")
    words = one(commands(registration(APIM, JWKS, known)), "az", "apim", "nv", "update")
    assert option(words, "--resource-group") == "rg-fhir"
    assert option(words, "--service-name") == "contoso-apim"
    assert option(words, "--named-value-id") == "JWKS"
    assert json.loads(option(words, "--value")) == JWKS


def test_apim_wants_the_app_role_that_may_export() -> None:
    """azure-and-aidbox A: user.* scopes get 403 since July 2026; ask for system.all.read."""
    found = registration(APIM, JWKS, Known())
    lines = "\n".join(line for step in found.steps for line in step.commands)
    assert "appRoles[?value==" in lines
    assert "system.all.read" in lines
    one(commands(found), "az", "ad", "app", "permission", "admin-consent")


def test_the_role_query_survives_the_quotes_of_the_shell() -> None:
    """Run by a real shell, with `az` in its place."""
    found = registration(APIM, JWKS, Known())
    (line,) = [line for step in found.steps for line in step.commands if line.startswith("ROLE_ID=")]
    script = f'az() {{ printf "%s\\n" "$@"; }}\n{line}\nprintf "%s" "$ROLE_ID"'
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert "appRoles[?value=='system.all.read'].id" in said.splitlines()
    assert "<fhir-app-id>" in said.splitlines()


def test_a_jwk_set_that_a_named_value_cannot_hold_is_told() -> None:
    big = {"keys": [{**JWKS["keys"][0], "kid": str(n), "n": "A" * 700} for n in range(6)]}
    notes = [note for step in registration(APIM, big, Known()).steps for note in step.notes]
    assert any("4096" in note for note in notes)
    assert not any("4096" in note for step in registration(APIM, JWKS, Known()).steps for note in step.notes)


@pytest.mark.parametrize(
    ("fhir_url", "expected"),
    [
        ("https://apim.example.org/smart", "https://apim.example.org/smart/.well-known/jwks.json"),
        ("https://apim.example.org", "https://apim.example.org/smart/.well-known/jwks.json"),
        ("https://api.example.org/v2/smart", "https://api.example.org/v2/smart/.well-known/jwks.json"),
    ],
)
def test_where_apim_serves_the_keys(fhir_url: str, expected: str) -> None:
    assert jwks_url(fhir_url) == expected


def test_a_client_id_that_key_vault_cannot_name_is_refused() -> None:
    wrong = APIM.model_copy(update={"auth": APIM.auth.model_copy(update={"client_id": "nightly client"})})
    with pytest.raises(ConfigError, match="Key Vault"):
        registration(wrong, JWKS, Known())


# --- azure-fhir --------------------------------------------------------------------------------------


def test_the_roles_go_to_the_enterprise_application() -> None:
    """azure-and-aidbox C: the enterprise application's object id, not the app registration's."""
    found = registration(source("azure-fhir", FHIR, SECRET), None, Known())
    given = [words for words in commands(found) if words[:4] == ["az", "role", "assignment", "create"]]
    assert [option(words, "--role") for words in given] == ["FHIR Data Exporter", "FHIR Data Reader"]
    for words in given:
        inner = option(words, "--assignee-object-id")
        assert shlex.split(inner[2:-1]) == [
            *("az", "ad", "sp", "show", "--id", CLIENT, "--query", "id", "--output", "tsv")
        ]
        assert option(words, "--scope") == SERVICE
    assert "ENTERPRISE APPLICATION" in str(found.steps)


@pytest.mark.parametrize(
    ("fhir_url", "audience", "scope"),
    [
        (FHIR, FHIR, SERVICE),
        (
            "https://clinic.azurehealthcareapis.com",
            "https://azurehealthcareapis.com",
            "/subscriptions/<subscription-id>/resourceGroups/<resource-group>/providers"
            "/Microsoft.HealthcareApis/services/clinic",
        ),
        ("https://fhir.example.org", "https://fhir.example.org", "<fhir-service-id>"),
    ],
)
def test_what_the_address_tells_of_the_service(fhir_url: str, audience: str, scope: str) -> None:
    """azure-and-aidbox C: one audience for the API for FHIR, its own address for Health Data Services."""
    found = registration(source("azure-fhir", fhir_url, SECRET), None, Known())
    assert found.settings["auth.audience"] == audience
    words = [words for words in commands(found) if words[:4] == ["az", "role", "assignment", "create"]]
    assert {option(each, "--scope") for each in words} == {scope}


def test_a_new_secret_goes_to_the_file_of_the_configuration_and_is_not_shown() -> None:
    found = registration(source("azure-fhir", FHIR, SECRET), None, Known(secret_file="/etc/x/a b.txt"))
    (line,) = [each for step in found.steps for each in step.commands if "credential" in each]
    assert line.endswith("> '/etc/x/a b.txt')")
    assert "--append" in shlex.split(line)


def test_the_file_of_a_secret_is_for_its_owner_alone(tmp_path: Any) -> None:
    """Also in a folder that is not there yet."""
    target = tmp_path / "my secrets" / "a secret.txt"
    line = into_file(("printf", "the-secret\\n"), str(target))
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert target.read_text() == "the-secret"
    assert target.stat().st_mode & 0o777 == 0o600
    assert target.parent.stat().st_mode & 0o777 == 0o700


def test_no_secret_is_made_where_its_file_cannot_be(tmp_path: Any) -> None:
    """What `az` made and nobody kept would be lost."""
    (tmp_path / "no-folder").write_text("")
    made = tmp_path / "made"
    for target in (tmp_path / "no-folder" / "entra.txt", tmp_path):
        done = subprocess.run(
            ["sh", "-c", into_file(("touch", str(made)), str(target))], capture_output=True, check=False
        )
        assert done.returncode
        assert not made.exists()


def test_the_folder_of_the_secret_is_made_at_both_systems_that_have_one() -> None:
    known = Known(secret_file="/etc/fhir/secrets/azure.txt")
    for chosen in (APIM, source("azure-fhir", FHIR, SECRET)):
        found = registration(chosen, JWKS, known)
        (line,) = [each for step in found.steps for each in step.commands if "credential" in each]
        assert line.startswith("(umask 077 && mkdir -p /etc/fhir/secrets && "), line


def test_a_managed_identity_has_no_secret() -> None:
    system = source("azure-fhir", FHIR, {"kind": "managed-identity"})
    found = commands(registration(system, None, Known()))
    assert option(one(found, "az", "vm", "identity", "assign"), "--resource-group") == "<machine-group>"
    assert not any("credential" in words for words in found)
    roles = [words for words in found if words[:3] == ["az", "role", "assignment"]]
    assert {option(words, "--assignee-object-id") for words in roles} == {"<principal-id>"}
    ours = source("azure-fhir", FHIR, {"kind": "managed-identity", "client_id": CLIENT})
    roles = [w for w in commands(registration(ours, None, Known())) if w[:3] == ["az", "role", "assignment"]]
    assert all(CLIENT in option(words, "--assignee-object-id") for words in roles)


def test_what_was_given_is_not_to_be_filled_in() -> None:
    for auth in ({"kind": "managed-identity"}, {"kind": "managed-identity", "client_id": CLIENT}):
        found = registration(source("azure-fhir", FHIR, auth), None, Known(resource_group="rg-fhir"))
        assert "<resource-group>" not in found.fill_in
        assert "<machine-group>" in found.fill_in, "the machine may be in another group than the service"


def test_without_a_client_id_no_client_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.terminal.registering import show

    show(registration(source("azure-fhir", FHIR, {"kind": "managed-identity"}), None, Known()))
    assert capsys.readouterr().out.startswith("# hosp_a: what azure-fhir wants\n")
    show(registration(APIM, JWKS, Known()))
    assert capsys.readouterr().out.startswith(f"# hosp_a: what apim-smart wants for client '{CLIENT}'\n")


def test_what_a_reader_copies_out_of_a_terminal_has_no_quotes() -> None:
    for chosen in (source("azure-fhir", FHIR, SECRET), source("azure-fhir-export", FHIR, SECRET)):
        words = one(commands(registration(chosen, None, Known())), "az", "ad", "app", "create")
        assert (option(words, "--query"), option(words, "--output")) == ("appId", "tsv")


def test_a_workload_identity_trusts_one_service_account() -> None:
    chosen = source("azure-fhir", FHIR, {"kind": "workload-identity", "client_id": CLIENT})
    found = commands(registration(chosen, None, Known(resource_group="rg")))
    words = one(found, "az", "identity", "federated-credential", "create")
    assert option(words, "--subject") == "system:serviceaccount:<namespace>:<service-account>"
    assert option(words, "--audiences") == "api://AzureADTokenExchange"
    annotated = one(found, "kubectl", "annotate")
    assert annotated[-1] == f"azure.workload.identity/client-id={CLIENT}"


# --- azure-fhir-export -------------------------------------------------------------------------------


def exporting(kind: str = "managed-identity", **storage: Any) -> Registration:
    downloads = {"storage": {"account": "contosoexports", "kind": kind, **storage}}
    chosen = source("azure-fhir-export", FHIR, SECRET, downloads=downloads)
    return registration(chosen, None, Known(resource_group="rg-fhir"))


def test_the_server_writes_and_we_read_the_storage_account() -> None:
    """azure-and-aidbox D: Contributor for the FHIR server's identity, Reader for ours."""
    found = commands(exporting())
    given = {option(w, "--role"): w for w in found if w[:4] == ["az", "role", "assignment", "create"]}
    assert set(given) == {
        *("FHIR Data Exporter", "FHIR Data Reader"),
        *("Storage Blob Data Contributor", "Storage Blob Data Reader"),
    }
    writer = option(given["Storage Blob Data Contributor"], "--assignee-object-id")
    assert "identity.principalId" in writer
    assert "fhirservices/main-fhir" in writer
    assert option(given["Storage Blob Data Reader"], "--assignee-object-id") == "<principal-id>"
    for role in ("Storage Blob Data Contributor", "Storage Blob Data Reader"):
        assert "contosoexports" in option(given[role], "--scope")


def test_the_export_setting_names_the_account() -> None:
    """As a whole object: a service that never exported has no exportConfiguration to set a member of."""
    found = commands(exporting())
    (setting,) = [option(w, "--set") for w in found if w[:3] == ["az", "resource", "update"]]
    name, _, value = setting.partition("=")
    assert name == "properties.exportConfiguration"
    assert json.loads(value) == {"storageAccountName": "contosoexports"}
    identity = one(found, "az", "healthcareapis", "workspace", "fhir-service", "update")
    assert option(identity, "--identity-type") == "SystemAssigned"
    assert option(identity, "--workspace-name") == "clinic"
    assert option(identity, "--fhir-service-name") == "main-fhir"


def test_who_reads_the_files_is_who_the_configuration_says() -> None:
    by_principal = exporting(
        "service-principal", client_id="reader-id", tenant_id="t", client_secret="env:READER"
    )
    given = [w for w in commands(by_principal) if "Storage Blob Data Reader" in w]
    assert "reader-id" in option(given[0], "--assignee-object-id")
    by_sas = commands(exporting("sas", sas="file:sas.txt"))
    assert not [w for w in by_sas if "Storage Blob Data Reader" in w]
    sas = one(by_sas, "az", "storage", "account", "generate-sas")
    assert option(sas, "--permissions") == "rl"
    assert "--https-only" in sas


def test_a_missing_storage_section_is_told() -> None:
    found = registration(source("azure-fhir-export", FHIR, SECRET), None, Known())
    assert any("downloads.storage is missing" in note for step in found.steps for note in step.notes)


# --- all ---------------------------------------------------------------------------------------------

EVERY = [
    APIM,
    source("azure-fhir", FHIR, SECRET),
    source("azure-fhir", FHIR, {"kind": "managed-identity"}),
    source("azure-fhir", FHIR, {"kind": "workload-identity"}),
    source("azure-fhir-export", FHIR, SECRET),
    source("aidbox", "https://box.example.org", {"client_id": "nightly", "private_key": "file:k.pem"}),
    source(
        "smartbox",
        "https://box.example.org",
        {"client_id": "nightly", "private_key": "file:k.pem"},
        tenant="my-clinic",
    ),
    source("smart", "https://fhir.example.org", {"client_id": "nightly", "private_key": "file:k.pem"}),
]


@pytest.mark.parametrize("chosen", EVERY, ids=lambda each: f"{each.profile}-{each.auth.kind}")
def test_every_command_parses_and_every_placeholder_is_explained(chosen: Source) -> None:
    found = registration(chosen, JWKS, Known())
    for step in found.steps:
        for line in step.commands:
            assert shlex.split(line), line
            subprocess.run(["sh", "-n", "-c", line], check=True)
            unquoted = re.sub(r"'[^']*'", "", line)
            assert "<" not in unquoted, f"a shell would take it for a redirection: {line}"
            assert "\n" not in line
    lines = "\n".join(line for step in found.steps for line in step.commands)
    assert set(re.findall(r"<[a-z-]+>", lines)) == set(found.fill_in)
    assert set(found.fill_in) <= set(PLACEHOLDERS)


@pytest.mark.parametrize("chosen", EVERY, ids=lambda each: f"{each.profile}-{each.auth.kind}")
def test_as_data_it_is_json_and_says_the_same(chosen: Source) -> None:
    found = registration(chosen, JWKS, Known())
    data = json.loads(json.dumps(found.as_json()))
    assert data["system"] == chosen.profile
    assert [step["title"] for step in data["steps"]] == [step.title for step in found.steps]
    assert data["fill_in"] == found.fill_in


@pytest.mark.parametrize("chosen", EVERY[5:7], ids=lambda each: each.profile)
def test_curl_sends_the_same_body_and_takes_the_token_from_the_environment(chosen: Source) -> None:
    for step in registration(chosen, JWKS, Known()).steps:
        for request, line in zip(step.requests, step.commands, strict=True):
            words = shlex.split(line)
            assert words[0] == "curl"
            assert option(words, "--request") == request.method
            assert request.url in words
            assert json.loads(option(words, "--data")) == request.body
            assert "Authorization: Bearer $ADMIN_TOKEN" in words


def test_words_of_a_command_cannot_be_taken_for_shell() -> None:
    words = ("az", "x", "$(rm -rf /)", "`id`", "a'b", "two words", "<placeholder>")
    assert shlex.split(command(*words)) == list(words)
    done = subprocess.run(
        ["sh", "-c", command("printf", "%s|", *words[2:])], capture_output=True, text=True, check=True
    )
    assert done.stdout == "".join(f"{word}|" for word in words[2:])
    assert command("az", Substituted("$(az y)")) == 'az "$(az y)"'


def test_a_configured_name_cannot_break_out_of_a_comment(capsys: pytest.CaptureFixture[str]) -> None:
    """The output is made to be pasted into a shell."""
    from pipeline.terminal.registering import show

    evil = "nightly'\ntouch pwned #"
    chosen = source(
        "azure-fhir", FHIR, {**SECRET, "client_id": evil, "client_secret": "env:X", "audience": "a\rid\n"}
    )
    found = registration(chosen, None, Known())
    show(found)
    printed = capsys.readouterr().out
    commands_alone = printed
    for step in found.steps:
        for line in step.commands:
            commands_alone = commands_alone.replace(line, "")
    assert all(each.startswith("#") for each in commands_alone.splitlines() if each.strip())
    assert "\r" not in commands_alone


def test_a_configured_name_in_angle_brackets_is_no_placeholder_of_ours() -> None:
    chosen = source("azure-fhir", FHIR, {**SECRET, "client_id": "<mine>"})
    assert "<mine>" not in registration(chosen, None, Known()).fill_in
