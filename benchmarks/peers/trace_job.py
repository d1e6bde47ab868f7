"""A job that traces: `trace_job.py KIND URI COUNT PAUSE` prints the time that a trace of three spans takes its caller.

KIND is `plain` for MLflow alone, or `ours`. The spans of a trace are an agent, a call of a chat model with 2 kB each of
inputs and outputs, and a tool. PAUSE is the time between traces, in seconds. The output is JSON: `mean` and `median` of
a trace in microseconds, and `all`, the seconds from the first trace until the store has all of them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import mlflow

TEXT = "word " * 400
WARM_UP, SPANS = 20, 3


def trace() -> None:
    """Record a trace of three spans."""
    with mlflow.start_span("agent", span_type="AGENT") as agent:
        agent.set_inputs({"question": "how?"})
        with mlflow.start_span("chat", span_type="CHAT_MODEL") as chat:
            chat.set_inputs({"messages": [{"role": "user", "content": TEXT}], "max_tokens": 5})
            chat.set_outputs({"choices": [{"message": {"role": "assistant", "content": TEXT}}]})
            chat.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 9, "output_tokens": 1, "total_tokens": 10})
        with mlflow.start_span("tool", span_type="TOOL") as tool:
            tool.set_inputs({"a": 1})
            tool.set_outputs({"b": 2})
        agent.set_outputs("so")


def measure(count: int, pause: float) -> dict[str, float]:
    """Record `count` traces, and return the mean and median time of one."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        trace()
        found.append((time.perf_counter() - began) * 1e6)
        if pause:
            time.sleep(pause)
    return {"mean": statistics.mean(found), "median": statistics.median(found)}


def main() -> None:
    """Trace, and print the figures."""
    kind, uri, count, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    if kind == "ours":
        from autogen_team.io.services import MlflowService

        service = MlflowService(
            tracking_uri=uri, experiment_name="bench", autolog_disable=True, snapshot=False, flush_timeout=3600
        )
        service.start()
    else:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("bench")
    measure(WARM_UP, pause)
    began = time.perf_counter()
    found = measure(count, pause)
    if kind == "ours":
        service.flush()
        service.stop()
    else:
        mlflow.flush_trace_async_logging(terminate=True)
    found["all"] = time.perf_counter() - began
    found["stored"] = stored(uri)
    print(json.dumps(found))


def stored(uri: str) -> int:
    """Return the number of traces in the store that have all their spans."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("bench")
    found, token = 0, None
    while True:
        page = client.search_traces(locations=[experiment.experiment_id], max_results=200, page_token=token)
        found += sum(len(one.data.spans) == SPANS for one in page)
        token = page.token
        if not token:
            return found


if __name__ == "__main__":
    main()
