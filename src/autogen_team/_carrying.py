"""How a context gets into the workers of a job: what travels, and what a process does with it that it reaches.

A context is captured with the run that is open at that moment. Where it arrives it is started once, and kept: what each
call does is to join that run, or to open a child of it, and to wait until the store has what was logged. In the process
that it was captured in, in threads, there is nothing to start. The context of a worker stops when its process exits, or
when an engine says that the process works for the job no more.
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

from autogen_team.errors import ConfigurationError, NotStartedError
from autogen_team.io import _job
from autogen_team.io._forking import call_in_child
from autogen_team.io._settings import WORKER_OF
from autogen_team.io.services import MlflowService

if TYPE_CHECKING:
    from autogen_team.context import GlobalContext
    from autogen_team.io._tracking.joining import Shared

RunConfig = MlflowService.RunConfig
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_RUN_CONTEXT = "MLFLOW_RUN_CONTEXT"
"""MLflow's own variable: tags that every run gets which a process opens."""
_PARENT_TAG = "mlflow.parentRunId"

_report = logging.getLogger("autogen_team")


@dataclass(frozen=True, slots=True)
class Carried:
    """A context on its way to a worker."""

    context: GlobalContext
    """As a worker is to start it."""
    run: Shared | None
    """The run that was open when it was captured."""
    child: RunConfig | None
    """What to make a child run of; None to log to the run itself."""


class _Carrier:
    """Whatever brings a context along; in the process that it was made in it knows the very one that runs there."""

    def __init__(self, context: GlobalContext, child: RunConfig | None) -> None:
        if not context.is_started:
            raise NotStartedError(
                "the GlobalContext does not run, so no worker can be inside of it: call start() first"
            )
        process = _Process.here()
        self._home = process.token
        self._key = process.capture(context)
        self._carried = Carried(context.for_worker(), context.mlflow_service.shared_run(), child)

    @property
    def _running(self) -> GlobalContext | None:
        """The context that was captured, if this is its process; a forked child is another one.

        Raises:
            NotStartedError: this is its process, and the context is gone.

        """
        process = _Process.here()
        if self._home != process.token:
            return None
        context = process.captured.get(self._key)  # by a key: engines with threads pickle what they send, too
        if context is None:
            raise NotStartedError("the GlobalContext does not run any more: wait for its workers before it stops")
        return context

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running context where it is; a run that has been opened meanwhile is the one to join."""
        context, carried = _Process.here().captured.get(self._key), self._carried
        if carried.run is None and context is not None and context.is_started:
            carried = Carried(carried.context, context.mlflow_service.shared_run(), carried.child)
        return {**self.__dict__, "_carried": carried}


class Bound(_Carrier, Generic[Parameters, Result]):
    """A function that is called inside of a context, wherever that is; it can be pickled if the function can."""

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
    """Puts a worker process inside of a context until it exits; can be pickled, and takes no arguments."""

    def __call__(self) -> None:
        """Start the context, unless this process has it already."""
        self.enter()

    def enter(self) -> Callable[[], None]:
        """Do the same, and return what leaves again once the store has what was logged; in the job itself, nothing."""
        return (lambda: None) if self._running is not None else _Process.here().stay(self._carried)


@contextmanager
def _run_of(service: MlflowService, run: Shared | None, child: RunConfig | None) -> Iterator[None]:
    """Have the run open, or the child; a child of a worker says which one."""
    worker = _job.worker()
    if child is not None and worker is not None:
        tags = {_job.WORKER_TAG: worker, **(child.tags or {})}
        child = child.model_copy(update={"tags": tags, "name": child.name or f"worker {worker}"})
    if run is not None:
        with service.work_for(run, child):
            yield
    elif child is not None:
        with service.run_context(child):
            yield
    else:
        yield


@dataclass(slots=True)
class _Log:
    """What this process contributes to the log of a run."""

    end: Callable[[], None]
    users: int = 0


@dataclass(slots=True)
class _Started:
    """A context that runs in this worker."""

    carried: GlobalContext
    """As it has arrived, to be recognized by."""
    context: GlobalContext
    logs: dict[str, _Log] = field(default_factory=dict)
    """By the ids of their runs; one that nobody uses is kept until another run is wanted."""
    users: int = 0

    def count(self, carried: Carried, change: int) -> None:
        """Count who uses it, and the log of a run."""
        self.users += change
        if carried.run is not None and carried.child is None:
            self.logs[carried.run.run_id].users += change

    def contribute(self, run: Shared) -> None:
        """Contribute to the log of a run from now on, and no more to those of runs that nobody works for."""
        if run.run_id not in self.logs:
            self.end_logs([run_id for run_id, log in self.logs.items() if not log.users])
            contribution = ExitStack()
            contribution.enter_context(self.context.mlflow_service.contribute_log(run))
            self.logs[run.run_id] = _Log(contribution.close)

    def end_logs(self, run_ids: Iterable[str]) -> None:
        """Contribute to these no more."""
        for run_id in run_ids:
            self.logs.pop(run_id).end()


class _Process:
    """What this process does for the jobs that it works for."""

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
        """Return the one of this process."""
        return cls._here

    @classmethod
    def begin(cls) -> None:
        """Have one that has done nothing; a forked child has its own."""
        cls._here = cls()

    def capture(self, context: GlobalContext) -> str:
        """Return a key by which the context is found in this process again, as long as it is there."""
        with self._lock:
            known = next((key for key, other in self.captured.items() if other is context), None)
            key = known or uuid.uuid4().hex
            self.captured[key] = context
        return key

    @contextmanager
    def using(self, carried: Carried) -> Iterator[GlobalContext]:
        """Have the context run for the block at least; it is kept until another one is wanted, or the process exits."""
        with self._lock:
            started = self._find(carried)
            started.count(carried, +1)
        try:
            yield started.context
        finally:
            with self._lock:
                started.count(carried, -1)

    def stay(self, carried: Carried) -> Callable[[], None]:
        """Have the context and its run until the process exits, or until the returned function is called."""
        with self._lock, ExitStack() as run:
            started = self._find(carried)
            run.enter_context(_run_of(started.context.mlflow_service, carried.run, carried.child))
            started.count(carried, +1)
            stay = run.pop_all()
            self._stays.append(stay)

        def leave() -> None:
            if self is not _Process._here:  # a forked child is not what stays
                return
            with self._lock:
                if stay not in self._stays:
                    return
                self._stays.remove(stay)
            stay.close()
            started.context.mlflow_service.flush()  # others may begin and end their work meanwhile
            with self._lock:
                started.count(carried, -1)
                if not started.users and started in self._started:
                    self._stop(started)

        return leave

    def close(self) -> None:
        """Stop what runs here."""
        if self is not _Process._here:  # a forked child leaves what its parent has started to that
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
        _job.become_worker()
        context = carried.context.for_worker()
        if carried.run is not None:
            context.mlflow_service.begin_work(carried.run)
        context.start()
        started = _Started(carried.context, context)
        self._started.append(started)
        if not self._is_watching:
            self._is_watching = True
            # A process of multiprocessing leaves by os._exit, which knows its own finalizers only.
            util.Finalize(None, self.close, exitpriority=50)
            atexit.register(self.close)
        return started

    def _stop(self, started: _Started) -> None:
        self._started.remove(started)
        started.end_logs(list(started.logs)[::-1])
        started.context.stop()
        if not self._started:
            _job.forget_worker()


_Process.begin()
call_in_child(_Process.begin)


def environment(context: GlobalContext) -> dict[str, str]:
    """Return the variables by which any child process is inside of the context.

    Raises:
        NotStartedError: the context does not run.

    """
    carrier = _Carrier(context, None)
    carried = carrier._carried  # noqa: SLF001 - of the same module
    variables = carried.context.environment()
    if carried.run is not None:
        from autogen_team.io._redact import mask_url

        order = {"uri": mask_url(carried.context.mlflow_service.tracking_uri), **carried.run.as_dict()}
        variables[WORKER_OF] = json.dumps(order)
        given = _tags_of_runs()
        variables[_RUN_CONTEXT] = json.dumps({**given, _PARENT_TAG: carried.run.run_id})
    return variables


def run_of_environment(service: MlflowService) -> Shared | None:
    """Return the run that the environment makes this process a worker of; None if it does not, or if it is one already.

    Raises:
        ConfigurationError: the variable cannot be read.

    """
    text = os.environ.get(WORKER_OF)
    if not text or _job.worker() is not None:
        return None
    from autogen_team.io._redact import mask_url
    from autogen_team.io._tracking.joining import Shared

    try:
        order = json.loads(text)
        uri = order.pop("uri")
        run = Shared(**order)
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ConfigurationError(f"{WORKER_OF} is {text!r}; it is what GlobalContext.worker_env() returns") from None
    return run if uri == mask_url(service.stores()[0]) else None  # a process with a store of its own is no worker


def _tags_of_runs() -> dict[str, Any]:
    try:
        found = json.loads(os.environ.get(_RUN_CONTEXT) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
