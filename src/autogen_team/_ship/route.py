"""The agent's thread for one store, which ships the journals of all jobs that log to the store."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogen_team._ship import rest_backend
from autogen_team._ship.batches import Delivery
from autogen_team._ship.drain import Drain
from autogen_team._ship.error_text import with_kind
from autogen_team._ship.owners import Owners
from autogen_team._ship.signs import RunsOfOthers, Signs, Stop
from autogen_team._ship.system_metrics import SystemMetrics
from autogen_team._spool.reader import Follower
from autogen_team._spool.records import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from autogen_team._ship.agent import Job
    from autogen_team._ship.agent_link import Message
    from autogen_team._ship.backend import Backend

_LONGEST_IDLE = 1.0
"""Maximum polling interval in seconds for idle journals; a flush ends the wait early."""
_FOR_THE_JOB = frozenset({"create", "trace_file"})
"""Operations that the job itself ships: it needs the ids of its runs, and has loaded MLflow's repositories."""


class Shipment:
    """The journal of a job, shipped by the agent."""

    def __init__(self, route: Route, job: Job, order: Message, signs: Signs, system_metrics: SystemMetrics) -> None:
        """Ship as the order says; see `Route.take`."""
        self._route = route
        self._signs = signs
        self.system_metrics = system_metrics
        self._order = order
        self._open: dict[str, int] = dict(order["runs"])
        """Attempt number of each open run, by the run ids that the job knows."""
        self._job = job
        after: int = order["after"]
        self._follower = Follower(lambda: job.folder, after)
        self._wanted = 0
        self._is_given_back = False
        self.number = self.acked = after
        """The numbers of the last entry that was read, and of the last that the store has taken."""
        self._others = RunsOfOthers(order["others"])
        self.joined: dict[str, int] = order["joined"]
        """The runs of others that the job, if it is a worker, has joined at the moment, each with its attempt."""
        self._opened: dict[str, int] = order["opened"]
        self._works_for: dict[str, int] = order["works_for"]
        """The attempt in which the job has opened each run, or works for it."""
        self._ended: dict[str, int] = {}
        """Runs that the job has closed, each with the number of the entry that closed it."""
        self.runs: set[str] = set(order["others"])
        """The runs that the job logs to."""

    @property
    def is_behind(self) -> bool:
        """Whether the last read left entries for the next one."""
        return self._follower.is_behind and not self._is_given_back

    @property
    def is_urgent(self) -> bool:
        """Whether the job waits for entries that the store has not accepted yet."""
        return self._wanted > self.acked

    def read(self, limit: int) -> list[Entry]:
        """Return the next entries to ship; at the first one that the agent cannot ship, the job gets the rest back."""
        if self._is_given_back:
            return []
        entries = self._follower.read(limit)
        ours = next((at for at, entry in enumerate(entries) if entry["op"] in _FOR_THE_JOB), len(entries))
        self._is_given_back = ours < len(entries)
        entries = entries[:ours]
        if entries:
            self.number = entries[-1]["n"]
            self.runs.update(entry["run"] for entry in entries if "run" in entry)
            self._others.follow(entries)
            self._route.learn(entries)
            self._follow_runs(entries)
        elif self._is_given_back and self.number == self.acked:  # otherwise `taken` does it
            self._give_back()
        return entries

    def kept(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries that may be delivered; see `Signs.kept`."""
        return self._signs.kept(entries, self._opened, self._works_for, self._route.ids)

    def taken(self, number: int) -> None:
        """Tell the job that the store has accepted every entry up to `number`."""
        self.acked = number
        for run_id in [run_id for run_id, ended in self._ended.items() if ended <= number]:
            del self._ended[run_id]
            self._opened.pop(run_id, None)
        self.tell({"op": "acked", "number": number})
        if self._is_given_back:
            self._give_back()

    def open_runs(self, ids: Mapping[str, str]) -> set[str]:
        """Return the runs that the job has open, by their ids in the store."""
        return {ids.get(run_id, run_id) for run_id in self._open}

    def has_open(self, run_id: str) -> bool:
        """Return whether the job has a run open, by the id that the job knows."""
        return run_id in self._open

    def runs_of_others(self, ids: Mapping[str, str]) -> set[str]:
        """Return the store's ids of the runs of other processes that the job, if it is a worker, works for."""
        others = self._others.ids | self.joined.keys()
        return {ids.get(run_id, run_id) for run_id in others} if self._order["is_worker"] else set()

    def give_signs(self, ids: Mapping[str, str], others: Iterable[str]) -> bool:
        """Send heartbeats for the job's open runs if they are due; return whether the store answers.

        Only the tags of the runs `others` are read.
        """
        return self._signs.give(self._open, ids, others)

    @property
    def is_late(self) -> bool:
        """Whether heartbeats of the job are missing, so that another process may have its runs by now."""
        return self._signs.is_late

    def end_if_overtaken(self, ids: Mapping[str, str]) -> None:
        """Ask the job to end if a later attempt has claimed a run that it has open or, as a worker, works for."""
        joined = self.joined if self._order["is_worker"] else {}
        for run_id, stop in self._signs.overtaken(self._open, joined, ids):
            self.system_metrics.end(run_id)
            self.stop(stop)

    def stop(self, stop: Stop) -> None:
        """Ask the job to end."""
        self._job.stop(stop, self._order["pid"], self._order["grace"])

    def _follow_runs(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry["op"] == "open":
                self._open[entry["run"]] = self._opened[entry["run"]] = entry.get("attempt", 1)
                self._ended.pop(entry["run"], None)
            elif entry["op"] == "joined":
                self._works_for[entry["run"]] = entry["attempt"]
            elif entry["op"] == "closed":
                self._open.clear()
            elif entry["op"] == "info" and entry.get("status", "RUNNING") != "RUNNING":
                self._open.pop(entry["run"], None)
                self._ended[entry["run"]] = entry["n"]

    def flush(self, until: int) -> None:
        """Ship the entries up to the number `until` at once."""
        self._wanted = until
        if self.acked >= until:  # a suspended job may have missed the message
            self.tell({"op": "acked", "number": self.acked})
        elif self._is_given_back:
            self.tell({"op": "yours"})
        else:
            self._route.hurry()

    def log_in(self, store: Message) -> None:
        """Use the renewed credentials of the job."""
        self._route.login = store.get("rest")
        self._route.hurry()

    def tell(self, message: Message) -> None:
        """Send a message to the job."""
        self._job.send(message)

    def end(self) -> None:
        """Stop shipping this journal."""
        self._is_given_back = True
        self._route.remove(self)

    def close(self) -> None:
        """Close the files of the journal."""
        self._follower.close()

    def _give_back(self) -> None:
        self._route.remove(self)
        self.tell({"op": "yours"})


class Route:
    """A store and the journals that are shipped to it."""

    def __init__(self, store: Message) -> None:
        """Start loading the backend of a store, which is given by `uri`, or by `rest` for a server."""
        self._store = store
        self.login: Any = store.get("rest")
        self.silent: deque[tuple[str, int]] = deque()
        """Runs that the agent of another machine has found silent, each with the number of that silence."""
        self._lock = threading.Lock()
        self._prepared: list[Job] = []
        self._is_ready = False
        self._shipments: tuple[Shipment, ...] = ()
        self._removed: list[Shipment] = []
        self._drain: Drain | None = None
        self._delivery: Delivery | None = None
        self._owners: Owners | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended, or is about to."""
        return not self._thread.is_alive() or (self._drain is not None and self._drain.is_stopped)

    def prepare(self, job: Job) -> None:
        """Tell the job when its journal can be shipped."""
        with self._lock:
            if not self._is_ready:
                self._prepared.append(job)
                return
        job.send({"op": "ready"})

    def take(self, job: Job, order: Message) -> Shipment | None:
        """Start to ship a journal as the job ordered; return None if that is not possible now.

        The order says `after` which entry to begin; the `ids` that local runs have in the store; the `runs` that are
        open, and those of `others` that a worker (`is_worker`) logs to or has `joined`; the attempts in which it has
        `opened` runs or `works_for` them, and `until` when claims belong to its own launch; the `pid` of the process
        for heartbeats, their interval (`heartbeat`, seconds), and when the last one was `given`; what is `sampled` for
        which run; and after how many seconds the process is killed if it is told to end at once (`grace`).
        """
        with self._lock:
            if not self._is_ready or self._delivery is None or self._owners is None:
                return None
            self._delivery.ids |= order["ids"]
            when = {"given": order["given"], "until": order["until"]}
            signs = Signs(self._owners, order["heartbeat"], pid=order["pid"], **when)
            signs.on_stop = self._stop
            signs.on_silence = lambda run_id, number: self.silent.append((run_id, number))
            system_metrics = SystemMetrics(self._owners.backend)
            for one in order["sampled"]:
                system_metrics.begin(one)
            shipment = Shipment(self, job, order, signs, system_metrics)
            self._shipments = (*self._shipments, shipment)
        self.hurry()
        return shipment

    def remove(self, shipment: Shipment) -> None:
        """Stop shipping this journal; end the thread if it was the last journal."""
        with self._lock:
            self._shipments = tuple(one for one in self._shipments if one is not shipment)
            self._removed.append(shipment)
            if self._drain is not None and not self._shipments and not self._prepared:
                self._is_ready = False
                self._drain.stop()

    def learn(self, entries: list[Entry]) -> None:
        """Remember the ids that runs have in the store, from the entries."""
        assert self._delivery is not None
        self._delivery.ids |= {entry["run"]: entry["id"] for entry in entries if entry["op"] == "created"}

    @property
    def ids(self) -> Mapping[str, str]:
        """The ids that local runs have in the store."""
        return {} if self._delivery is None else self._delivery.ids

    def hurry(self) -> None:
        """End a pause early."""
        if self._drain is not None:
            self._drain.urgent.set()

    def _run(self) -> None:
        try:
            backend = self._make_backend()
        except Exception as error:
            self._tell_prepared({"op": "unable", "reason": with_kind(error)})
            return
        self._owners = Owners(backend)
        state = Path(self._store["state"])
        self._delivery = Delivery(backend, state, report=self._report)
        self._drain = Drain(self._delivery, lambda: self._shipments, on_failed=self._failed, on_taken=lambda: None)
        self._tell_prepared({"op": "ready"})
        idle = self._drain.gather
        while not self._drain.is_stopped:
            if not any(shipment.is_urgent for shipment in self._shipments):
                self._drain.urgent.wait(idle)
            # Heartbeats come first, so that a run that is resumed and ended at once is reopened before it is closed.
            is_there = self._give_signs(self._delivery.ids)
            for shipment in self._shipments:
                shipment.system_metrics.log(self._delivery.ids, is_cut=not is_there or shipment.is_late)
            before = [shipment.number for shipment in self._shipments]
            self._drain.ship()
            is_idle = before == [shipment.number for shipment in self._shipments]
            idle = min(2 * idle, _LONGEST_IDLE) if is_idle else self._drain.gather
            self._close_removed()
        self._close_removed()

    def _give_signs(self, ids: Mapping[str, str]) -> bool:
        """Send the heartbeats that are due, and return whether the store answers.

        The tags of a run are read for one of its processes only.
        """
        read = {run_id for shipment in self._shipments for run_id in shipment.open_runs(ids)}
        for shipment in self._shipments:
            others = shipment.runs_of_others(ids) - read
            read |= others
            if not shipment.give_signs(ids, others):
                return False
        for shipment in self._shipments:
            shipment.end_if_overtaken(ids)
        return True

    def _stop(self, run_id: str, stop: Stop) -> None:
        """Ask the processes that work for a run to end, beginning with the one that has the run open."""
        assert self._delivery is not None
        ids = self._delivery.ids
        for shipment in self._shipments:
            if run_id in shipment.open_runs(ids):
                shipment.stop(stop)
        for shipment in self._shipments:
            if run_id in shipment.runs_of_others(ids):
                shipment.stop(stop)

    def _close_removed(self) -> None:
        """Close the files of journals that are no longer shipped; only this thread reads them."""
        with self._lock:
            removed, self._removed = self._removed, []
        for shipment in removed:
            shipment.close()

    def _make_backend(self) -> Backend:
        if self.login is not None:
            return rest_backend.Server(rest_backend.sender(lambda: self.login))
        from autogen_team._ship import lean_mlflow

        uri = self._store["uri"]
        lean_mlflow.load(uri)
        from autogen_team._ship import mlflow_backend

        return mlflow_backend.of(mlflow_backend.plain_store(uri), uri)

    def _tell_prepared(self, message: Message) -> None:
        with self._lock:
            self._is_ready = message["op"] == "ready"
            prepared, self._prepared = self._prepared, []
        for job in prepared:
            job.send(message)

    def _failed(self, reason: str) -> None:
        for shipment in self._shipments:
            shipment.tell({"op": "failed", "reason": reason})

    def _report(self, run_id: str, text: str) -> None:
        for shipment in self._shipments:
            if not run_id or run_id in shipment.runs:
                shipment.tell({"op": "say", "text": text})
