"""The thread that delivers the entries of the journal to the store soon after they are written.

At first it ships them itself. It sleeps until there is an entry, gathers more for a moment, and delivers all of them.
After a while, the agent takes over and does the same from outside the job. The thread then sleeps until the agent sends
a message. If the agent ends or is not available, the thread ships again. After a fork, the child has its own thread and
journal.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

import orjson

from autogen_team._process import activity, grace, identity, stopping
from autogen_team._ship.agent_link import AgentLink, Message
from autogen_team._ship.availability import Availability
from autogen_team._ship.backend import Unreachable
from autogen_team._ship.batches import Delivery
from autogen_team._ship.drain import LONGEST_PAUSE, Drain
from autogen_team._ship.signs import RunsOfOthers, Signs, Stop
from autogen_team._ship.system_metrics import SystemMetrics
from autogen_team._spool.journal import Journal, JournalError
from autogen_team._spool.reader import Follower
from autogen_team._spool.records import Entry

_LAST_PATIENCE = 1.0
"""Seconds to wait for the current delivery before the thread ends, or before an unwritten entry is delivered."""
_TRIES = (0.1, 0.3, 0.0)
"""Seconds to wait after each attempt to deliver an entry that is stored nowhere else."""
_FORK_PATIENCE = 1.0
"""Seconds that a fork waits for the current delivery, whose locks would otherwise stay held in the child."""

_POLL = 1.0
"""Polling interval in seconds for the handover of a job that logs nothing."""

_report = logging.getLogger("autogen_team")
_shippers: weakref.WeakSet[Shipper] = weakref.WeakSet()


class _Own:
    """The journal of this process, shipped by its own thread."""

    def __init__(self, journal: Journal, others: RunsOfOthers, kept: Callable[[list[Entry]], list[Entry]]) -> None:
        self._journal = journal
        self._kept = kept
        self._others = others
        self._follower = Follower(lambda: journal.folder, journal.acked)

    @property
    def number(self) -> int:
        """The number of the last entry that was read."""
        return self._follower.number

    @property
    def is_behind(self) -> bool:
        """Whether the last read left entries for the next one."""
        return self._follower.is_behind

    def read(self, limit: int) -> list[Entry]:
        """Return the next entries."""
        entries = self._follower.read(limit)
        self._others.follow(entries)
        return entries

    def kept(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries that may be delivered; see `Signs.kept`."""
        return self._kept(entries)

    def taken(self, number: int) -> None:
        """Record that the store has accepted every entry up to `number`."""
        self._journal.ack(number)

    def close(self) -> None:
        """Close the segment."""
        self._follower.close()


class Shipper:
    """Ships the entries of one journal, on a background thread or by the agent."""

    def __init__(
        self,
        journal: Journal,
        delivery: Delivery,
        availability: Availability,
        agent: AgentLink,
        store: Callable[[], Message | None],
        handover_after: float,
        signs: Signs,
        system_metrics: SystemMetrics,
    ) -> None:
        """Hand the journal over to `agent` after `handover_after` seconds, unless `store` returns None.

        `store` returns the message that tells the agent how to reach the store.
        """
        self._journal = journal
        self._delivery = delivery
        self._availability = availability
        self._agent = agent
        self._store = store
        self._handover_after = handover_after
        self.signs = signs
        """Heartbeats of the runs that this process has open, until the agent sends them."""
        self.signs.on_stop = lambda _run_id, stop: self._end_job(stop)
        journal.until = self.signs.until
        self._system_metrics = system_metrics
        self.lost = 0
        """Number of entries that neither the journal nor the store accepted."""
        self.after_fork()
        _shippers.add(self)

    def after_fork(self) -> None:
        """Reset all state, including the thread, which does not survive a fork."""
        own = getattr(self, "_own", None)
        if own is not None:
            own.close()
        self._others = RunsOfOthers()
        self._begin()
        self._system_metrics.end_all()  # the runs are the parent's
        self.signs.begin()  # else all workers that are forked later would ask the store at once
        self._lock = threading.RLock()
        self._progress = threading.Condition(self._lock)
        self._wanted = 0
        self._stopping = False
        self._attempts = 0
        self._handed_over = False
        self._prepared = ""
        self._asked: Message | None = None
        self._asked_over = 0
        """Number of the connection over which the agent was asked; an agent that has died since does not answer."""
        self._handover_at: float | None = None
        self._thread: threading.Thread | None = None

    def _begin(self) -> None:
        """Ship from the first entry that the store has not accepted."""
        own = self._own = _Own(self._journal, self._others, self._kept)
        self._drain = Drain(self._delivery, lambda: (own,), on_failed=self._failed, on_taken=self._taken)

    def start(self) -> None:
        """Start the thread, unless it is running or was stopped."""
        with self._lock:
            if self._thread is None and not self._stopping:
                self._thread = threading.Thread(target=self._run, name="autogen_team-tracking", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # no thread can be started any more: the interpreter is shutting down
                    self._thread = None

    def flush(self, timeout: float, *, give_up_when_cut: bool = False) -> bool:
        """Wait at most `timeout` seconds until the store has all entries written so far; return whether it has them.

        With `give_up_when_cut`, a failed attempt ends the wait.
        """
        timeout = grace.bounded(timeout)
        until = self._journal.number
        if self._journal.acked >= until:
            return True
        with self._lock:
            if self.is_asking:  # the delivery thread cannot wait for itself
                return False
            self.start()  # an earlier start may have failed
            self._wanted = max(self._wanted, until)
            self._hurry()
            attempts = self._attempts

            def is_over() -> bool:
                failed = give_up_when_cut and self._attempts > attempts
                return self._journal.acked >= until or self._thread is None or failed

            self._progress.wait_for(is_over, timeout)
        return self._journal.acked >= until

    def deliver_now(self, body: str) -> None:
        """Deliver an entry that the journal could not store, after its other entries; on failure, the entry is lost."""
        self.flush(_LAST_PATIENCE, give_up_when_cut=True)
        fault = ""
        for pause in _TRIES:
            try:
                with self._drain.delivering:
                    self._delivery.deliver(self._kept([orjson.loads("{" + body)]))
            except Unreachable as error:
                fault = str(error)
                time.sleep(pause)
            else:
                return
        self._availability.failed(fault)
        self.lost += 1

    def sample(self, order: Message) -> None:
        """Start to log system metrics of a run; see `system_metrics.Order`."""
        with self._lock:
            self._system_metrics.begin(order)
            self._agent_samples({"op": "sample", "order": order})
        self.start()

    def sample_no_more(self, run_id: str) -> None:
        """Stop logging system metrics of a run."""
        with self._lock:
            self._system_metrics.end(run_id)
            self._agent_samples({"op": "sample no more", "run": run_id})

    def join(self, run_id: str, attempt: int) -> None:
        """Note that this process works for a run that another one has open, in this attempt of the job.

        If the process is a worker, a stop of the run ends this process too, and so does a later attempt.
        """
        self.works_for(run_id, attempt)
        if identity.worker() is not None and self.signs.is_wanted:
            with self._lock:
                self._others.join(run_id, attempt)
                self._tell_joined()
            self.start()
            self._journal.wake()

    def works_for(self, run_id: str, attempt: int) -> None:
        """Note that the entries of this process for a run belong to this attempt of the job."""
        with suppress(JournalError):  # a full disk; then nothing is held back after a later attempt
            self._journal.run_joined(run_id, attempt)

    def leave(self, run_id: str, attempt: int) -> None:
        """Undo `join`."""
        with self._lock:
            self._others.leave(run_id, attempt)
            self._tell_joined()

    def _tell_joined(self) -> None:
        if self._handed_over:
            self._agent.send({"op": "joined", "runs": self._others.joined})

    def _agent_samples(self, message: Message) -> None:
        if self._handed_over:
            self._agent.send(message)
        else:
            self._journal.wake()

    def stop(self, timeout: float) -> bool:
        """Deliver the rest within `timeout` seconds, and end the thread; return whether the store has everything."""
        deadline = time.monotonic() + grace.bounded(timeout)
        while not (delivered := self.flush(max(0.0, deadline - time.monotonic()))) or self.has_more:
            if self._thread is None or time.monotonic() >= deadline:
                break
        with self._lock:
            self._stopping = True
            thread = self._thread
        self._drain.stop()
        self._agent.end_wait()
        self._journal.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(grace.bounded(_LAST_PATIENCE))
        self._own.close()
        return delivered

    @property
    def is_asking(self) -> bool:
        """Whether the calling thread is the delivery thread."""
        return threading.current_thread() is self._thread

    @property
    def has_more(self) -> bool:
        """Whether the journal has entries that the store has not accepted."""
        return self._journal.acked < self._journal.number

    def pause(self, timeout: float) -> bool:
        """Block further deliveries once the current one is done; return False if that takes too long."""
        return self._drain.delivering.acquire(timeout=timeout)

    def resume(self) -> None:
        """Allow deliveries again after a `pause` that returned True."""
        self._drain.delivering.release()

    def _hurry(self) -> None:
        if self._handed_over:
            self._agent.send({"op": "flush", "until": self._wanted})
        self._drain.urgent.set()
        self._journal.wake()

    def _run(self) -> None:
        while not self._stopping:
            self._journal.wait(self._nap())
            try:
                self._work()
            except Exception:
                with suppress(Exception):  # a log handler of the job may raise, which must not end this thread
                    _report.exception("the journal could not be delivered; its entries stay on disk")
                self._drain.urgent.wait(LONGEST_PAUSE)

    def _nap(self) -> float | None:
        """Return the seconds to wait for the next entry; None for no limit."""
        if self.has_more:
            return 0.0
        has_runs = self._journal.open_runs() or self._runs_of_others()
        signs = self.signs.left if self.signs.is_wanted and has_runs else None
        due = [left for left in (signs, self._system_metrics.left) if left is not None]
        if not due:
            return None
        # A job that logs nothing is handed over, too, so that its heartbeats come from outside.
        return min(due) if self._prepared == "unable" else min(*due, _POLL)

    def _work(self) -> None:
        while not self._stopping:
            if self.signs.is_wanted and not self.signs.left and not self._availability.is_cut:
                with self._drain.delivering:
                    answers = self.signs.give(self._journal.open_attempts(), self._delivery.ids, self._runs_of_others())
                self._end_if_overtaken()
                if answers and self._journal.folder is None and self._others.joined:
                    # A worker that has logged nothing for so long gets a journal, so that the agent takes over: it
                    # reads the tags of a run once for all processes of this machine.
                    with suppress(JournalError):
                        self._journal.begin()
            if self._system_metrics.left == 0:
                with self._drain.delivering:
                    is_cut = self._availability.is_cut or self.signs.is_late
                    self._system_metrics.log(self._delivery.ids, is_cut=is_cut)
            if self._can_hand_over():
                self._listen()
            elif self.has_more:
                self._ship()
            else:
                break

    def _end_if_overtaken(self) -> None:
        joined = self._others.joined if identity.worker() is not None else {}
        for run_id, stop in self.signs.overtaken(self._journal.open_attempts(), joined, self._delivery.ids):
            self._system_metrics.end(run_id)
            self._end_job(stop)

    def _kept(self, entries: list[Entry]) -> list[Entry]:
        return self.signs.kept(entries, self._journal.attempts(), self._journal.joined, self._delivery.ids)

    def _runs_of_others(self) -> list[str]:
        """Return the runs that this process, if it is a worker, logs to and that another one has open."""
        return [] if identity.worker() is None else sorted(self._others.ids)

    def _ship(self) -> None:
        self._drain.urgent.clear()
        if self._wanted <= self._journal.acked:
            self._drain.urgent.wait(self._drain.gather)
        self._drain.ship()

    def _can_hand_over(self) -> bool:
        """Return whether the agent is ready to ship the journal; prepare it once the job has run long enough."""
        self._hear_before_handover()
        now = time.monotonic()
        if self._handover_at is None:
            self._handover_at = now + self._handover_after
        if now < self._handover_at or self._prepared == "unable" or not self._agent.is_connected():
            return False
        if not self._prepared or self._asked_over != self._agent.connections:
            store = self._store()
            self._prepared = "unable" if store is None else "asked"
            self._asked, self._asked_over = store, self._agent.connections
            if store is not None:
                self._agent.send({"op": "prepare", "store": store})
        return self._prepared == "ready"

    def _hear_before_handover(self) -> None:
        with suppress(OSError):
            for message in self._agent.messages(0.0):
                if message["op"] in ("ready", "unable"):
                    self._prepared = message["op"]
                elif message["op"] in ("stop", "silence"):
                    self._hear(message)

    def _listen(self) -> None:
        """Hand the journal over, and follow the agent's messages until it ends or returns the journal."""
        self._own.close()
        with self._lock:
            self._agent.send(
                {
                    "op": "take",
                    "store": self._asked,
                    "after": self._journal.acked,
                    "ids": self._delivery.ids,
                    "runs": self._journal.open_attempts(),
                    "others": sorted(self._others.logged),
                    "joined": self._others.joined,
                    "opened": self._journal.attempts(),
                    "works_for": self._journal.joined,
                    "until": self.signs.until,
                    "is_worker": identity.worker() is not None,
                    "pid": identity.job(),
                    "grace": stopping.seconds_to_kill(),
                    "heartbeat": self.signs.every,
                    "given": self.signs.given,
                    "sampled": self._system_metrics.orders,
                }
            )
            self._handed_over = True
            if self._wanted > self._journal.acked:
                self._hurry()
        try:
            while not self._stopping and self._handed_over:
                for message in self._agent.messages(None):
                    self._hear(message)
        except OSError:
            self._agent.is_connected()  # starts another agent
        finally:
            with self._lock:
                self._handed_over, self._prepared = False, ""
                self._handover_at = None
                self._begin()
            self._drain.is_stopped = self._stopping

    def _hear(self, message: Message) -> None:
        match message:
            case {"op": "acked", "number": int(number)}:
                self._journal.ack(number)
                self._taken()
            case {"op": "failed", "reason": str(reason)}:
                self._failed(reason)
                self._agent.send({"op": "login", "store": self._store()})  # the job may have renewed a token
            case {"op": "say", "text": str(text)}:
                _report.error("%s", text)
            case {"op": "silence", "text": str(text)}:
                with activity.unnoticed():
                    _report.warning("%s", text)
            case {"op": "stop", "reason": str(reason), "kills": bool(kills)}:
                stopping.end_job(reason, kills=kills)
            case {"op": "yours"}:
                self._handed_over = False

    def _end_job(self, stop: Stop) -> None:
        """End the job, and tell the agent the reason, because the agent closes the run if the job is killed."""
        if self._agent.is_connected():
            self._agent.send({"op": "asked to end", "reason": stop.reason})
        stopping.end_job(stop.reason, kills=stop.kills)

    def _taken(self) -> None:
        waiting = self._journal.number - self._journal.acked
        self._availability.answered(f"; {waiting} entries wait" if self._availability.is_cut else "")
        with self._lock:
            self._progress.notify_all()

    def _failed(self, reason: str) -> None:
        self._availability.failed(reason)
        self._journal.sync()
        with self._lock:
            self._attempts += 1
            self._progress.notify_all()


class _Held(threading.local):
    """Shippers that the calling thread has paused for its fork; two threads may fork at the same time."""

    shippers: tuple[Shipper, ...] = ()


_held = _Held()


def _before_fork() -> None:
    _held.shippers = tuple(shipper for shipper in _shippers if shipper.pause(_FORK_PATIENCE))


def _after_fork_in_parent() -> None:
    for shipper in _held.shippers:
        shipper.resume()
    _held.shippers = ()


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
