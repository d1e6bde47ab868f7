"""MLflow set up for a job by many processes at once."""

from __future__ import annotations

import mlflow

PROCESSES = 8


def test_many_processes_start_on_one_fresh_database(start_python):
    """The first makes the tables, the others find them; plain MLflow lets most of them fail."""
    code = (
        "import mlflow; from autogen_team.io.services import MlflowService\n"
        "service = MlflowService(experiment_name='race', autolog_disable=True)\n"
        "with service, service.run_context(service.RunConfig(name='run', log_system_metrics=False)): pass"
    )
    processes = [start_python("-c", code) for _ in range(PROCESSES)]

    ends = [process.finish() for process in processes]

    assert [status for status, _, _ in ends] == [0] * PROCESSES, ends
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    assert len(client.search_runs([client.get_experiment_by_name("race").experiment_id])) == PROCESSES
