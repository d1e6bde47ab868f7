"""The services in a notebook, where an event loop runs and the streams are not files."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import mlflow
import nbclient
import nbformat
import pytest

CELLS = [
    """
    from autogen_team import AlertsService, LoggerService
    logs = LoggerService(format='{level} {message}')
    alerts = AlertsService(app_name='notebook')
    logs.start(); alerts.start()
    """,
    "logs.logger().info('a line')",
    "alerts.notify('done', 'model trained')",
    "alerts.stop(); logs.stop()",
]


@pytest.fixture
def outputs(monkeypatch):
    """Run the cells in a real kernel, and return the output of each."""
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere/bus")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(dedent(source)) for source in CELLS])
    nbclient.NotebookClient(notebook, timeout=60).execute()
    return [[(output["name"], output["text"]) for output in cell["outputs"]] for cell in notebook["cells"]]


def test_lines_and_alerts_show_in_their_cells(outputs):
    """Each output is under its cell, without a warning about the missing desktop, and nothing is raised."""
    _, line, alert, _ = outputs

    assert line == [("stderr", "INFO a line\n")]
    assert ("stdout", "[notebook] done: model trained\n") in alert
    assert [text for name, text in alert if name == "stderr"] == []


RUN = [
    "from contextlib import ExitStack\nfrom autogen_team import GlobalContext\nstack = ExitStack()",
    "context = stack.enter_context(GlobalContext())",
    "run = stack.enter_context(context.run('notebook', log_system_metrics=False))",
    "%time loss = 0.5\ncontext.log_metrics({'loss': loss})",
    "stack.close()",
]


def test_the_cells_of_a_run_are_stored_with_it(store_uri, snapshots, monkeypatch):
    """Cells are stored as typed, also those that were executed while the run was open."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setenv("AUTOGEN_TEAM_ALERTS_ENABLE", "false")
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/ada/search.ipynb")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in RUN])
    nbclient.NotebookClient(notebook, timeout=100).execute()

    client = mlflow.MlflowClient(store_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("autogen_team").experiment_id])
    folder = Path(client.download_artifacts(run.info.run_id, "code"))
    expected = "\n\n".join(f"# %% [{number}]\n{source}" for number, source in enumerate(RUN, 1))
    assert (folder / "cells.py").read_text() == f"{expected}\n"
    assert json.loads((folder / "run.json").read_text())["notebook"] == "/home/ada/search.ipynb"
