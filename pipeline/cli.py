"""The command line, `fhir-export`: the same verbs that Dagster runs, for a terminal and for scripts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.core import TyperGroup

from pipeline.errors import ConfigError, ExportError
from pipeline.terminal.listing import show_details, show_list, show_verdicts
from pipeline.terminal.screen import bytes_bar, give, give_json, give_table, number, say, working

if TYPE_CHECKING:
    from pipeline.config import Config, Source
    from pipeline.exports.check import Verdict

# Typer joins the lines of an epilog; only paragraphs stay apart.
EPILOG = "\n\n".join(
    (
        "[bold]First steps[/bold]",
        "fhir-export demo  -  all of it, on a FHIR server with made-up data",
        "fhir-export keys new --out keys/hosp_a.pem  -  a key for a server of yours",
        "fhir-export jwks --key keys/hosp_a.pem  -  its public half, to register there",
        "fhir-export check hosp_a  -  what is still wrong, and what to do",
        "fhir-export run hosp_a --wait  -  an export now; the schedule does it nightly",
        "[bold]Exit codes[/bold]",
        "0 done, 1 unexpected, 2 usage or configuration, 3 refused by a server, 4 verification failed, "
        "5 still running, 6 server not reachable, 7 lake not usable, 130 interrupted",
    )
)


class _Commands(TyperGroup):
    """All commands; a refused value is told without the words that pydantic puts before it."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except typer.BadParameter as refused:
            refused.message = refused.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="fhir-export",
    cls=_Commands,
    help="Export FHIR servers in bulk, on schedule, to typed tables: Parquet and Delta, with lineage.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = typer.Typer(help="Make and rotate the private keys that sign in at servers.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


@dataclass
class _Options:
    """What stands before the command."""

    config: Path | None = None

    def load(self) -> Config:
        from pipeline.config import load_config

        return load_config(self.config)


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Name of a source in the configuration.")
]
OptionalSource = Annotated[
    str | None, typer.Argument(metavar="[SOURCE]", help="Name of a source; without one, all of them.")
]
ExportArgument = Annotated[
    str,
    typer.Argument(
        metavar="EXPORT", help="SOURCE/ID such as hosp_a/20260131T020000Z; the ID alone where unique."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        give(f"fhir-export {version('fhir-export-pipeline')}")
        raise typer.Exit


@app.callback()
def _globals(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The configuration. Default: $EXPORTS_CONFIG, or $DAGSTER_HOME/exports.yaml.",
        ),
    ] = None,
    debug: Annotated[  # noqa: ARG001 - `_exit_code` looks for it
        bool, typer.Option("--debug", help="Show where an unexpected error happened.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    context.obj = _Options(config)


def _options(context: typer.Context) -> _Options:
    options = context.obj
    assert isinstance(options, _Options)  # noqa: S101 - for the type checker: `_globals` runs first
    return options


# --- trying and checking -----------------------------------------------------------------------------


@app.command()
def demo(
    context: typer.Context,
    ui: Annotated[
        bool, typer.Option("--ui", help="Leave the Dagster UI up, with the server behind it, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(help="Where the UI answers (with --ui).")] = 3000,
) -> None:
    """A whole night on a FHIR server with made-up data: kick-off, download, tables, lineage.

    Needs no configuration and no network; writes below ./lake and dagster_home/ only.
    """
    from pipeline.demo import run_demo, run_ui

    config = _options(context).config
    if ui:
        run_ui(say=give, config_path=config, port=port)
    else:
        run_demo(say=give, config_path=config)


@app.command()
def check(context: typer.Context, source: OptionalSource = None, as_json: Json = False) -> None:
    """Find out what is wrong: server, key or identity, token, a small read, group, storage, lake, clock.

    The first line that is bad is the one to mend. Nothing is exported.
    """
    from pipeline.exports.check import check_source, first_bad

    config = _options(context).load()
    found: list[tuple[Source, list[Verdict]]] = []
    for each in _chosen(config, source):
        with working(f"checking {each.name}"):
            verdicts = check_source(config, each)
        found.append((each, verdicts))
        if not as_json:
            show_verdicts(each, verdicts)
    if as_json:
        give_json(
            [{"source": each.name, **verdict.as_json()} for each, verdicts in found for verdict in verdicts]
        )
    bad = [verdict for _, verdicts in found if (verdict := first_bad(verdicts))]
    if bad:
        raise typer.Exit(bad[0].exit_code)


def _chosen(config: Config, name: str | None) -> tuple[Source, ...]:
    if name is not None:
        return (config.source(name),)
    if not config.sources:
        raise ConfigError("the configuration names no source", "Add one under sources")
    return config.sources


# --- keys --------------------------------------------------------------------------------------------


@keys_app.command("new")
def keys_new(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the private key goes (PEM, mode 0600).")],
    algorithm: Annotated[
        Literal["RS384", "ES384"],
        typer.Option(help="RS384: RSA with 3072 bits. ES384: elliptic curve P-384."),
    ] = "RS384",
) -> None:
    """Make a private key. Only this machine sees it; what you register is its public half.

    Example: fhir-export keys new --algorithm ES384 --out keys/hosp_a.pem
    """
    from pipeline.auth.keys import generate_key, write_private_key
    from pipeline.auth.signers import PemSigner

    pem = generate_key(algorithm)
    write_private_key(out, pem)
    kid = PemSigner.from_pem(pem, algorithm).kid
    say(f"{out} holds a new private key for {algorithm}, kid {kid}")
    say(f"Register its public half at the server: fhir-export jwks --key {out}")


@keys_app.command("rotate")
def keys_rotate(
    context: typer.Context,
    source: SourceArgument,
    wait_minutes: Annotated[
        float | None,
        typer.Option(
            min=0, help="How long the new key is published first. Default: key_rotation.wait_minutes."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the next key of a source. It is published at once and signs later, by the clock, everywhere.

    Example: fhir-export keys rotate hosp_a
    """
    from pipeline.terminal import key_rotation

    config = _options(context).load()
    minutes = config.key_rotation.wait_minutes if wait_minutes is None else wait_minutes
    done = key_rotation.rotate(config, config.source(source), timedelta(minutes=minutes))
    for line in done.lines:
        say(line)
    if as_json:
        give_json(done.as_json())


@app.command()
def jwks(
    context: typer.Context,
    source: OptionalSource = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One private key; else those of all sources in the configuration."),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve it at /.well-known/jwks.json.")] = False,
    host: Annotated[str, typer.Option(help="With --serve: the address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="With --serve: the port; 0 takes a free one.")] = 8080,
) -> None:
    """Print the public JWK Set to register at a server, or serve it (behind your own TLS).

    A server needs it either pasted in, or as a URL that it reads again when keys change.
    """
    from pipeline.terminal import public_keys

    missing: dict[str, ExportError] = {}

    def note(source: str, error: ExportError) -> None:
        if source not in missing:
            say(f"the key of {source} is missing: {error}")
        missing[source] = error

    if key:
        chosen: tuple[Source, ...] = ()
        wait = timedelta(seconds=3 * public_keys.CACHE_SECONDS)
        read = partial(public_keys.set_of_file, key)
    else:
        config = _options(context).load()
        chosen = _chosen(config, source)
        wait = timedelta(minutes=config.key_rotation.wait_minutes)
        read = partial(public_keys.PublishedKeys(config, chosen).read, note)
    if serve:
        public_keys.serve(
            read,
            wait,
            host,
            port,
            lambda url, keys: say(f"serving {len(keys['keys'])} keys at {url}"),
        )
        return
    give_json(read())
    for line in public_keys.where_to_paste([each for each in chosen if each.name not in missing]):
        say(line)
    for error in missing.values():
        raise typer.Exit(error.exit_code)


@app.command()
def register(
    context: typer.Context,
    source: SourceArgument,
    do_it: Annotated[
        bool, typer.Option("--apply", help="Do what can be done from here: aidbox, smartbox, apim-smart.")
    ] = False,
    as_json: Json = False,
    jwks_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where our JWK Set is served. Default: auth.jku.")
    ] = None,
    admin_token: Annotated[
        str | None,
        typer.Option(
            metavar="REF", help="With --apply at a box: file:PATH or env:NAME, a token or user:password."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Overwrite a Client of another kind too.")
    ] = False,
    tenant_form: Annotated[
        Literal["_tenant", "tenant"] | None,
        typer.Option(help="Smartbox: the link to the tenant, meta._tenant (older) or meta.tenant (newer)."),
    ] = None,
    vault: Annotated[
        str | None, typer.Option(metavar="NAME", help="apim-smart: the Key Vault that ends in backkv.")
    ] = None,
    client_secret: Annotated[
        str | None,
        typer.Option(
            metavar="REF", help="apim-smart: the client's Entra secret, file:PATH, env:NAME or prompt."
        ),
    ] = None,
    resource_group: Annotated[str | None, typer.Option(metavar="NAME", help="For the az commands.")] = None,
    apim_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="apim-smart: the API Management service.")
    ] = None,
) -> None:
    """Print what the source's system wants before it knows this client: commands and requests to paste.

    Nothing is sent without --apply. Example: fhir-export register hosp_a --apply --admin-token file:admin.txt
    """
    from pipeline.registration.steps import Known
    from pipeline.registration.vault import vault_name
    from pipeline.terminal import registering

    config = _options(context).load()
    chosen = config.source(source)
    known = Known(
        resource_group=resource_group,
        apim_name=apim_name,
        vault=vault_name(vault) if vault else None,
        jwks_url=registering.public_url(jwks_url),
        tenant_form=tenant_form,
        secret_file=registering.secret_file(config, chosen, client_secret),
    )
    if do_it:
        asked = registering.Applying(admin_token, client_secret, vault, replace)
        done = registering.apply(config, chosen, known, asked)
        if as_json:
            give_json(done)
        return
    found = registering.find(config, chosen, known)
    if as_json:
        give_json(found.as_json())
    else:
        registering.show(found)


# --- exports -----------------------------------------------------------------------------------------


@app.command()
def run(
    context: typer.Context,
    source: SourceArgument,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Stay until the tables are published; else end once it is accepted."),
    ] = False,
    new: Annotated[
        bool, typer.Option("--new", help="A new export run, although an earlier one is still open.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The last line of output is the result as JSON.")
    ] = False,
) -> None:
    """Export now. No daemon is needed; Dagster's UI shows it all the same.

    An export run that is still open (killed, interrupted, waiting) is gone on with; --new opens another one.
    Without --wait Dagster's sensor goes on with it. Example: fhir-export run hosp_a --wait
    """
    options = _options(context)
    config = options.load()
    chosen = config.source(source)
    from pipeline.orchestration.local import run_source

    with working(f"exporting {source}") as tell:
        outcome = run_source(config, chosen, wait=wait, new=new, say=tell)
    if not as_json and outcome.tables:
        give_table(
            ("table", "rows"),
            [(name, number(rows)) for name, rows in sorted(outcome.tables.items())],
            ("rows",),
        )
    say(f"{source}/{outcome.export_id} is {outcome.state}: {outcome.reason}")
    if outcome.quarantined and not as_json:
        say(f"  -> `fhir-export show {source}/{outcome.export_id}` names the files with the bad lines")
    if as_json:
        give_json(
            {
                "export_id": outcome.export_id,
                "state": outcome.state,
                "tables": outcome.tables,
                "quarantined": outcome.quarantined,
            }
        )
    if outcome.error is not None:
        raise typer.Exit(outcome.error.exit_code)
    if wait and outcome.state != "published":
        raise typer.Exit(5)


@app.command("exports")
def list_exports(
    context: typer.Context,
    source: OptionalSource = None,
    as_json: Json = False,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many of each source.")] = 20,
) -> None:
    """List the export runs: state, rows, age, reason and what is next."""
    from pipeline.exports.overview import summaries, watching_session

    config = _options(context).load()
    chosen = _chosen(config, source)
    found = [each for one in chosen for each in summaries(watching_session(config, one), limit)]
    if as_json:
        give_json([each.as_json() for each in found])
    elif found:
        show_list(found)
    else:
        say("no export run yet; `fhir-export run SOURCE --wait` makes one")


@app.command()
def show(context: typer.Context, export: ExportArgument, as_json: Json = False) -> None:
    """Show one export run: what was asked, what came, what happened when."""
    from pipeline.exports.overview import details, find_export, watching_session

    config = _options(context).load()
    source, export_id = find_export(config, export)
    found = details(watching_session(config, source), export_id)
    if as_json:
        give_json(found.as_json())
    else:
        show_details(config, found)


@app.command()
def cancel(context: typer.Context, export: ExportArgument) -> None:
    """Give an open export run up: the job on the server is deleted, nothing is published."""
    from pipeline.exports.overview import find_export
    from pipeline.exports.owner import this_process
    from pipeline.exports.session import Session
    from pipeline.terminal import cancelling

    config = _options(context).load()
    source, export_id = find_export(config, export)
    say(cancelling.cancel(Session(config, source, this_process("cli"), log=say), export_id))


@app.command()
def notify(
    context: typer.Context,
    test: Annotated[bool, typer.Option("--test", help="Send everybody a test notice now.")] = False,
) -> None:
    """Show who is told when a run fails or an export needs somebody. The daemon tells them.

    Example: fhir-export notify --test
    """
    from pipeline.terminal import notifying

    config = _options(context).load()
    if not test:
        notifying.show_notifiers(config)
        return
    error = notifying.send_test(config)
    if error is not None:
        raise typer.Exit(error.exit_code)


@app.command()
def clean(
    context: typer.Context,
    source: OptionalSource = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what nothing refers to any more, as old as `retention` says. Dagster's schedule does it, too.

    Example: fhir-export clean hosp_a --dry-run
    """
    from pipeline.terminal.cleaning import clean_source, show_cleaned

    config = _options(context).load()
    cleaned = [clean_source(config, each, dry_run=dry_run) for each in _chosen(config, source)]
    if as_json:
        give_json([each.as_json() for each in cleaned])
    else:
        show_cleaned(cleaned)


@app.command()
def maintain(
    context: typer.Context,
    source: OptionalSource = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be done to each table.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Keep the Delta tables small: old files and old logs go, by the tables' own retention. Exits with 7 when
    a table could not be done. Dagster's schedule does it, too.

    Example: fhir-export maintain hosp_a --dry-run
    """
    from pipeline.terminal.maintain import maintain_source, show_maintained

    config = _options(context).load()
    with working("maintaining") as tell:
        found = [maintain_source(config, each, tell, dry_run=dry_run) for each in _chosen(config, source)]
    show_maintained(found, as_json=as_json)


@app.command()
def doctor(
    context: typer.Context,
    source: OptionalSource = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild what Dagster lost, from the lake; end dead runs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find contradictions between lake, tables and Dagster, and how to mend each. Exits with 4 for any error.

    Data is never touched, with --repair neither. Example: fhir-export doctor hosp_a
    """
    from pipeline.terminal.doctor import visit

    config = _options(context).load()
    code = visit(config, _chosen(config, source), repair=repair, as_json=as_json)
    if code:
        raise typer.Exit(code)


@app.command()
def retry(
    context: typer.Context,
    export: ExportArgument,
    accept_partial: Annotated[
        bool,
        typer.Option("--accept-partial", help="Publish it as it is, although part of its data is missing."),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Go on with it here, until the tables are published.")
    ] = False,
) -> None:
    """Try a held export run again: `show` tells why it is held. What is landed is not downloaded anew.

    Without --wait Dagster's sensor goes on with it. Example: fhir-export retry hosp_a/20260131T020000Z --wait
    """
    from pipeline.exports.overview import find_export
    from pipeline.exports.repair import retry as retry_export
    from pipeline.terminal.repairing import session_at_terminal

    config = _options(context).load()
    source, export_id = find_export(config, export)
    say(retry_export(session_at_terminal(config, source), export_id, accept_partial=accept_partial))
    if not wait:
        return
    from pipeline.orchestration.local import follow_export

    with working(f"exporting {source.name}") as tell:
        outcome = follow_export(config, source, export_id, say=tell)
    say(f"{source.name}/{outcome.export_id} is {outcome.state}: {outcome.reason}")
    if outcome.error is not None:
        raise typer.Exit(outcome.error.exit_code)
    if outcome.state != "published":
        raise typer.Exit(5)


@app.command()
def withdraw(context: typer.Context, export: ExportArgument) -> None:
    """Give an export run up for good: its rows leave the tables, its job leaves the server.

    Raw bytes and facts stay until retention takes them. Interrupted, it is simply called again.
    """
    from pipeline.exports.overview import find_export
    from pipeline.exports.repair import withdraw as withdraw_export
    from pipeline.terminal.repairing import session_at_terminal

    config = _options(context).load()
    source, export_id = find_export(config, export)
    for line in withdraw_export(session_at_terminal(config, source), export_id):
        say(line)


@app.command()
def erase(
    context: typer.Context,
    source: SourceArgument,
    patient: Annotated[
        str, typer.Argument(metavar="PATIENT", help="The id of the Patient, as the server has it.")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", help="Erase; without it only what would go is counted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Erase a patient from raw bytes, tables, current tables and quarantine, and prove it. Dry by default.

    Interrupted, it is simply called again. Exits with 4 where something is left, with 5 while somebody is at
    work on the source.
    """
    from pipeline.terminal.erase import erase_patient, show_erased

    config = _options(context).load()
    (chosen,) = _chosen(config, source)
    with working("reading everything"):
        erased = erase_patient(config, chosen, patient, dry_run=not yes)
    show_erased(erased, as_json=as_json)
    if erased.error:
        raise erased.error


# --- what is true now, and what was ------------------------------------------------------------------


@app.command()
def current(
    context: typer.Context,
    source: OptionalSource = None,
    resource_type: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="These resource types only.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring the current tables up to date: of each resource the newest version, without what was deleted.

    `run --wait` and Dagster do it after each export. Example: fhir-export current hosp_a --type Patient
    """
    from pipeline.terminal.current import show_updated, update, with_current

    config = _options(context).load()
    with working("merging") as tell:
        chosen = with_current(_chosen(config, source), tell)
        found = [update(config, each, resource_type or (), tell) for each in chosen]
    show_updated(found, as_json=as_json)


@app.command()
def rebuild(
    context: typer.Context,
    source: SourceArgument,
    resource_type: Annotated[
        str, typer.Argument(metavar="TYPE", help="A resource type such as Patient, or all.")
    ],
    as_json: Json = False,
) -> None:
    """Make current tables again, from the export partitions alone; readers see the old ones until then.

    Example: fhir-export rebuild hosp_a Patient
    """
    from pipeline.terminal.current import show_updated, update

    config = _options(context).load()
    types = () if resource_type == "all" else (resource_type,)
    (chosen,) = _chosen(config, source)
    with working("making again") as tell:
        found = update(config, chosen, types, tell, anew=True)
    show_updated([found], as_json=as_json)


@app.command("as-of")
def as_of(
    context: typer.Context,
    export: ExportArgument,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where the Parquet files go: DIR/patient, DIR/observation, ..."),
    ],
    resource_type: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="These resource types only.")
    ] = None,
    flat: Annotated[
        bool, typer.Option("--flat", help="The flat form as well: DIR/patient_flat, ...")
    ] = False,
) -> None:
    """Write what was true as of an export run, from it and those before it.

    Example: fhir-export as-of hosp_a/20260131T020000Z --type Patient --out january
    """
    from pipeline.exports.overview import find_export
    from pipeline.terminal import current as terminal

    config = _options(context).load()
    source, export_id = find_export(config, export)
    with working("reading exports") as tell:
        terminal.as_of(config, source, export_id, resource_type or (), out, tell, flat=flat)


@app.command()
def attachments(
    context: typer.Context,
    source: SourceArgument,
    export: Annotated[
        str | None,
        typer.Argument(metavar="[EXPORT]", help="The ID of one export run; its links are made again."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch what is missing of the attachments that published resources name, and link it (_attachments).

    `run --wait` and Dagster do it after each export, where the configuration has attachments.
    Example: fhir-export attachments hosp_a
    """
    from pipeline.exports.attachments.run import require_all
    from pipeline.terminal.attachments import fetch, show

    config = _options(context).load()
    chosen = config.source(source)
    with working("fetching attachments") as tell:
        found = fetch(config, chosen, export, tell)
    show(chosen, found, as_json=as_json)
    require_all(found)


# --- files and tables --------------------------------------------------------------------------------


@app.command()
def convert(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="NDJSON files, plain or gzip.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the tables go: DIR/patient, DIR/observation, ...")
    ],
) -> None:
    """Turn NDJSON files into tables, without any server. Each run adds a partition to each table.

    Example: fhir-export convert Patient.ndjson Observation.ndjson.gz --out tables
    """
    from pipeline.terminal.ndjson_files import bytes_to_read, convert_files

    with bytes_bar("converting", bytes_to_read(files)) as advance:
        converted = convert_files(files, out, advance)
    give_table(
        ("table", "rows"), [(name, number(rows)) for name, rows in converted.tables.items()], ("rows",)
    )
    say(f"{out} has a new partition, export_id={converted.export_id}")
    if converted.quarantined:
        say(
            f"{converted.quarantined} bad lines became no row; the files in {out / converted.quarantine} "
            "name file, line and reason"
        )


@app.command("to-ndjson")
def to_ndjson(
    context: typer.Context,
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="SOURCE/type such as hosp_a/patient, or a folder.")
    ],
    export: Annotated[str | None, typer.Option(metavar="ID", help="One export's rows only.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new file; else it goes to standard output.")
    ] = None,
) -> None:
    """Turn a table back into NDJSON, each resource as exact as it came.

    Example: fhir-export to-ndjson hosp_a/patient --export 20260131T020000Z --out Patient.ndjson
    """
    from pipeline.terminal.tables import find_table, new_file, resources

    address = find_table(table, _options(context).load)
    export_id = export.rpartition("/")[2] if export else None
    if out is None:
        for line in resources(address, export_id):
            sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
        return
    written = 0
    with new_file(out) as file:
        for line in resources(address, export_id):
            file.write(line + b"\n")
            written += 1
    say(f"{out} holds {written:,} resources")


# --- the program -------------------------------------------------------------------------------------


def main() -> None:
    """Runs the command line and exits with its code."""
    sys.exit(_exit_code(sys.argv[1:]))


def _exit_code(arguments: Sequence[str]) -> int:
    """Whatever goes wrong becomes one message and a code; only `--debug` shows a traceback."""
    from pipeline.log_redaction import keep_logs_clean

    keep_logs_clean()
    try:
        app(args=list(arguments), prog_name="fhir-export")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if code == 130:
            say("interrupted")
        return code
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except ExportError as error:
        say(f"error: {error.cause}")
        if error.advice:
            say(f"  -> {error.advice}")
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone: Python must not complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort of a program
        from pipeline.unexpected import SHOW_TEXTS, place, told

        if "--debug" in arguments:
            # The text of a foreign error may hold anything, content and secrets too.
            sys.stderr.write(told(error, with_texts=os.environ.get(SHOW_TEXTS) == "1") + "\n")
        say(f"error: unexpected {type(error).__name__} in {place(error)}")
        say("  -> run it again as `fhir-export --debug ...` to see more, and report it")
        return 1
    return 0


if __name__ == "__main__":
    main()
