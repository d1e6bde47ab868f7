"""Keeps open runs per asyncio task and per thread; MLflow keeps them per thread only.

In MLflow, all tasks of a thread share one list of open runs, so they log into each other's runs. If a thread logs
without a run, MLflow opens a run that is never ended. While `isolate` is in force:

- a task inherits the runs that were open where it was created. Its siblings do not see the runs that it opens later.
  The tasks that it creates see them, and so does code in a copy of its context, as with `asyncio.to_thread`;
- a run that has ended disappears from every list that inherited it;
- a run that a task leaves open belongs to its thread after the task, as in plain MLflow: each cell of a notebook is a
  separate task;
- a call without an open run logs to the job's run, see `job_run`.

``_active_run_stack``, ``_get_or_start_run``, ``_get_latest_active_run`` and ``start_run`` are replaced in
`mlflow.tracking.fluent`, and wherever else MLflow has imported them by value. The contract tests are in
`tests/io/tracking/test_isolation_undo.py`. A forked child gets MLflow's own functions and no open run, as in plain
MLflow.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import threading
import weakref
from asyncio import Task, current_task
from asyncio.events import _get_running_loop  # the public `get_running_loop` raises without a loop, which is slow
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from threading import get_ident
from typing import Any

import mlflow
from mlflow.tracking import fluent
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from autogen_team._process import Undo
from autogen_team._process.forking import ForkSafeLock, call_in_child
from autogen_team._ship import mlflow_names

_NAMES = ("_active_run_stack", "_get_or_start_run", "_get_latest_active_run", "start_run")

_report = logging.getLogger("autogen_team")
_lock = ForkSafeLock()
_users: list[object] = []
"""One token for each `isolate` that is in force."""
_stacks: _Stacks | None = None
_here: ContextVar[tuple[_Stack, tuple[mlflow.ActiveRun, ...]] | None] = ContextVar("open_runs", default=None)
"""The stack last used in this context, and the runs that it held then; only these runs are inherited."""


def isolate() -> Undo:
    """Give each task and each thread its own open runs; the returned function hands them back to MLflow.

    Runs that are already open stay open where they are. Several callers may isolate, and undo it in any order. The last
    undo hands each run that is still open to MLflow, in the thread that opened it.
    """
    global _stacks
    if not mlflow_names.ACTIVE_RUNS.works():
        return lambda: None
    user = object()
    with _lock:
        _users.append(user)
        if _stacks is None:
            _stacks = _Stacks()
            _stacks.install()

    def undo() -> None:
        with _lock:
            if user in _users:  # otherwise this is a forked child, or a second call
                _users.remove(user)
                if not _users:
                    _uninstall()

    return undo


def job_run() -> mlflow.ActiveRun | None:
    """Return the innermost run that the caller has open, else the job's run.

    The job's run is the innermost run of the main thread. If that thread has none, it is the innermost run inside the
    only outermost run of the process. Tasks with children of the same run share that run. Return None if there is no
    such run, or if several runs qualify.
    """
    stacks = _stacks
    return fluent.active_run() or (None if stacks is None else stacks.job)


def uri_of(run: mlflow.ActiveRun) -> str:
    """Return the store URI of an open run: the URI in use when it was opened, or the current one if that is unknown."""
    stacks = _stacks
    found = None if stacks is None else stacks.uris.get(id(run))
    return found or mlflow.get_tracking_uri()


def open_runs(*, everywhere: bool, apart_from: type[mlflow.ActiveRun]) -> dict[str, str]:
    """Return the store URIs of open runs by run id, without runs of other live threads, which may still end them.

    With `everywhere`, include the runs of all threads. Runs of the class `apart_from` are left out: another process
    ends them.
    """
    stacks = _stacks
    if stacks is None:
        return {}
    busy = set() if everywhere else {thread.ident for thread in threading.enumerate()} - {get_ident()}
    found = [(run, owner) for run, owner in stacks.opened() if not isinstance(run, apart_from)]
    return {run.info.run_id: uri_of(run) for run, owner in found if owner.thread not in busy}


def forget(run_id: str) -> list[str]:
    """Remove a run, and the runs open inside it, from the stack of its owner and from all stacks that inherited it.

    Return their ids, the innermost first; an empty list if the run is no longer open. This works without `isolate` too.
    """
    stacks = _stacks
    if stacks is not None:
        return stacks.forget(run_id)
    if not mlflow_names.ACTIVE_RUNS.works():
        return _end_by_mlflow(run_id)
    for stack in vars(fluent)["_active_run_stack"].get_all_thread_values().values():
        ids = [run.info.run_id for run in stack]
        if run_id in ids:
            place = ids.index(run_id)
            del stack[place:]
            return ids[place:][::-1]
    return []


def _end_by_mlflow(run_id: str) -> list[str]:
    """End the run and its children, if it is open in this thread; the caller sets their final status afterwards."""
    ids: list[str] = []
    while run_id not in ids:
        run = mlflow.active_run()
        if run is None or run_id not in (run.info.run_id, run.data.tags.get(MLFLOW_PARENT_RUN_ID)):
            break
        mlflow.end_run()
        ids.append(run.info.run_id)
    return ids


def leave(run: mlflow.ActiveRun) -> list[mlflow.ActiveRun]:
    """Remove this object, and the runs open inside it, from the stack of its owner.

    Return the runs that were open inside it, the innermost first. If several threads work for one run, the run stays
    open in the others, as other objects.
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
    """Runs that one task, or one thread outside of its tasks, has open or has inherited; the innermost last.

    Only its owner changes it. Runs that others have ended are removed when the owner next gets the stack.
    """

    __slots__ = ("__weakref__", "epoch", "hidden", "home", "is_watched", "plain", "task", "thread")

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
        """The epoch of `home` at the last update of this list."""
        self.hidden: list[mlflow.ActiveRun] = []
        """Inherited runs, hidden until this thread's own runs have ended."""

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
    """Stand-in for MLflow's `_active_run_stack`, with the methods of its class, and for the functions that use it."""

    def __init__(self) -> None:
        self.job: mlflow.ActiveRun | None = None
        """Result of `job_run` without an open run; cached, because it is read more often than it changes."""
        self._found = {name: vars(fluent)[name] for name in _NAMES}
        self._plain = self._found["_active_run_stack"]
        functions = (self._get_or_start_run, self._get_latest_active_run, self._with_own(self._found["start_run"]))
        self._ours: dict[str, object] = dict(zip(_NAMES, (self, *functions), strict=True))
        self._restore: Undo = lambda: None
        self.uris: dict[int, str] = {}
        """URI of the store in which each run was opened, if known, by the id of the object."""
        self._in_force = True
        self._has_warned = False
        self._epoch = object()
        """Replaced whenever a run ends, so that each owner updates its stack."""
        self._owners: dict[int, tuple[mlflow.ActiveRun, _Stack]] = {}
        """The open runs in the order of their opening, each with the stack that opened it, by the id of the object.

        This keeps the stacks that have a run open alive, and no others.
        """
        self._of_thread = threading.local()
        self._of_task: weakref.WeakKeyDictionary[Task[Any], _Stack] = weakref.WeakKeyDictionary()
        self._carried: dict[int, _Stack] = {}
        """Stacks of threads that had open runs before, until the thread gets its stack; by the id of MLflow's list."""

    def install(self) -> None:
        """Take over the open runs from MLflow, and replace its functions."""
        for thread, plain in self._plain.get_all_thread_values().items():
            if plain:
                stack = self._carried[id(plain)] = _Stack(self, plain, plain, thread=thread)
                self._owners.update((id(run), (run, stack)) for run in plain)
        self.job = self._find_job()
        self._restore = replace({name: (self._found[name], self._ours[name]) for name in _NAMES})
        self.get()  # tasks created after this inherit the runs that are open here

    def uninstall(self) -> None:
        """Restore MLflow's functions and hand back the open runs; the caller's runs go on top of other tasks' runs."""
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
        known = None if task is None else self._of_task.get(task)  # a task in a new context keeps its stack
        stack = self._inherit(task, here) if known is None else self.refresh(known)
        _here.set((stack, tuple(stack)))
        return stack

    def set(self, value: Iterable[mlflow.ActiveRun]) -> None:
        """Replace the caller's own open runs by `value`."""
        stack, runs = self.get(), list(value)
        self.end([run for run, owner in list(self._owners.values()) if owner is stack and run not in runs])
        stack.clear()
        for run in runs:
            stack.append(run)

    def get_all_thread_values(self) -> dict[int, list[mlflow.ActiveRun]]:
        """Return a list for each task or thread with open runs: the runs that it has opened itself.

        The keys are not thread ids, because one thread may have several lists. The lists are copies: to remove a run,
        call `forget`.
        """
        found: dict[int, list[mlflow.ActiveRun]] = {}
        for run, stack in list(self._owners.values()):
            found.setdefault(id(stack), []).append(run)
        return found

    def opened(self) -> list[tuple[mlflow.ActiveRun, _Stack]]:
        """Return the open runs, the latest last, each with the stack that opened it."""
        return list(self._owners.values())

    def reset(self) -> None:
        """Forget all open runs."""
        self.end([run for run, _ in list(self._owners.values())])

    def open(self, run: mlflow.ActiveRun, stack: _Stack) -> None:
        """Add the run to the stack, and record its owner and its store."""
        uri = mlflow.get_tracking_uri()
        with _lock:
            list.append(stack, run)
            if self._in_force:
                self.uris[id(run)] = uri
                self._owners[id(run)] = (run, stack)
                self.job = self._find_job()
            else:  # `uninstall` has run while the run was being opened
                stack.plain.append(run)

    def end(self, runs: Iterable[mlflow.ActiveRun]) -> None:
        """Remove these runs from the open runs of every owner."""
        with _lock:
            for run in runs:
                self._owners.pop(id(run), None)
                self.uris.pop(id(run), None)
            self._epoch = object()
            self.job = self._find_job()

    def forget(self, run_id: str) -> list[str]:
        """See the function `forget`."""
        with _lock:
            found = next((run for run, _ in self._owners.values() if run.info.run_id == run_id), None)
            return [] if found is None else [run.info.run_id for run in self.leave(found)]

    def leave(self, run: mlflow.ActiveRun) -> list[mlflow.ActiveRun]:
        """End the run and the runs open inside it; return all of them, the innermost first."""
        mine = self.get()
        with _lock:
            if id(run) not in self._owners:
                return []
            owner = self._owners[id(run)][1]
            # The task that leaves the block may not be the one that entered it, and may own the inner runs.
            inside = [inner for stack in (mine, owner) if run in stack for inner in stack[: stack.index(run) : -1]]
            leaving = [*self._still_open(dict.fromkeys(inside)), run]
            self.end(leaving)
        return leaving

    def hand_down(self, stack: _Stack) -> None:
        """Pass the open runs of a finished task to its thread; call this in that thread."""
        base = self._base()
        with _lock:
            left = [run for run, owner in self._owners.values() if owner is stack]
            if left:
                base.extend(left)
                self._owners.update((id(run), (run, base)) for run in left)
                self._epoch = object()
                self.job = self._find_job()

    def refresh(self, stack: _Stack) -> _Stack:
        """Remove ended runs from the stack; if none is left, use the hidden runs, or else those of the thread."""
        epoch = self._epoch  # read first: a run that ends meanwhile is noticed the next time
        if stack.epoch is not epoch:
            runs = self._still_open(stack) or self._still_open(stack.hidden)
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
            plain = self._plain.get()  # this makes MLflow create a list for this thread, for handing runs back
            stack = self._carried.pop(id(plain), None) or _Stack(self, (), plain, thread=get_ident())
            self._of_thread.stack = stack
        return self.refresh(stack)

    def _still_open(self, runs: Iterable[mlflow.ActiveRun]) -> list[mlflow.ActiveRun]:
        return [run for run in runs if id(run) in self._owners]

    def _find_job(self) -> mlflow.ActiveRun | None:
        stacks = list({id(stack): stack for _, stack in self._owners.values()}.values())
        busy = {stack.thread for stack in stacks if stack.task is not None}
        # The code of a thread outside of its tasks waits while the tasks run.
        stacks = [stack for stack in stacks if stack.task is not None or stack.thread not in busy]
        main = threading.main_thread().ident
        stacks = [stack for stack in stacks if stack.thread == main] or stacks
        chains = [chain for chain in map(self._still_open, stacks) if chain]
        # A run that was opened with `parent_run_id` belongs to the run of that id.
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
                "thread %r logged without an open run while %d runs are open in other threads, so MLflow opens "
                "another run. Open a run in the thread (mlflow.start_run), start the thread in a copy of the context "
                "(contextvars.copy_context().run), or pass run_id. This warning appears once",
                threading.current_thread().name,
                len(self._owners),
            )
        return self._found["_get_or_start_run"]()  # type: ignore[no-any-return]  # it has no type in MLflow

    def _get_latest_active_run(self) -> mlflow.ActiveRun | None:
        """Return the run that a trace or a prompt belongs to; MLflow would use the latest run of all threads."""
        return job_run() or self._found["_get_latest_active_run"]()

    def _with_own(self, start: Callable[..., mlflow.ActiveRun]) -> Callable[..., mlflow.ActiveRun]:
        """Wrap `start` so that a thread with inherited runs can open a run of its own, as in plain MLflow."""

        @functools.wraps(start)
        def start_run(*args: Any, **fields: Any) -> mlflow.ActiveRun:
            stack = self.get() if self._in_force else None
            if not stack or args[3:] or self._has_own(stack):
                return start(*args, **fields)
            if fields.get("nested") and fields.get("parent_run_id") in (None, stack[-1].info.run_id):
                return start(*args, **fields)
            inherited, stack.hidden = list(stack), []
            stack.clear()
            try:
                return start(*args, **fields)
            finally:
                stack.hidden = inherited
                if not stack:
                    stack.extend(inherited)

        return start_run

    def _has_own(self, stack: _Stack) -> bool:
        """Return whether a run on the stack was opened in the stack's own thread."""
        entries = [self._owners.get(id(run)) for run in stack]
        return any(entry is not None and entry[1].thread == stack.thread for entry in entries)


class _ByName:
    """Replacement for one of MLflow's functions that is pickled as the name of the original.

    The patches of MLflow's autologging hold such functions in closures, and joblib, Dask and Ray send these patches to
    workers. There the name must resolve to MLflow's own function.
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
    """Replace the first object by the second wherever MLflow has it under this name; return the undo function."""
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
