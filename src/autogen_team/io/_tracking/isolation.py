"""Open runs per asyncio task and per thread, where MLflow keeps them per thread only.

All tasks of a thread share MLflow's list of open runs, so they log into each other's; and what is logged in a thread
without a run makes MLflow open one that nobody ends. While `isolate` is in force:

- a task begins with what was open where it was created. What it opens after that is seen by itself, by the tasks that
  it creates, and by whatever runs in a copy of its context, as `asyncio.to_thread` does; not by its siblings;
- a run that has ended is gone from every list that had inherited it;
- a run that a finished task has left open belongs to its thread from then on, as it always did in MLflow: each cell of
  a notebook is a task of its own;
- what is logged where no run is open goes to the job's run, see `job_run`.

Replaced in `mlflow.tracking.fluent`, and wherever else in MLflow they were imported by value: ``_active_run_stack``,
``_get_or_start_run``, ``_get_latest_active_run`` and ``start_run``; `tests/io/tracking/test_isolation_undo.py` holds
the contract. A forked child has MLflow's own again, and no run, as it always had.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import threading
import weakref
from asyncio import Task, current_task
from asyncio.events import _get_running_loop  # public `get_running_loop` raises where no loop runs, which is slow
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from threading import get_ident
from typing import Any

import mlflow
from mlflow.tracking import fluent
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from autogen_team.io._forking import ForkSafeLock, call_in_child
from autogen_team.io._job import Undo

_NAMES = ("_active_run_stack", "_get_or_start_run", "_get_latest_active_run", "start_run")

_report = logging.getLogger("autogen_team")
_lock = ForkSafeLock()
_users: list[object] = []
"""One for each `isolate` that is in force."""
_stacks: _Stacks | None = None
_here: ContextVar[tuple[_Stack, tuple[mlflow.ActiveRun, ...]] | None] = ContextVar("open_runs", default=None)
"""The stack of whoever asked last in this context, and what it held then; only the latter is inherited."""


def isolate() -> Undo:
    """Give each task and each thread its own open runs; the returned function gives them back to MLflow.

    What is open already stays open where it is. Several may ask for it, and leave in any order: the last one to leave
    gives MLflow what is still open then, each run to the thread that it was opened in.
    """
    global _stacks
    user = object()
    with _lock:
        _users.append(user)
        if _stacks is None:
            _stacks = _Stacks()
            _stacks.install()

    def undo() -> None:
        with _lock:
            if user in _users:  # else this is a forked child, or the second time
                _users.remove(user)
                if not _users:
                    _uninstall()

    return undo


def job_run() -> mlflow.ActiveRun | None:
    """Return the innermost run that the caller has open, else the job's.

    That is the innermost run of the main thread, or else of the one outermost run that the process has open; tasks with
    children of the same run share that run. None if there is no such run, or if it could be one of several.
    """
    stacks = _stacks
    return fluent.active_run() or (None if stacks is None else stacks.job)


def uri_of(run: mlflow.ActiveRun) -> str:
    """Return the store of a run that is open: the one in use when it was opened, or else the one in use now."""
    stacks = _stacks
    found = None if stacks is None else stacks.uris.get(id(run))
    return found or mlflow.get_tracking_uri()


def open_runs(*, everywhere: bool, apart_from: type[mlflow.ActiveRun]) -> dict[str, str]:
    """Return the store of each open run by its id, without those that another thread has open, and may still end.

    Those of all threads are returned with `everywhere`. Runs of the class `apart_from` are left out: another process
    ends them.
    """
    stacks = _stacks
    if stacks is None:
        return {}
    busy = set() if everywhere else {thread.ident for thread in threading.enumerate()} - {get_ident()}
    found = [(run, owner) for run, owner in stacks.opened() if not isinstance(run, apart_from)]
    return {run.info.run_id: uri_of(run) for run, owner in found if owner.thread not in busy}


def forget(run_id: str) -> list[str]:
    """Take the run, and what is open inside of it, off the stack of whoever has it open, and of all that inherited it.

    Returns their ids, the innermost first; none if the run is not open any more. Works without `isolate` too.
    """
    stacks = _stacks
    if stacks is not None:
        return stacks.forget(run_id)
    for stack in vars(fluent)["_active_run_stack"].get_all_thread_values().values():
        ids = [run.info.run_id for run in stack]
        if run_id in ids:
            place = ids.index(run_id)
            del stack[place:]
            return ids[place:][::-1]
    return []


def leave(run: mlflow.ActiveRun) -> list[mlflow.ActiveRun]:
    """Take this very object, and what is open inside of it, off the stack of whoever has it open.

    Returns what was open inside, the innermost first. The same run may be open elsewhere as another object, as a run is
    that several threads work for; there it stays.
    """
    stacks = _stacks
    if stacks is not None:
        return stacks.leave(run)[:-1]
    for stack in vars(fluent)["_active_run_stack"].get_all_thread_values().values():
        place = next((number for number, other in enumerate(stack) if other is run), None)
        if place is not None:
            inside: list[mlflow.ActiveRun] = stack[place + 1 :][::-1]
            del stack[place:]
            return inside
    return []


class _Stack(list[mlflow.ActiveRun]):
    """The runs that one task, or one thread outside of its tasks, has open or has inherited; the innermost last.

    Only its owner changes it. What others have ended goes when the owner asks for it the next time.
    """

    __slots__ = ("__weakref__", "aside", "epoch", "home", "is_watched", "plain", "task", "thread")

    def __init__(
        self,
        home: _Stacks,
        runs: Iterable[mlflow.ActiveRun],
        plain: list[mlflow.ActiveRun],
        *,
        thread: int,
        task: Task[Any] | None = None,
    ) -> None:
        super().__init__(runs)
        self.home = home
        self.plain = plain
        """MLflow's own list for this thread."""
        self.thread = thread
        self.task = None if task is None else weakref.ref(task)
        self.is_watched = False
        self.epoch: object = None
        """The state of `home` that this list is up to date with."""
        self.aside: list[mlflow.ActiveRun] = []
        """What was inherited, and is seen again when the runs of this thread's own have ended."""

    def append(self, run: mlflow.ActiveRun, /) -> None:
        self.home.open(run, self)
        _here.set((self, tuple(self)))
        task = None if self.task is None or self.is_watched else self.task()
        if task is not None:
            self.is_watched = True
            task.add_done_callback(lambda _: self.home.hand_down(self))

    def pop(self, index: Any = -1, /) -> mlflow.ActiveRun:
        run = super().pop(index)
        self.home.end([run])
        _here.set((self, tuple(self.home.refresh(self))))
        return run


class _Stacks:
    """What stands in for MLflow's variable, with the methods of its class, and for the functions that go with it."""

    def __init__(self) -> None:
        self.job: mlflow.ActiveRun | None = None
        """What `job_run` answers where no run is open; kept ready, for it is asked for more often than it changes."""
        self._found = {name: vars(fluent)[name] for name in _NAMES}
        self._plain = self._found["_active_run_stack"]
        functions = (self._get_or_start_run, self._get_latest_active_run, self._with_own(self._found["start_run"]))
        self._ours: dict[str, object] = dict(zip(_NAMES, (self, *functions), strict=True))
        self._restore: Undo = lambda: None
        self.uris: dict[int, str] = {}
        """Where each run was opened, as far as that is known, by the id of the object."""
        self._in_force = True
        self._has_warned = False
        self._epoch = object()
        """Another one whenever a run has ended, so that each owner notices in time."""
        self._owners: dict[int, tuple[mlflow.ActiveRun, _Stack]] = {}
        """The open runs, in the order in which they were opened, and who has opened each, by the id of the object.

        This keeps the stack of somebody who has a run open alive, and of nobody else.
        """
        self._of_thread = threading.local()
        self._of_task: weakref.WeakKeyDictionary[Task[Any], _Stack] = weakref.WeakKeyDictionary()
        self._carried: dict[int, _Stack] = {}
        """Of threads that had runs open before, until they ask for it; by the id of MLflow's list."""

    def install(self) -> None:
        """Take over from MLflow."""
        for thread, plain in self._plain.get_all_thread_values().items():
            if plain:
                stack = self._carried[id(plain)] = _Stack(self, plain, plain, thread=thread)
                self._owners.update((id(run), (run, stack)) for run in plain)
        self.job = self._find_job()
        self._restore = replace({name: (self._found[name], self._ours[name]) for name in _NAMES})
        self.get()  # what is created from here on inherits what is open here

    def uninstall(self) -> None:
        """Give back what was replaced, and the open runs: the caller's own on top, if tasks of one thread have some."""
        mine = self.get()
        self._restore()
        self._in_force = False
        left = sorted(self._owners.values(), key=lambda entry: entry[1] is mine)
        self._owners, self.job = {}, None
        for plain in (*self._plain.get_all_thread_values().values(), *(stack.plain for _, stack in left)):
            plain[:] = [run for run, stack in left if stack.plain is plain]

    def get(self) -> _Stack:
        """Return the stack of the calling task, or of the calling thread outside of its tasks."""
        loop = _get_running_loop()
        task = None if loop is None else current_task(loop)
        here = _here.get()
        if here is not None:
            stack = here[0]
            if task is None:
                is_mine = stack.task is None and stack.thread == get_ident()
            else:
                is_mine = stack.task is not None and stack.task() is task
            if is_mine and stack.epoch is self._epoch:
                return stack
            if is_mine and stack.home is self:
                return self.refresh(stack)
        known = None if task is None else self._of_task.get(task)  # who has changed its context is still the same
        stack = self._inherit(task, here) if known is None else self.refresh(known)
        _here.set((stack, tuple(stack)))
        return stack

    def set(self, value: Iterable[mlflow.ActiveRun]) -> None:
        """Let the caller have these runs open, and no others of its own."""
        stack, runs = self.get(), list(value)
        self.end([run for run, owner in list(self._owners.values()) if owner is stack and run not in runs])
        stack.clear()
        for run in runs:
            stack.append(run)

    def get_all_thread_values(self) -> dict[int, list[mlflow.ActiveRun]]:
        """Return a list for each task and each thread that has runs open, of those that it has opened itself.

        The keys are no ids of threads, which may have several; to change the lists changes nothing: see `forget`.
        """
        found: dict[int, list[mlflow.ActiveRun]] = {}
        for run, stack in list(self._owners.values()):
            found.setdefault(id(stack), []).append(run)
        return found

    def opened(self) -> list[tuple[mlflow.ActiveRun, _Stack]]:
        """Return the open runs, the latest last, each with the stack that it was opened in."""
        return list(self._owners.values())

    def reset(self) -> None:
        """Forget all open runs."""
        self.end([run for run, _ in list(self._owners.values())])

    def open(self, run: mlflow.ActiveRun, stack: _Stack) -> None:
        """Let the owner of the stack have the run open."""
        uri = mlflow.get_tracking_uri()
        with _lock:
            list.append(stack, run)
            if self._in_force:
                self.uris[id(run)] = uri
                self._owners[id(run)] = (run, stack)
                self.job = self._find_job()
            else:  # MLflow got its own back while the run was being opened
                stack.plain.append(run)

    def end(self, runs: Iterable[mlflow.ActiveRun]) -> None:
        """Let nobody have these runs open any more."""
        with _lock:
            for run in runs:
                self._owners.pop(id(run), None)
                self.uris.pop(id(run), None)
            self._epoch = object()
            self.job = self._find_job()

    def forget(self, run_id: str) -> list[str]:
        """Do what the function of this name says."""
        with _lock:
            found = next((run for run, _ in self._owners.values() if run.info.run_id == run_id), None)
            return [] if found is None else [run.info.run_id for run in self.leave(found)]

    def leave(self, run: mlflow.ActiveRun) -> list[mlflow.ActiveRun]:
        """End the run and what is open inside of it; return them, the innermost first."""
        mine = self.get()
        with _lock:
            if id(run) not in self._owners:
                return []
            owner = self._owners[id(run)][1]
            # Whoever leaves the block may be another task than the one that entered it, and have the inner runs.
            inside = [inner for stack in (mine, owner) if run in stack for inner in stack[: stack.index(run) : -1]]
            leaving = [*self._still_open(dict.fromkeys(inside)), run]
            self.end(leaving)
        return leaving

    def hand_down(self, stack: _Stack) -> None:
        """Let the thread have what its task has left open; to be called in that thread."""
        base = self._base()
        with _lock:
            left = [run for run, owner in self._owners.values() if owner is stack]
            if left:
                base.extend(left)
                self._owners.update((id(run), (run, base)) for run in left)
                self._epoch = object()
                self.job = self._find_job()

    def refresh(self, stack: _Stack) -> _Stack:
        """Take off the stack what others have ended; if nothing is left, see what the thread has open."""
        epoch = self._epoch  # read first: what ends meanwhile is noticed the next time
        if stack.epoch is not epoch:
            runs = self._still_open(stack) or self._still_open(stack.aside)
            is_base = stack is getattr(self._of_thread, "stack", None)
            stack[:] = runs if runs or is_base else self._still_open(self._base())
            stack.epoch = epoch
        return stack

    def _inherit(self, task: Task[Any] | None, here: tuple[_Stack, tuple[mlflow.ActiveRun, ...]] | None) -> _Stack:
        epoch, base = self._epoch, self._base()
        inherited = [] if here is None else [run for run in self._still_open(here[1]) if run not in base]
        if task is None and not inherited:
            return base
        stack = _Stack(self, [*self._still_open(base), *inherited], base.plain, thread=base.thread, task=task)
        stack.epoch = epoch
        if task is not None:
            self._of_task[task] = stack
        return stack

    def _base(self) -> _Stack:
        """Return the stack of this thread outside of its tasks."""
        stack: _Stack | None = getattr(self._of_thread, "stack", None)
        if stack is None:
            plain = self._plain.get()  # now MLflow has a list for this thread, to which runs can be given back
            stack = self._carried.pop(id(plain), None) or _Stack(self, (), plain, thread=get_ident())
            self._of_thread.stack = stack
        return self.refresh(stack)

    def _still_open(self, runs: Iterable[mlflow.ActiveRun]) -> list[mlflow.ActiveRun]:
        return [run for run in runs if id(run) in self._owners]

    def _find_job(self) -> mlflow.ActiveRun | None:
        stacks = list({id(stack): stack for _, stack in self._owners.values()}.values())
        busy = {stack.thread for stack in stacks if stack.task is not None}
        # What a thread does outside of its tasks waits while they run.
        stacks = [stack for stack in stacks if stack.task is not None or stack.thread not in busy]
        main = threading.main_thread().ident
        stacks = [stack for stack in stacks if stack.thread == main] or stacks
        chains = [chain for chain in map(self._still_open, stacks) if chain]
        # A run that was opened with `parent_run_id` belongs to the one that it names.
        ids = {run.info.run_id for chain in chains for run in chain}
        chains = [chain for chain in chains if chain[0].data.tags.get(MLFLOW_PARENT_RUN_ID) not in ids]
        shared = None
        for level in zip(*chains, strict=False):
            if any(run.info.run_id != level[0].info.run_id for run in level):
                break
            shared = level[0]
        return shared

    def _get_or_start_run(self) -> mlflow.ActiveRun:
        run = job_run()
        if run is not None:
            return run
        if self._owners and not self._has_warned:
            self._has_warned = True
            _report.warning(
                "something was logged in thread %r, which has no run open, while %d are open elsewhere: MLflow opens "
                "another one for it. Open a run there (mlflow.start_run), or start the thread in a copy of the context "
                "(contextvars.copy_context().run), or pass run_id; said once",
                threading.current_thread().name,
                len(self._owners),
            )
        return self._found["_get_or_start_run"]()  # type: ignore[no-any-return]  # MLflow gives it no type

    def _get_latest_active_run(self) -> mlflow.ActiveRun | None:
        """Return the run that a trace or a prompt belongs to; MLflow takes the latest of all threads."""
        return job_run() or self._found["_get_latest_active_run"]()

    def _with_own(self, start: Callable[..., mlflow.ActiveRun]) -> Callable[..., mlflow.ActiveRun]:
        """Let a thread that has inherited the runs of another still open one of its own, as MLflow lets it."""

        @functools.wraps(start)
        def start_run(*args: Any, **fields: Any) -> mlflow.ActiveRun:
            stack = self.get() if self._in_force else None
            if not stack or args[3:] or self._has_own(stack):
                return start(*args, **fields)
            if fields.get("nested") and fields.get("parent_run_id") in (None, stack[-1].info.run_id):
                return start(*args, **fields)
            inherited, stack.aside = list(stack), []
            stack.clear()
            try:
                return start(*args, **fields)
            finally:
                stack.aside = inherited
                if not stack:
                    stack.extend(inherited)

        return start_run

    def _has_own(self, stack: _Stack) -> bool:
        """Tell whether something on the stack was opened in its thread."""
        entries = [self._owners.get(id(run)) for run in stack]
        return any(entry is not None and entry[1].thread == stack.thread for entry in entries)


class _ByName:
    """A function in place of one of MLflow's, which a pickle holds by the name of that.

    MLflow's autologging has such functions in the closures of what it patches, and joblib, Dask and Ray send these to
    workers: there MLflow's own function is what is meant.
    """

    def __init__(self, function: Callable[..., Any], original: Any) -> None:
        functools.update_wrapper(self, original)
        self._function = function
        self._place = original.__module__, original.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _named, self._place


def _named(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def replace(objects: Mapping[str, tuple[Any, Any]]) -> Undo:
    """Put the second object in place of the first one wherever MLflow has it under this name."""
    objects = {
        name: (original, _ByName(ours, original) if getattr(ours, "__closure__", None) else ours)
        for name, (original, ours) in objects.items()
    }

    def exchange(which: int) -> None:
        for path, module in list(sys.modules.items()):
            if path == "mlflow" or path.startswith("mlflow."):
                names = getattr(module, "__dict__", {})
                for name, pair in objects.items():
                    if names.get(name) is pair[which]:
                        setattr(module, name, pair[1 - which])

    exchange(0)
    return lambda: exchange(1)


def _uninstall() -> None:
    global _stacks
    if _stacks is not None:
        _stacks.uninstall()
        _stacks = None


def _after_fork() -> None:
    _users.clear()
    _uninstall()


call_in_child(_after_fork)
