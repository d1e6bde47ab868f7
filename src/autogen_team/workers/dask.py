"""The context in the workers of a Dask cluster; needs `distributed` (extra `dask`)."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from distributed import Client, Worker, WorkerPlugin

from autogen_team._redact import mask
from autogen_team.errors import ConfigurationError

if TYPE_CHECKING:
    from autogen_team._propagation import Initializer
    from autogen_team.context import GlobalContext
    from autogen_team.io.services import MlflowService

__all__ = ["workers"]

_report = logging.getLogger("autogen_team")


@contextmanager
def workers(
    client: Client, context: GlobalContext, *, nested: bool | str | MlflowService.RunConfig = False
) -> Iterator[None]:
    """Put every worker of the client's cluster inside the context for the block, even if it joins or restarts later.

    Enter the block while the run for the tasks is open, and gather the results before the block ends. After the block,
    each worker has delivered its data and left the context. `GlobalContext.bind` describes how a worker behaves. With
    `nested`, each worker process has one child run. For a child per task, submit `context.bind(fn, nested=True)`, which
    also works without the block. The threads of a cluster without processes are always inside, without a child.

    >>> from autogen_team import GlobalContext
    >>> from distributed import Client
    >>> def fold(number):
    ...     mlflow.log_metric("accuracy", 0.9, step=number)
    >>> pages = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    >>> with Client(processes=False, **pages) as client, GlobalContext() as context:
    ...     with context.run("train") as run, workers(client, context):
    ...         _ = client.gather(client.map(fold, range(3)))
    >>> len(context.mlflow_service.client().get_metric_history(run.info.run_id, "accuracy"))
    3

    Raises:
        NotStartedError: the context is not running.
        ConfigurationError: `client` is not a Client, is closed, or is asynchronous.

    """
    _check(client)
    plugin = _Inside(context, nested=nested)
    try:
        client.register_plugin(plugin)
        yield
    finally:
        try:
            client.unregister_worker_plugin(plugin.name)  # type: ignore[no-untyped-call]  # Dask gives it no types
        except Exception as error:  # the cluster may end before the block; its workers have delivered their data
            _report.warning("the workers of %r could not be stopped: %s", client, mask(str(error)))


def _check(client: Client) -> None:
    if not isinstance(client, Client):
        raise ConfigurationError(
            f"client is {client!r}; it must be a distributed.Client: pass `cluster.get_client()`, or `Client(address)`"
        )
    if client.asynchronous:
        raise ConfigurationError(
            f"client is {client!r}, which is asynchronous; pass a Client created without asynchronous=True and outside "
            "the event loop, or submit `context.bind(fn)`, which works with any client"
        )
    if client.status != "running":
        raise ConfigurationError(f"client is {client!r}, which is {client.status}; create a new one: Client(address)")


class _Inside(WorkerPlugin):
    """Keeps a worker inside the context from its setup to its teardown."""

    def __init__(self, context: GlobalContext, *, nested: bool | str | MlflowService.RunConfig) -> None:
        self.name = f"autogen_team-{uuid.uuid4().hex}"
        self._initializer = cast("Initializer", context.initializer(nested=nested))
        self._leave: Callable[[], None] | None = None

    def setup(self, worker: Worker) -> None:  # noqa: ARG002 - Dask passes it by name
        """Start the context and open the run, in the worker's main thread, which runs the event loop."""
        self._leave = self._initializer.enter()

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - Dask passes it by name
        """Leave the context; wait for the store in another thread, so that the event loop keeps running."""
        if self._leave is not None:
            await asyncio.to_thread(self._leave)
