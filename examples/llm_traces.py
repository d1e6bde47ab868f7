"""Trace an agent: each answer of the model and each tool call is a span of a trace that belongs to the run.

The model is a stand-in: a local server that this script starts, and that speaks OpenAI's protocol. So you need no key
and no network. Run it under the supervisor, `autogen-team run examples/llm_traces.py`, or alone,
`python examples/llm_traces.py`. It needs OpenAI's client: `pip install "openai>=2.40,<2.48"`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import mlflow
from mlflow.entities import SpanType
from openai import OpenAI

from autogen_team import GlobalContext
from autogen_team.io.services import LoggerService

FAKE_KEY = "example-secret-key"
FAKE_HEADER = "Bearer example-secret-header"
FORMAT = "<level>{level: <8}</level> | {message} <dim>trace={extra[trace_id]}</dim>"
QUESTION = "How warm is it in Lisbon and in Oslo, and how far apart is that?"
TEMPERATURES = {"Lisbon": 24.0, "Oslo": 9.0}
TOOL = {
    "type": "function",
    "function": {
        "name": "temperature",
        "description": "The temperature in a city, in degrees Celsius.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MODEL = "stand-in"
MOST_STEPS = 5


def main() -> None:
    """Ask one question, and show what MLflow stored."""
    logger_service = LoggerService(format=FORMAT)
    with GlobalContext(logger_service=logger_service) as context, context.run("agent", tags={"model": MODEL}) as run:
        with model_server() as address:
            answer, steps = ask(context, OpenAI(base_url=address, api_key=FAKE_KEY), QUESTION)
        context.notify("agent has answered", f"after {steps} steps: {answer}")
        show_what_is_stored(context, run)


@mlflow.trace(span_type=SpanType.AGENT)
def ask(context: GlobalContext, client: OpenAI, question: str) -> tuple[str, int]:
    """Call the model and its tools until there is an answer; return the answer and the number of steps."""
    messages: list[Any] = [{"role": "user", "content": question}]
    for step in range(MOST_STEPS):
        began = time.perf_counter()
        # Autologging records this call as a span with all its arguments; the value of the header is masked in it.
        reply = client.chat.completions.create(
            model=MODEL, messages=messages, tools=[TOOL], extra_headers={"Authorization": FAKE_HEADER}
        )
        seconds = time.perf_counter() - began
        mlflow.log_metrics({"tokens": reply.usage.total_tokens, "latency_seconds": seconds}, step=step)
        message = reply.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            mlflow.log_metric("steps", step + 1)
            context.logger.success("answered after {} steps: {}", step + 1, message.content)
            return message.content, step + 1
        for call in message.tool_calls:
            found = temperature(**json.loads(call.function.arguments))
            context.logger.info("{} of {} is {}", call.function.name, call.function.arguments, found)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(found)})
    raise RuntimeError(f"no answer after {MOST_STEPS} steps")


@mlflow.trace(span_type=SpanType.TOOL)
def temperature(city: str) -> float:
    """Return the temperature in a city."""
    return TEMPERATURES[city]


def show_what_is_stored(context: GlobalContext, run: mlflow.ActiveRun) -> None:
    """Look up the trace by its run, as you would later, and log the stored header."""
    mlflow.flush_trace_async_logging()
    for trace in mlflow.search_traces(run_id=run.info.run_id, return_type="list"):
        for span in trace.data.spans:
            headers = (span.inputs or {}).get("extra_headers")
            context.logger.info("stored: {} {}{}", span.span_type, span.name, f", headers {headers}" if headers else "")


@contextmanager
def model_server() -> Iterator[str]:
    """Run the stand-in for a model, and yield the base URL for the client."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


class StandIn(BaseHTTPRequestHandler):
    """A model that asks for each temperature, and then always gives the same answer."""

    def do_POST(self) -> None:
        """Answer a request to /v1/chat/completions."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self.send_error(404)
            return
        results = [float(message["content"]) for message in request["messages"] if message["role"] == "tool"]
        if results:
            warm, cold = results
            content = f"It is {warm:g} degrees in Lisbon and {cold:g} in Oslo: {warm - cold:g} degrees apart."
            message = {"role": "assistant", "content": content}
        else:
            calls = [
                {"id": f"call_{city}", "type": "function", "function": {"name": "temperature", "arguments": arguments}}
                for city, arguments in ((city, json.dumps({"city": city})) for city in TEMPERATURES)
            ]
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        used = {"prompt_tokens": 40 * len(request["messages"]), "completion_tokens": 20}
        answer = {
            "id": f"chatcmpl-{len(request['messages'])}",
            "object": "chat.completion",
            "created": 1,
            "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop" if results else "tool_calls"}],
            "usage": {**used, "total_tokens": sum(used.values())},
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


if __name__ == "__main__":
    main()
