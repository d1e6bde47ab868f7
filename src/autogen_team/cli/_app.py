"""Declares the commands and their options only, so that `--help` and completion are fast.

Each command is implemented in its own module, which is imported when the command is called.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from autogen_team.cli import _durations

app = typer.Typer(
    name="autogen-team",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from autogen_team import __version__

        typer.echo(f"autogen-team {__version__}")
        raise typer.Exit


Experiment = Annotated[str | None, typer.Option("--experiment", "-e", help="MLflow experiment.")]
TrackingUri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow tracking URI.")]
LogLevel = Annotated[str | None, typer.Option("--log-level", "-l", help="Minimum level of log lines.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SERVICE.FIELD=VALUE", help="Set any setting, for example logger.serialize=true. Repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The global context of an ML or LLM job: logging, alerts and MLflow tracking."""


class _Target(typer.core.TyperCommand):
    """A command whose arguments are another command line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options, and record in `ctx.meta` whether `--` precedes the remaining arguments."""
        words = list(args)
        at = self._python_target(args)
        left = super().parse_args(ctx, args if at is None else [*args[:at], "--", *args[at:]])
        target = ctx.params.get("command") or []
        ctx.meta[_SEPARATED] = words[: len(words) - len(target)][-1:] == ["--"]
        return left

    def _python_target(self, args: list[str]) -> int | None:
        """Return the index of `-m` or `-c` if the target begins with it; click cannot parse `-mNAME` as one word."""
        with_value = {name for param in self.params if not getattr(param, "is_flag", False) for name in param.opts}
        words = iter(enumerate(args))
        for at, word in words:
            if word.startswith(("-m", "-c")):
                return at
            if not word.startswith("-") or word in ("-", "--"):
                return None
            if word in with_value:
                next(words, None)
        return None


_SEPARATED = "autogen_team.separated"


@app.command(cls=_Target, context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET",
            help="A Python script, -m MODULE, -c CODE, or -- and any command, followed by its arguments.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", envvar="AUTOGEN_TEAM_RUN_NAME", help="Name of the run. (default: the target)"),
    ] = None,
    description: Annotated[
        str | None,
        typer.Option("--description", envvar="AUTOGEN_TEAM_RUN_DESCRIPTION", help="Description of the run."),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag", "-t", metavar="KEY=VALUE", envvar="AUTOGEN_TEAM_RUN_TAGS", help="Tag of the run. Repeatable."
        ),
    ] = None,
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="online, auto (offline if the server is down) or offline.")
    ] = None,
    log_level: LogLevel = None,
    alert_on: Annotated[
        str | None,
        typer.Option("--alert-on", help="When to send an alert at the end of a run: failure, always or never."),
    ] = None,
    output: Annotated[
        bool,
        typer.Option(
            "--keep-output/--no-keep-output",
            envvar="AUTOGEN_TEAM_RUN_KEEP_OUTPUT",
            help="Keep stdout and stderr with the run's log.",
        ),
    ] = True,
    system_metrics: Annotated[
        bool,
        typer.Option(
            "--system-metrics/--no-system-metrics",
            envvar="AUTOGEN_TEAM_RUN_SYSTEM_METRICS",
            help="Sample CPU, memory, disk, network and GPUs of the machine.",
        ),
    ] = True,
    require_clean: Annotated[
        bool,
        typer.Option(
            "--require-clean",
            envvar="AUTOGEN_TEAM_RUN_REQUIRE_CLEAN",
            help="Refuse to run code that is not committed.",
        ),
    ] = False,
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            envvar="AUTOGEN_TEAM_RUN_JOB",
            help="Name of the job. All its starts share one run. auto: the scheduler's name for the job.",
        ),
    ] = None,
    stale: Annotated[
        str,
        typer.Option(
            "--stale",
            metavar="DURATION",
            envvar="AUTOGEN_TEAM_RUN_STALE",
            help="With --job: time without a heartbeat after which a start on another machine counts as dead.",
        ),
    ] = "5m",
    stall_after: Annotated[
        str | None,
        typer.Option(
            "--stall-after",
            metavar="DURATION",
            parser=_durations.checked,
            help="Send an alert with the stacks if nothing is logged or printed for this long: 15m.",
        ),
    ] = None,
    stall_kill: Annotated[
        bool | None,
        typer.Option("--stall-kill/--no-stall-kill", help="End the job if it is silent for twice that time."),
    ] = None,
    set_: Set = None,
) -> NoReturn:
    """Run any job under supervision, inside the global context and one MLflow run.

    The output of the job is passed through unchanged and kept with the run. Signals are forwarded. If the job dies
    without closing its run, even by SIGKILL, the run is closed with the reason and an alert is sent.

    The exit status is the job's, or 128 plus the number of the signal that killed it. It is 2 if the command line or a
    setting is invalid, 125 if the context cannot start, the code is refused or the job is already running elsewhere,
    126 if the command cannot be executed, and 127 if it does not exist.

    Example: autogen-team run --experiment digits --tag fold=1 train.py --epochs 3
    """
    from autogen_team.cli import run as action

    overrides = _overrides(set_, experiment=experiment, tracking_uri=tracking_uri, log_level=log_level)
    kills = None if stall_kill is None else str(stall_kill).lower()
    more = {"mlflow.mode": mode, "alert_on": alert_on, "stall_after": stall_after, "stall_kill": kills}
    action.run(
        command,
        is_command=context.meta[_SEPARATED],
        name=name,
        description=description,
        tags=tag or [],
        keep_output=output,
        system_metrics=system_metrics,
        require_clean=require_clean,
        job=job,
        stale=_durations.seconds(stale),
        overrides={**overrides, **{path: value for path, value in more.items() if value is not None}},
    )


@app.command()
def config(
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    log_level: LogLevel = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Print each setting with its variable, its value and the source of the value; secrets are masked.

    Example: AUTOGEN_TEAM_LOGGER_LEVEL=DEBUG autogen-team config
    """
    from autogen_team.cli import config as action

    overrides = _overrides(set_, experiment=experiment, tracking_uri=tracking_uri, log_level=log_level)
    action.show(overrides, as_json=json)


@app.command()
def doctor(
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    log_level: LogLevel = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Check that everything a job needs works; the report has no secrets, so you can paste it into an issue.

    Prints versions and settings, and checks the tracking store, registry, artifacts, clocks, desktop, alert channels,
    state folder and log sink. No alert is sent. Nothing is created except a test run with a metric and a file, in your
    experiment or, if that does not exist, in MLflow's default one. The test run is deleted at once; a server keeps it
    as a deleted run.

    Exits with 1 if a check fails, 2 if a setting is invalid.

    Example: autogen-team doctor --tracking-uri http://localhost:5000
    """
    from autogen_team.cli import doctor as action

    overrides = _overrides(set_, experiment=experiment, tracking_uri=tracking_uri, log_level=log_level)
    action.diagnose(overrides, as_json=json)


@app.command()
def notify(
    title: Annotated[str, typer.Argument(help="Title of the alert.")],
    message: Annotated[str, typer.Argument(help="Text of the alert.")],
    level: Annotated[str, typer.Option("--level", help="info, success, warning or error.")] = "info",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Send an alert through each configured channel, and show which channels delivered it.

    Exits with 1 if no channel delivered the alert, 2 if a setting is invalid.

    Example: autogen-team notify "disk full" "91% of /data" --level warning
    """
    from autogen_team.cli import notify as action

    overrides = _overrides(set_, experiment=None, tracking_uri=None, log_level=None)
    action.send(title, message, level, overrides, as_json=json)


@app.command()
def status(
    store: Annotated[
        bool, typer.Option("--store", help="List the RUNNING runs in the store, from all machines.")
    ] = False,
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """List the journals on this machine, with their runs, the state of their process and their waiting entries.

    With --store, list the RUNNING runs in the store instead, with their machine, process and last heartbeat.

    Example: autogen-team status --store --tracking-uri http://localhost:5000
    """
    from autogen_team.cli import status as action

    if not store:
        _refuse_without("--store", {"--experiment": experiment, "--tracking-uri": tracking_uri, "--set": set_})
        action.show(as_json=json)
        return
    overrides = _overrides(set_, experiment=None, tracking_uri=tracking_uri, log_level=None)
    action.show_store(overrides, experiment=experiment, as_json=json)


@app.command()
def sync(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A local store: mlflow.db, mlruns/ or a URI. (default: everything waiting on this machine)"
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="URI", help="Store to copy to. (default: the configured one)")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete copied runs from the source.")] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Deliver waiting journals, and copy the runs of a local store to a server, each only once.

    Exits with 1 if something could not be copied; the table names it.

    Example: autogen-team sync mlruns/ --to http://localhost:5000
    """
    from autogen_team.cli import sync as action

    overrides = _overrides(set_, experiment=None, tracking_uri=None, log_level=None)
    action.sync(source, overrides, to=to, dry_run=dry_run, delete=delete, as_json=json)


@app.command()
def recover(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done, and why.")] = False,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="NAME", help="Also recover journals of this machine or pod, which is gone. Repeatable."
        ),
    ] = None,
    stale: Annotated[
        float | None,
        typer.Option(
            "--stale",
            metavar="DURATION",
            parser=_durations.seconds,
            help="Close runs without a heartbeat for this long, on any machine: 5m, 2h.",
        ),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", metavar="NAME", help="With --stale: only runs of this experiment.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="With --stale: also runs without heartbeats, judged by their newest metric.")
    ] = False,
    tracking_uri: TrackingUri = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Deliver the journals of dead processes, and close their runs as KILLED.

    Never touches the journal of a live process. With --stale, ignores journals and closes the runs of lost machines in
    the store. A job that was only suspended reopens its run when it resumes.

    Exits with 1 if a journal could not be recovered or the store does not answer.

    Example: autogen-team recover --stale 5m --dry-run
    """
    from autogen_team.cli import recover as action

    overrides = _overrides(set_, experiment=None, tracking_uri=tracking_uri, log_level=None)
    if stale is None:
        _refuse_without("--stale", {"--experiment": experiment, "--all": all_})
        action.recover(overrides, hosts=host or (), dry_run=dry_run, as_json=json)
        return
    if host:
        raise typer.BadParameter(
            "it applies to journals and --stale to the store: use one of them", param_hint="--host"
        )
    action.close_lost(overrides, limit=stale, experiment=experiment, takes_all=all_, dry_run=dry_run, as_json=json)


@app.command()
def ui(
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=1, max=65535, help="Port to listen on. (default: a free one)")
    ] = None,
    opens_browser: Annotated[bool, typer.Option("--open", help="Open the latest run in the browser.")] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Serve MLflow's web UI for the configured store, and print a link to the latest run.

    It listens on 127.0.0.1 only, until Ctrl-C. If the store is a server, only the links are printed. The latest run is
    taken from the experiment, or from the whole store if the experiment does not exist.

    Exits with 128 plus the number of the signal that ended it: 130 after Ctrl-C, 143 after SIGTERM. Exits with 0 if the
    store is a server; with 1 if the store does not answer or the web UI cannot start; with 2 if a setting is invalid,
    the port is in use or the extra `ui` is not installed.

    Example: autogen-team ui --set mlflow.mode=offline --open
    """
    from autogen_team.cli import ui as action

    overrides = _overrides(set_, experiment=experiment, tracking_uri=tracking_uri, log_level=None)
    action.show(overrides, port=port, opens_browser=opens_browser, as_json=json)


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or its name (the latest run is taken).")],
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="FOLDER", help="New folder, or a clean clone. (default: the run's name and id)"),
    ] = None,
    venv: Annotated[bool, typer.Option("--venv/--no-venv", help="Create a venv with the packages of the run.")] = True,
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Restore the code of a run, with its uncommitted changes, and its packages. The job is not run.

    Clones the repository, or checks out the commit in a clean clone; applies the changes; creates a venv, with uv if
    installed; and prints the command. Warns about everything that could not be restored.

    Exits with 1 if the run or its code is not available, or a package cannot be installed.

    Example: autogen-team reproduce train.py --experiment digits --into again --no-venv
    """
    from autogen_team.cli import reproduce as action

    overrides = _overrides(set_, experiment=experiment, tracking_uri=tracking_uri, log_level=None)
    action.reproduce(run, overrides, into=into, makes_venv=venv, as_json=json)


for _command in app.registered_commands:
    # Typer keeps the line breaks of a docstring, but they only suit the width of the source.
    _command.help = re.sub(
        r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc((_command.callback and _command.callback.__doc__) or "")
    )


def _refuse_without(option: str, given: Mapping[str, object]) -> None:
    """Reject options that are valid only together with `option`."""
    for name, value in given.items():
        if value:
            raise typer.BadParameter(f"only valid with {option}", param_hint=name)


def _overrides(
    assignments: list[str] | None, *, experiment: str | None, tracking_uri: str | None, log_level: str | None
) -> dict[str, str]:
    """Return the values of the options as text, keyed by `service.field`."""
    from autogen_team.cli import _look

    given = {"mlflow.experiment_name": experiment, "mlflow.tracking_uri": tracking_uri, "logger.level": log_level}
    named = {path: value for path, value in given.items() if value is not None}
    return {**_look.assignments(assignments or [], "--set"), **named}
