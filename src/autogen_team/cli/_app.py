"""The commands and their options, and nothing else, so that `--help` and completion answer at once.

The work of each command is in a module of its own, imported when the command is called.
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


Experiment = Annotated[str | None, typer.Option("--experiment", "-e", help="The MLflow experiment to use.")]
TrackingUri = Annotated[str | None, typer.Option("--tracking-uri", help="Where MLflow keeps runs.")]
LogLevel = Annotated[str | None, typer.Option("--log-level", "-l", help="The least severe level that is logged.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SERVICE.FIELD=VALUE", help="Any setting: logger.serialize=true. Repeatable."),
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
    """A command that takes any other command as its arguments, after `--`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options, and note in `ctx.meta` whether `--` precedes the remaining arguments."""
        words = list(args)
        at = self._python_target(args)
        left = super().parse_args(ctx, args if at is None else [*args[:at], "--", *args[at:]])
        target = ctx.params.get("command") or []
        ctx.meta[_SEPARATED] = words[: len(words) - len(target)][-1:] == ["--"]
        return left

    def _python_target(self, args: list[str]) -> int | None:
        """Return where `-m` or `-c` begins the target; the name may be in the same word, which no parser expects."""
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
            help="A Python script, -m and a module, -c and a program, or -- and any command; then its arguments.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", envvar="AUTOGEN_TEAM_RUN_NAME", help="The name of the run. (default: the target)"),
    ] = None,
    description: Annotated[
        str | None,
        typer.Option("--description", envvar="AUTOGEN_TEAM_RUN_DESCRIPTION", help="Shown on the run's page."),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="KEY=VALUE", envvar="AUTOGEN_TEAM_RUN_TAGS", help="Repeatable."),
    ] = None,
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="If the server does not answer: online (an error), auto or offline.")
    ] = None,
    log_level: LogLevel = None,
    alert_on: Annotated[
        str | None, typer.Option("--alert-on", help="Which ends are alerted: failure, always or never.")
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
            help="Sample processor, memory and network of the machine.",
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
    stall_after: Annotated[
        str | None,
        typer.Option(
            "--stall-after",
            metavar="DURATION",
            parser=_durations.checked,
            help="Alert with the stacks if nothing is logged or printed for that long: 15m.",
        ),
    ] = None,
    stall_kill: Annotated[
        bool | None,
        typer.Option("--stall-kill/--no-stall-kill", help="End the job after a second such time."),
    ] = None,
    set_: Set = None,
) -> NoReturn:
    """Run any job inside the global context and one MLflow run, supervised.

    What the job prints is passed on as it is, and kept with the log of the run. Signals are passed on too. If it dies
    without closing its run, even by SIGKILL, the run is closed in its place, with the reason, and the alert is sent.

    Exits with the job's own status, or 128 and the number of the signal that killed it; with 2 if the command or a
    setting is wrong, 125 if the context cannot be started or the code is refused, 126 if the command cannot be
    executed, 127 if there is none.

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
    """Print each setting with its variable, its value and where that came from; secrets are masked.

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
    """Check that everything a job needs really works, and print it for an issue: nothing secret is in it.

    Versions, settings, and what the tracking store, the registry, the artifacts, the clocks, the desktop, each alert
    channel, the state folder and the log sink answer. No alert is sent. Nothing is made that was not there, but a run
    with a metric and a file, in the experiment if there is one, else in MLflow's own; both are deleted at once, and on
    a server the deleted run remains.

    Exits with 1 if something fails, 2 if a setting is wrong.

    Example: autogen-team doctor --tracking-uri http://localhost:5000
    """
    from autogen_team.cli import doctor as action

    overrides = _overrides(set_, experiment=experiment, tracking_uri=tracking_uri, log_level=log_level)
    action.diagnose(overrides, as_json=json)


@app.command()
def notify(
    title: Annotated[str, typer.Argument(help="What it is about.")],
    message: Annotated[str, typer.Argument(help="What there is to say.")],
    level: Annotated[str, typer.Option("--level", help="info, success, warning or error.")] = "info",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Send an alert through each channel that is set up, and tell what became of it.

    Exits with 1 if no channel has delivered it, 2 if a setting is wrong.

    Example: autogen-team notify "disk full" "91% of /data" --level warning
    """
    from autogen_team.cli import notify as action

    overrides = _overrides(set_, experiment=None, tracking_uri=None, log_level=None)
    action.send(title, message, level, overrides, as_json=json)


@app.command()
def status(
    store: Annotated[
        bool, typer.Option("--store", help="List the runs that are RUNNING in the store, from any machine.")
    ] = False,
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """List the journals on this machine: their runs, whether the process lives, and what waits in them.

    With --store, list what is RUNNING in the store instead: machine and process, and when it was last seen alive.

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
        typer.Argument(help="A local store: mlflow.db, mlruns/, a URI. (default: what waits here)"),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="URI", help="The store to copy to. (default: yours)")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete in the source what has been copied.")] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Deliver what waits in journals, and copy runs from a local store to a server, each only once.

    Exits with 1 if something could not be copied, which the table names.

    Example: autogen-team sync mlruns/ --to http://localhost:5000
    """
    from autogen_team.cli import sync as action

    overrides = _overrides(set_, experiment=None, tracking_uri=None, log_level=None)
    action.sync(source, overrides, to=to, dry_run=dry_run, delete=delete, as_json=json)


@app.command()
def recover(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done, and why.")] = False,
    host: Annotated[
        list[str] | None, typer.Option("--host", metavar="NAME", help="A machine that is gone, a pod say. Repeatable.")
    ] = None,
    stale: Annotated[
        float | None,
        typer.Option(
            "--stale",
            metavar="DURATION",
            parser=_durations.seconds,
            help="Close what has given no sign of life for that long, on whatever machine: 5m, 2h.",
        ),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", metavar="NAME", help="With --stale: only the runs of this one.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="With --stale: also runs that give no signs, by their newest metric.")
    ] = False,
    tracking_uri: TrackingUri = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Deliver what dead processes have left in their journals, and close their runs as KILLED.

    Never touches the journal of a process that lives. With --stale, no journal is looked at: the runs in the store are
    closed whose machine is lost. A job that was only frozen opens its run again.

    Exits with 1 if a journal could not be recovered, or the store does not answer.

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
            "it is about journals, and --stale about the store: give one of them", param_hint="--host"
        )
    action.close_lost(overrides, limit=stale, experiment=experiment, takes_all=all_, dry_run=dry_run, as_json=json)


@app.command()
def ui(
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    port: Annotated[
        int | None, typer.Option("--port", "-p", min=1, max=65535, help="Where to listen. (default: a free port)")
    ] = None,
    opens_browser: Annotated[bool, typer.Option("--open", help="Open the last run in the browser.")] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Serve MLflow's own pages on the configured store, and print the link to the run that was started last.

    They are served to this machine only (127.0.0.1), until Ctrl-C. Of a remote server only the links are printed. The
    last run is that of the experiment, or of the whole store if it has no experiment of that name.

    Exits with 128 and the number of the signal that ended it: 130 after Ctrl-C, 143 after SIGTERM; with 0 for a remote
    server; with 1 if the store does not answer or the pages cannot be served; with 2 if a setting is wrong, the port is
    taken or the extra `ui` is not installed.

    Example: autogen-team ui --set mlflow.mode=offline --open
    """
    from autogen_team.cli import ui as action

    overrides = _overrides(set_, experiment=experiment, tracking_uri=tracking_uri, log_level=None)
    action.show(overrides, port=port, opens_browser=opens_browser, as_json=json)


@app.command()
def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The id of a run, or the name: the last one counts.")],
    into: Annotated[
        str | None,
        typer.Option(
            "--into", metavar="FOLDER", help="A new folder, or a clean clone. (default: the run's name and id)"
        ),
    ] = None,
    venv: Annotated[bool, typer.Option("--venv/--no-venv", help="Make a venv of the packages of the run.")] = True,
    experiment: Experiment = None,
    tracking_uri: TrackingUri = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Bring back what a run has run: its code with what was not committed, and its packages. Nothing is run.

    Clones the repository, or checks the commit out in a clean clone; applies the changes; makes a venv, by uv where it
    is installed; and prints the command. What could not be kept with the run is named.

    Exits with 1 if the run or its code cannot be had, or a package cannot be installed.

    Example: autogen-team reproduce train.py --experiment digits --into again --no-venv
    """
    from autogen_team.cli import reproduce as action

    overrides = _overrides(set_, experiment=experiment, tracking_uri=tracking_uri, log_level=None)
    action.reproduce(run, overrides, into=into, makes_venv=venv, as_json=json)


for _command in app.registered_commands:
    # Typer keeps the line breaks of a docstring, which only suit the width of the source.
    _command.help = re.sub(
        r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc((_command.callback and _command.callback.__doc__) or "")
    )


def _refuse_without(option: str, given: Mapping[str, object]) -> None:
    """Refuse options that mean something only beside another one."""
    for name, value in given.items():
        if value:
            raise typer.BadParameter(f"it is only for {option}", param_hint=name)


def _overrides(
    assignments: list[str] | None, *, experiment: str | None, tracking_uri: str | None, log_level: str | None
) -> dict[str, str]:
    """Return the values of the options as text, by `service.field`."""
    from autogen_team.cli import _look

    given = {"mlflow.experiment_name": experiment, "mlflow.tracking_uri": tracking_uri, "logger.level": log_level}
    named = {path: value for path, value in given.items() if value is not None}
    return {**_look.assignments(assignments or [], "--set"), **named}
