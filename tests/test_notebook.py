"""The services in a notebook, where an event loop runs already and the streams are not files."""

from __future__ import annotations

from textwrap import dedent

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
    """Run the cells in a real kernel, and return what each of them showed."""
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere/bus")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(dedent(source)) for source in CELLS])
    nbclient.NotebookClient(notebook, timeout=60).execute()
    return [[(output["name"], output["text"]) for output in cell["outputs"]] for cell in notebook["cells"]]


def test_lines_and_alerts_show_in_their_cells(outputs):
    """Each under the cell that it came from, without a word about the missing desktop, and nothing is raised."""
    _, line, alert, _ = outputs

    assert line == [("stderr", "INFO a line\n")]
    assert ("stdout", "[notebook] done: model trained\n") in alert
    assert [text for name, text in alert if name == "stderr"] == []
