"""MLflow in our own processes, without the data libraries that a job may need."""

from __future__ import annotations

LOAD = """
import sys
from autogen_team._ship import lean_mlflow
lean_mlflow.load({uri!r})
import mlflow
print(*(name for name in ("numpy", "pandas", "scipy") if name in sys.modules))
"""


def test_the_libraries_are_not_imported(run_python, store_uri):
    """A store works without them, and they can be imported afterwards."""
    work = """
client = mlflow.MlflowClient()
run = client.create_run("0")
client.log_metric(run.info.run_id, "loss", 0.5)
print(client.get_run(run.info.run_id).data.metrics)
import pandas
print(pandas.DataFrame({"a": [1]}).shape)
"""
    status, out, err = run_python("-c", LOAD.format(uri=store_uri) + work, fresh=True)

    assert status == 0, err
    assert out.splitlines() == ["", "{'loss': 0.5}", "(1, 1)"]


def test_a_plugin_of_mlflow_gets_them(run_python, tmp_path):
    """MLflow imports its plugins, which may need any library."""
    plugin = tmp_path / "plugins" / "plugin-1.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (plugin / "entry_points.txt").write_text("[mlflow.request_header_provider]\nx = plugin:Headers\n")
    (plugin.parent / "plugin.py").write_text(
        "import pandas\nfrom mlflow.tracking.request_header.abstract_request_header_provider import *\n"
        "class Headers(RequestHeaderProvider):\n"
        "    def in_context(self): return True\n"
        "    def request_headers(self): return {'X-Frame': pandas.__name__}\n"
    )
    ask = (
        "from mlflow.tracking.request_header.registry import resolve_request_headers as ask\nprint(ask()['X-Frame'])\n"
    )

    status, out, err = run_python("-c", LOAD.format(uri="") + ask, fresh=True, PYTHONPATH=str(plugin.parent))

    assert status == 0, err
    assert out.splitlines() == ["numpy pandas scipy", "pandas"]


def test_a_library_that_mlflow_needs_is_imported(run_python):
    """If an import fails without one of the libraries, MLflow is imported as usual."""
    needs = "from autogen_team._ship import lean_mlflow\nlean_mlflow._LIBRARIES += ('requests',)\n"

    status, out, err = run_python("-c", needs + LOAD.format(uri="") + "print(mlflow.__name__)", fresh=True)

    assert status == 0, err
    assert out.splitlines()[-1] == "mlflow"


def test_what_serves_language_models_is_imported_when_it_is_used(run_python, store_uri):
    """MLflow's packages for language models are executed only when one of their names is read."""
    ask = """
print("fastapi" in sys.modules, "mlflow.genai.evaluation" in sys.modules)
print(mlflow.genai.evaluate.__name__, "mlflow.genai.evaluation" in sys.modules)
from mlflow.genai.scorers import Scorer
print(Scorer.__name__, hasattr(mlflow.genai, "nothing"))
"""
    status, out, err = run_python("-c", LOAD.format(uri=store_uri) + ask, fresh=True)

    assert status == 0, err
    assert out.splitlines()[-3:] == ["False False", "evaluate True", "Scorer False"]


def test_no_run_makes_mlflow_import_ipython(run_python, store_uri, tmp_path):
    """MLflow asks IPython for each run whether it was started in a notebook."""
    ask = """
mlflow.set_experiment("lean")
with mlflow.start_run():
    pass
print([name for name in sys.modules if name.startswith("IPython.")])
"""
    status, out, err = run_python("-c", LOAD.format(uri=store_uri) + ask, fresh=True, MLFLOW_TRACKING_URI=store_uri)

    assert status == 0, err
    assert out.splitlines()[-1] == "[]"
