"""Start of a job's Python: our code waits until a library is imported, and then sets up the context."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import fluent

from autogen_team.cli._supervisor.bootstrap import sitecustomize as bootstrap


def test_the_libraries_are_those_of_autologging():
    """MLflow defines the list inside a function, so it is read from the source."""
    source = inspect.getsource(fluent.autolog)
    named = set(re.findall(r'^        "([\w.]+)": "mlflow', source, re.MULTILINE))

    assert len(named) > 20
    assert named | {"mlflow"} == bootstrap.LIBRARIES


def test_importlib_sets_the_attribute_that_the_hook_watches():
    """Python's private attribute is set before and after a module is executed, also if that fails."""
    code = (
        "import importlib.machinery as m, importlib.util, sys\n"
        "told = []\n"
        "class Spec(m.ModuleSpec):\n"
        "    _initializing = property(lambda self: False, lambda self, value: told.append(value))\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        found = m.PathFinder.find_spec(name, path) if name == 'colorsys' else None\n"
        "        if found: found.__class__ = Spec; told.clear()\n"
        "        return found\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import colorsys\n"
        "print(told)\n"
    )

    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[True, False]\n"
    )


def test_mlflow_is_imported_with_a_library_of_autologging(supervised, script, the_run):
    """MLflow is not imported earlier, because the environment that it sets for NumPy matters."""
    body = (
        "import os, sys\n"
        "assert not {'mlflow', 'numpy', 'loguru', 'pydantic', 'autogen_team'} & set(sys.modules)\n"
        "os.environ['OMP_NUM_THREADS'] = os.environ['OPENBLAS_NUM_THREADS'] = '1'\n"
        "from sklearn.linear_model import LinearRegression\n"
        "assert 'mlflow' in sys.modules\n"
        "LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])\n"
        "import threadpoolctl\n"
        "print({pool['num_threads'] for pool in threadpoolctl.threadpool_info()})\n"
    )

    ended = supervised("--no-system-metrics", "--set", "mlflow.autolog_log_models=false", script(body))

    assert (ended.returncode, ended.stdout) == (0, b"{1}\n"), ended.stderr
    assert the_run().data.params["fit_intercept"] == "True"


def test_lines_are_in_the_run_without_importing_mlflow(supervised, script, the_run, store_uri):
    """The run log is set up at the first import of logging or loguru."""
    import mlflow

    body = (
        "import sys, logging\n"
        "assert 'loguru' not in sys.modules\n"
        "logging.getLogger('lib').warning('by logging')\n"
        "from loguru import logger\n"
        "logger.info('by loguru')\n"
        "assert 'mlflow' not in sys.modules\n"
    )

    ended = supervised("--no-system-metrics", script(body))

    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(b"by logging") == ended.stderr.count(b"by loguru") == 1
    client, run_id = mlflow.MlflowClient(store_uri), the_run().info.run_id
    logs = [found.path for found in client.list_artifacts(run_id, "logs") if "output" not in found.path]
    text = "".join(Path(client.download_artifacts(run_id, path)).read_text() for path in logs)
    assert "by logging" in text
    assert "by loguru" in text


@pytest.mark.parametrize("before", ["", "import logging; logging.warning('early')"], ids=["first", "after a record"])
def test_a_job_that_asks_for_the_context_gets_it(supervised, script, the_run, before):
    """The context is available also if only the log was set up before, without MLflow."""
    body = (
        f"{before}\n"
        "import sys\n"
        "print('mlflow' in sys.modules)\n"
        "from autogen_team import GlobalContext\n"
        "GlobalContext.current().log_metrics({'loss': 0.5})\n"
        "print('mlflow' in sys.modules)\n"
    )
    ended = supervised(script(body))

    assert (ended.returncode, ended.stdout) == (0, b"False\nTrue\n"), ended.stderr
    assert the_run().data.metrics == {"loss": 0.5}
