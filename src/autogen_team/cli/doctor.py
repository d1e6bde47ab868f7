"""`autogen-team doctor`: installed versions, settings, and checks of everything that a job needs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from autogen_team._redact import Redactor
from autogen_team.cli import _context, _look, _probes
from autogen_team.cli._probes import Check
from autogen_team.context import GlobalContext
from autogen_team.errors import AutogenTeamWarning

__all__ = ["diagnose"]

_FAILED = 1


def diagnose(overrides: Mapping[str, str], *, as_json: bool) -> None:
    """Print versions, settings and the results of all checks; exit with 1 if a check fails."""
    with _look.plain_errors(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        context = _context.build(overrides)
    mask = _redactor(context)
    checks = [
        replace(check, found=mask(" ".join(check.found.split())), remedy=mask(check.remedy))
        for check in [*_settings(caught), *_together(_jobs(context))]
    ]
    versions, settings = _probes.versions(), context.settings()
    is_well = all(check.outcome != "fail" for check in checks)
    if as_json:
        _look.as_json(
            {
                "ok": is_well,
                "versions": versions,
                "settings": [asdict(setting) for setting in settings],
                "checks": [asdict(check) for check in checks],
            }
        )
    else:
        changed = [(one.name, one.value, one.source) for one in settings if one.source != "default"]
        _look.table(("installed", "version"), versions.items())
        _look.console().print()
        _look.table(("setting", "value", "from"), changed or [("all", "unchanged", "default")])
        _look.console().print()
        _look.table(("check", "result", "found", "what to do"), map(_row, checks))
    if not is_well:
        raise SystemExit(_FAILED)


def _row(check: Check) -> tuple[str, ...]:
    result = "FAIL" if check.outcome == "fail" else check.outcome
    return check.name, result, check.found, check.remedy or "-"


def _redactor(context: GlobalContext) -> Redactor:
    """Return a redactor for the secrets in the environment and in the settings, from any source."""
    mlflow, alerts = context.mlflow_service, context.alerts_service
    secrets = [mlflow.tracking_uri, mlflow.registry_uri, *(url.get_secret_value() for url in alerts.urls)]
    return Redactor({**os.environ, **{f"setting {number}": text for number, text in enumerate(secrets)}})


def _settings(caught: list[warnings.WarningMessage]) -> Iterator[Check]:
    """Yield a row for each of our warnings about settings, such as an unknown variable."""
    for one in caught:
        if issubclass(one.category, AutogenTeamWarning):
            yield Check("settings", "note", str(one.message), "correct or remove it")


def _jobs(context: GlobalContext) -> list[Callable[[], list[Check]]]:
    from autogen_team.cli import _store_probes

    def alone(probe: Callable[[], Check]) -> Callable[[], list[Check]]:
        return lambda: [probe()]

    return [
        _store_probes.Probing(context.mlflow_service).run,
        lambda: _probes.state_folder(context.mlflow_service),
        lambda: _probes.log_sink(context.logger_service),
        *map(alone, _probes.collector_probes(context.logger_service)),
        *map(alone, _probes.alert_probes(context.alerts_service)),
    ]


def _together(jobs: list[Callable[[], list[Check]]]) -> list[Check]:
    """Run all jobs concurrently, because they mostly wait; return their results in order."""
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="autogen-team-doctor") as pool:
        return [check for found in pool.map(_guarded, jobs) for check in found]


def _guarded(job: Callable[[], list[Check]]) -> list[Check]:
    try:
        return job()
    except Exception as error:  # a broken probe must not hide the results of the others
        found = f"the probe itself failed: {type(error).__name__}: {error}"
        return [Check("doctor", "fail", found, "please report it with this table")]
