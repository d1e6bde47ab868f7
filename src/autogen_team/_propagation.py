"""Carry a context into the workers of a job: its pickled form, and its start and end in the worker process.

A context is captured with the run that is open at that moment. A worker process starts it once and keeps it. Each call
then joins that run, or opens a child of it, and waits until the store has what was logged. In the process that captured
the context, in threads, nothing needs to start. The context of a worker stops when its process exits, or when an engine
reports that the process no longer works for the job.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import json
import logging
import os
import threading
import uuid
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import util
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from autogen_team._process import identity, run_events
from autogen_team._process.forking import call_in_child
from autogen_team._services import worker_runs
from autogen_team._services.settings import WORKER_OF
from autogen_team.errors import ConfigurationError, NotStartedError
from autogen_team.io.services import MlflowService

if TYPE_CHECKING:
    from autogen_team._capture.shared_runs import Shared
    from autogen_team.context import GlobalContext

RunConfig = MlflowService.RunConfig
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_RUN_CONTEXT = "MLFLOW_RUN_CONTEXT"
"""MLflow's own variable: tags for every run that a process opens."""
_PARENT_TAG = "mlflow.parentRunId"

_report = logging.getLogger("autogen_team")


@dataclass(frozen=True, slots=True)
class Carried:
    """A context in the form that is sent to a worker."""

    context: GlobalContext
    """The context for the worker to start."""
    run: Shared | None
    """The run that was open when the context was captured."""
    child: RunConfig | None
    """The configuration of a child run to open; None to log to the run itself."""


def _for_worker(context: GlobalContext) -> GlobalContext:
    """Return the context in the form that a worker starts, with addresses that are valid in every process."""
    services = {name: worker_runs.for_worker(getattr(context, name)) for name in context.argument_only}
    return context.model_copy(update=services)


def _for_any_machine(context: GlobalContext) -> GlobalContext:
    """Return the context in the form that is sent to workers, which may be on other machines."""
    found = _for_worker(context)
    service = worker_runs.for_any_machine(found.mlflow_service, original=context.mlflow_service)
    return found.model_copy(update={"mlflow_service": service})


def _on_this_machine(context: GlobalContext) -> GlobalContext:
    """Return a received context in the form that this worker starts."""
    found = _for_worker(context)
    return found.model_copy(update={"mlflow_service": worker_runs.on_this_machine(found.mlflow_service)})


class _Carrier:
    """Base of the objects that carry a context; in the process that created it, a carrier uses the running context."""

    def __init__(self, context: GlobalContext, child: RunConfig | None) -> None:
        if not context.is_started:
            raise NotStartedError("the GlobalContext is not running: call start() before you create workers")
        process = _Process.here()
        self._home = process.token
        self._key = process.capture(context)
        self._carried = Carried(_for_any_machine(context), worker_runs.shared_run(context.mlflow_service), child)

    @property
    def _running(self) -> GlobalContext | None:
        """The captured context, if this is the process that captured it; None elsewhere, even in a forked child.

        Raises:
            NotStartedError: this is that process, and the context has stopped.

        """
        process = _Process.here()
        if self._home != process.token:
            return None
        context = process.captured.get(self._key)  # by key, because engines with threads pickle their tasks, too
        if context is None:
            raise NotStartedError("the GlobalContext has stopped: wait for its workers before you stop it")
        return context

    def __getstate__(self) -> dict[str, Any]:
        """Omit the running context; if no run was open at the capture, take the run that is open now."""
        context, carried = _Process.here().captured.get(self._key), self._carried
        if carried.run is None and context is not None and context.is_started:
            carried = Carried(carried.context, worker_runs.shared_run(context.mlflow_service), carried.child)
        return {**self.__dict__, "_carried": carried}


class Bound(_Carrier, Generic[Parameters, Result]):
    """A function to call inside a context, in any process; it can be pickled if the function can."""

    __wrapped__: Callable[Parameters, Result]

    def __init__(self, context: GlobalContext, fn: Callable[Parameters, Result], child: RunConfig | None) -> None:
        super().__init__(context, child)
        functools.update_wrapper(self, fn, updated=())

    def __repr__(self) -> str:
        return f"<{self.__wrapped__!r} inside of a GlobalContext>"

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Result]:
        return self if instance is None else functools.partial(cast("Callable[..., Result]", self), instance)

    def __call__(self, *arguments: Parameters.args, **fields: Parameters.kwargs) -> Result:
        fn: Callable[..., Any] = self.__wrapped__
        if inspect.iscoroutinefunction(fn):
            return cast("Result", self._await(*arguments, **fields))
        if inspect.isasyncgenfunction(fn):
            return cast("Result", self._iterate_async(*arguments, **fields))
        if inspect.isgeneratorfunction(fn):
            return cast("Result", self._iterate(*arguments, **fields))
        with self._inside():
            return self.__wrapped__(*arguments, **fields)

    async def _await(self, *arguments: Any, **fields: Any) -> Any:
        with self._inside():
            return await cast("Callable[..., Any]", self.__wrapped__)(*arguments, **fields)

    def _iterate(self, *arguments: Any, **fields: Any) -> Generator[Any, Any, Any]:
        with self._inside():
            return (yield from cast("Callable[..., Any]", self.__wrapped__)(*arguments, **fields))

    async def _iterate_async(self, *arguments: Any, **fields: Any) -> AsyncGenerator[Any, Any]:
        with self._inside():
            async with aclosing(cast("Callable[..., Any]", self.__wrapped__)(*arguments, **fields)) as items:
                step = items.asend(None)
                with suppress(StopAsyncIteration):
                    while True:
                        item = await step
                        try:
                            sent = yield item
                        except GeneratorExit:
                            raise
                        except BaseException as error:
                            step = items.athrow(error)
                        else:
                            step = items.asend(sent)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        context, carried = self._running, self._carried
        if context is not None:
            with _run_of(context.mlflow_service, carried.run, carried.child):
                yield
            return
        with _Process.here().using(carried) as context:
            service = context.mlflow_service
            try:
                with _run_of(service, carried.run, carried.child):
                    try:
                        yield
                    except Exception:
                        _report.exception("%s failed", getattr(self, "__name__", repr(self)))
                        raise
            finally:
                service.flush()


class Initializer(_Carrier):
    """Puts a worker process inside a context until it exits; can be pickled, and takes no arguments."""

    def __call__(self) -> None:
        """Start the context, unless this process already has it."""
        self.enter()

    def enter(self) -> Callable[[], None]:
        """Enter the context and return a callable that flushes and leaves it; a no-op in the job's own process."""
        return (lambda: None) if self._running is not None else _Process.here().stay(self._carried)


@contextmanager
def _run_of(service: MlflowService, run: Shared | None, child: RunConfig | None) -> Iterator[None]:
    """Join the run, or open the child, for the block; a tag of the child names the worker."""
    worker = identity.worker()
    if child is not None and worker is not None:
        tags = {run_events.WORKER_TAG: worker, **(child.tags or {})}
        child = child.model_copy(update={"tags": tags, "name": child.name or f"worker {worker}"})
    if run is not None:
        with worker_runs.work_for(service, run, child):
            yield
    elif child is not None:
        with service.run_context(child):
            yield
    else:
        yield


@dataclass(slots=True)
class _Log:
    """This process's contribution to the log of a run."""

    end: Callable[[], None]
    users: int = 0


@dataclass(slots=True)
class _Started:
    """A context that runs in this worker."""

    carried: GlobalContext
    """The context as it arrived, for comparison."""
    context: GlobalContext
    logs: dict[str, _Log] = field(default_factory=dict)
    """By run id; a log without users is kept until another run is wanted."""
    users: int = 0

    def count(self, carried: Carried, change: int) -> None:
        """Add `change` users to the context, and to the log of its run."""
        self.users += change
        if carried.run is not None and carried.child is None:
            self.logs[carried.run.run_id].users += change

    def contribute(self, run: Shared) -> None:
        """Start to contribute to the log of a run, and end the logs that have no users."""
        if run.run_id not in self.logs:
            self.end_logs([run_id for run_id, log in self.logs.items() if not log.users])
            contribution = ExitStack()
            contribution.enter_context(worker_runs.contribute_log(self.context.mlflow_service, run))
            self.logs[run.run_id] = _Log(contribution.close)

    def end_logs(self, run_ids: Iterable[str]) -> None:
        """Stop contributing to the logs of these runs."""
        for run_id in run_ids:
            self.logs.pop(run_id).end()


class _Process:
    """The state of this process as a worker of jobs."""

    _here: _Process

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        self.captured: weakref.WeakValueDictionary[str, GlobalContext] = weakref.WeakValueDictionary()
        """The contexts of this process that have been sent to workers."""
        self._lock = threading.RLock()
        self._stays: list[ExitStack] = []
        self._started: list[_Started] = []
        self._is_watching = False

    @classmethod
    def here(cls) -> _Process:
        """Return the state of this process."""
        return cls._here

    @classmethod
    def begin(cls) -> None:
        """Start with an empty state; a forked child does this, too."""
        cls._here = cls()

    def capture(self, context: GlobalContext) -> str:
        """Return the key of the context in this process, valid as long as the context exists."""
        with self._lock:
            known = next((key for key, other in self.captured.items() if other is context), None)
            key = known or uuid.uuid4().hex
            self.captured[key] = context
        return key

    @contextmanager
    def using(self, carried: Carried) -> Iterator[GlobalContext]:
        """Run the context at least for the block; it is kept until another one is needed, or the process exits."""
        with self._lock:
            started = self._find(carried)
            started.count(carried, +1)
        try:
            yield started.context
        finally:
            with self._lock:
                started.count(carried, -1)

    def stay(self, carried: Carried) -> Callable[[], None]:
        """Run the context and its run until the process exits, or until the returned function is called."""
        with self._lock, ExitStack() as run:
            started = self._find(carried)
            run.enter_context(_run_of(started.context.mlflow_service, carried.run, carried.child))
            started.count(carried, +1)
            stay = run.pop_all()
            self._stays.append(stay)

        def leave() -> None:
            if self is not _Process._here:  # a forked child has not entered the context itself
                return
            with self._lock:
                if stay not in self._stays:
                    return
                self._stays.remove(stay)
            stay.close()
            started.context.mlflow_service.flush()  # without the lock, so that other calls can begin and end meanwhile
            with self._lock:
                started.count(carried, -1)
                if not started.users and started in self._started:
                    self._stop(started)

        return leave

    def close(self) -> None:
        """Stop the contexts of this process."""
        if self is not _Process._here:  # a forked child: its parent stops the contexts
            return
        with self._lock:
            while self._stays:
                self._stays.pop().close()
            for started in self._started[::-1]:
                self._stop(started)

    def _find(self, carried: Carried) -> _Started:
        started = next((one for one in self._started if one.carried == carried.context), None)
        if started is None:
            started = self._start(carried)
        if carried.run is not None and carried.child is None:
            started.contribute(carried.run)
        return started

    def _start(self, carried: Carried) -> _Started:
        for idle in [one for one in self._started if not one.users]:
            self._stop(idle)
        identity.become_worker()
        context = _on_this_machine(carried.context)
        if carried.run is not None:
            worker_runs.begin_work(context.mlflow_service, carried.run)
        context.start()
        started = _Started(carried.context, context)
        self._started.append(started)
        if not self._is_watching:
            self._is_watching = True
            # A child of multiprocessing exits by os._exit, which runs its finalizers but not atexit.
            util.Finalize(None, self.close, exitpriority=50)
            atexit.register(self.close)
        return started

    def _stop(self, started: _Started) -> None:
        self._started.remove(started)
        started.end_logs(list(started.logs)[::-1])
        started.context.stop()
        if not self._started:
            identity.forget_worker()


_Process.begin()
call_in_child(_Process.begin)


def environment(context: GlobalContext) -> dict[str, str]:
    """Return the variables that put any child process inside the context.

    Raises:
        NotStartedError: the context is not running.

    """
    carrier = _Carrier(context, None)
    carried = carrier._carried  # noqa: SLF001 - of the same module
    variables = _for_worker(context).environment()
    if carried.run is not None:
        from autogen_team._redact import mask_url

        order = {"uri": mask_url(carried.context.mlflow_service.tracking_uri), **carried.run.as_dict()}
        variables[WORKER_OF] = json.dumps(order)
        given = _tags_of_runs()
        variables[_RUN_CONTEXT] = json.dumps({**given, _PARENT_TAG: carried.run.run_id})
    return variables


def run_of_environment(service: MlflowService) -> Shared | None:
    """Return the run that the environment assigns to this process; None without a run, or if it is already a worker.

    Raises:
        ConfigurationError: the variable cannot be read.

    """
    text = os.environ.get(WORKER_OF)
    if not text or identity.worker() is not None:
        return None
    from autogen_team._capture.shared_runs import Shared
    from autogen_team._redact import mask_url

    try:
        order = json.loads(text)
        uri = order.pop("uri")
        run = Shared(**order)
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ConfigurationError(f"{WORKER_OF} is {text!r}; use the value of GlobalContext.worker_env()") from None
    return run if uri == mask_url(service.stores()[0]) else None  # a process with another store is not a worker


def _tags_of_runs() -> dict[str, Any]:
    try:
        found = json.loads(os.environ.get(_RUN_CONTEXT) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
