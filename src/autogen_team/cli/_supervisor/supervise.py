"""The supervising process: starts the job as its user would, forwards its output and our signals, and waits.

It does not load MLflow. The keeper, a separate process, opens and closes the run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from autogen_team._process import Undo, activity
from autogen_team._process.streams import SUPERVISED
from autogen_team.cli import _look
from autogen_team.cli._supervisor import ending, forwarding, keeping, target
from autogen_team.cli._supervisor.answering import Answers
from autogen_team.cli._supervisor.bootstrap import sitecustomize as bootstrap
from autogen_team.cli._supervisor.relay import Relay
from autogen_team.cli._supervisor.wire import End, OpenRun, Order, Ready

if TYPE_CHECKING:
    from autogen_team.cli._supervisor.keeping import Keeper
    from autogen_team.cli._supervisor.terminal import Terminal
    from autogen_team.cli._supervisor.transcript import Transcript

_EXPERIMENT_ID, _EXPERIMENT_NAME = "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"
_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for a job whose run cannot be opened."""


def supervise(order: Order) -> NoReturn:
    """Execute the order, and exit as the job did: with its status, or 128 plus the signal that ended it."""
    words = target.command_line(order)
    needs_run = order.is_command or not target.takes_bootstrap() or "MLFLOW_RUN_ID" in os.environ
    needs_run |= order.job is not None  # another process may have this job's run
    keeper = keeping.started()
    ready = keeper.begin(order, needs_run=needs_run)
    run = keeper.run() if needs_run else None
    try:
        job = _Job(order, words, ready, keeper, run)
    except OSError as error:  # for example, a script without a shebang line
        _look.say("error", f"{words[0]!r} cannot be executed: {error.strerror}", "bold red")
        keeper.close(End(0, target.NOT_EXECUTABLE, time.time()))
        raise SystemExit(target.NOT_EXECUTABLE) from None
    status = job.wait()
    refused = keeper.close(job.end(status))
    if refused:
        raise SystemExit(refused)
    if job.was_interrupted and status in (128 + signal.SIGINT, -signal.SIGINT):
        # Like the key without us: a shell script that runs us ends too, and so does the reader of our output.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.killpg(os.getpgrp(), signal.SIGINT)
    raise SystemExit(status if status >= 0 else 128 - status)


class _Job:
    """The process of the job, with all connections between it and us."""

    def __init__(self, order: Order, words: list[str], ready: Ready, keeper: Keeper, run: OpenRun | None) -> None:
        self._name = target.name(order)
        self._is_command = order.is_command
        self._keeper = keeper
        self._transcript: Transcript | None = None
        terminals = [number for number in (1, 2) if order.is_kept and os.isatty(number)]
        self._terminal: Terminal | None = None
        if terminals:
            from autogen_team.cli._supervisor.terminal import Terminal

            self._terminal = Terminal(terminals[0])
        self._kills = ending.kills_for_memory()
        self._signal: int | None = None
        self._asking = ending.asks_to_end() | {signal.SIGINT}
        """Signals that ask the job to end."""
        self._ended_at = 0.0
        self._watch_no_more: Undo = lambda: None
        if ready.shown is not None:
            _look.say("run", f"recording {self._name}; to view it: {ready.shown}", "bold")
        self._leads = self._terminal is not None
        """Whether the job leads its own session, where keys of our terminal do not reach it directly."""
        self._signals = forwarding.passed_on(stops=self._leads) | {signal.SIGCHLD}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        self._answers = Answers(keeper)
        environment = _environment(ready, run, words)
        if not order.is_command and target.takes_bootstrap():
            environment |= _bootstrap(self._answers.address)
        self._process, sources = self._start(order, words, environment)
        self.pid = self._process.pid
        keeper.say(job=self.pid, at=time.time(), leads=self._leads, folder=self._answers.folder)
        if order.is_kept:
            # Loaded while the job starts: compiling the patterns of secrets takes a tenth of a second.
            from autogen_team._redact import values
            from autogen_team.cli._supervisor.transcript import Transcript

            values.add(ready.secrets)
            self._transcript = Transcript()
        self._sources = sources
        self._relays: list[Relay] = []
        self._answers.start()
        keeper.on_run, keeper.on_failure = self._run_opened, self._run_failed
        if run is None:
            keeper.listen()
        else:
            self._run_opened(run)

    def _start(
        self, order: Order, words: list[str], environment: dict[str, str]
    ) -> tuple[subprocess.Popen[bytes], list[tuple[str, int, int]]]:
        """Start the job; return it with its outputs: a name, the descriptor to read from and our own to write to."""
        streams: dict[str, int] = {}
        sources: list[tuple[str, int, int]] = []
        terminals = [number for number in (1, 2) if order.is_kept and os.isatty(number)]
        if self._terminal is not None:
            sources.append(("terminal", self._terminal.main, terminals[0]))
            if self._terminal.is_fed:
                streams["stdin"] = self._terminal.child
        for number, name in ((1, "stdout"), (2, "stderr")) if order.is_kept else ():
            if number in terminals and self._terminal is not None:
                streams[name] = self._terminal.child
            elif number == 2 and "stdout" in streams and not terminals and os.path.sameopenfile(1, 2):
                streams[name] = streams["stdout"]  # as with 2>&1: one pipe keeps the order of the two
            else:
                source, streams[name] = os.pipe()
                sources.append((name, source, number))
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                words,
                stdin=streams.get("stdin"),
                stdout=streams.get("stdout"),
                stderr=streams.get("stderr"),
                close_fds=False,  # descriptors opened by the shell are for the job; the system closes our own
                env=environment,
                start_new_session=self._terminal is not None,
                preexec_fn=self._become_job,  # noqa: PLW1509 - no threads yet
            )
        finally:
            for descriptor in set(streams.values()):
                os.close(descriptor)
        return process, sources

    def _become_job(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self._terminal is not None:
            self._terminal.become_controlling()

    def _relay(self, name: str, source: int, target: int) -> Relay:
        assert self._transcript is not None
        transcript = self._transcript

        def show(data: bytes) -> None:
            activity.note()
            transcript.add(name, data)

        return Relay(name, source, target, show)

    def wait(self) -> int:
        """Wait for the job and all its output; return its status, or the negative number of a signal."""
        with self._terminal.feed() if self._terminal else nullcontext():
            # Our terminal is raw from here on; before, it would convert line ends that the job's has converted.
            self._relays = [self._relay(*source) for source in self._sources]
            status = self._wait_for_end()
            self._ended_at = time.time()
            # Sent before the rest of the output, which a slow reader may delay: the agent does not wait for that.
            self._keeper.say(gone=self.pid)
            for number in self._signals:  # signals are now meant for us
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            for one in self._relays:
                one.finish()
        for fault in [one.fault for one in self._relays if one.fault]:
            _look.say("warning", f"output of the job is lost: {fault}", "yellow")
        return status

    def end(self, status: int) -> End:
        """Complete the transcript, and return how the job ended."""
        self._watch_no_more()
        if self._keeper.wait_for_run() and self._transcript is not None:
            self._transcript.close()
        self._answers.close()
        lacked_memory = ending.kills_for_memory() > self._kills
        return End(self.pid, status, self._ended_at, self._signal, lacked_memory, self._answers.said)

    @property
    def was_interrupted(self) -> bool:
        """Whether the interrupt key was pressed in the job's terminal."""
        return self._terminal is not None and self._terminal.was_interrupted

    def _wait_for_end(self) -> int:
        while True:
            number, is_from_system = forwarding.wait(self._signals)
            if number == signal.SIGCHLD:
                status = self._process.poll()
                if status is not None:
                    return status
            elif number in (signal.SIGWINCH, signal.SIGCONT):
                if self._terminal is not None:
                    self._terminal.take()
            elif number == signal.SIGTSTP:
                self._stop()
            elif self._leads or not is_from_system:  # otherwise the system sent the signal to the job too
                self._send(number)

    def _send(self, number: int) -> None:
        if number in self._asking:
            if self._signal is None:
                self._keeper.say(asked=time.monotonic())
            self._signal = number
        if number == signal.SIGINT and self._leads and self._is_command:
            os.killpg(self.pid, number)  # as a terminal does
        else:
            self._process.send_signal(number)

    def _stop(self) -> None:
        """Stop the job, which is in another session, and ourselves; both continue together."""
        assert self._terminal is not None
        with forwarding.stopped({self.pid} | self._terminal.groups()):
            self._terminal.give_back()
            # The system ignores the signal if no shell can continue us.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTSTP])
            os.kill(os.getpid(), signal.SIGTSTP)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTSTP])
            self._terminal.take()

    def _run_opened(self, run: OpenRun) -> None:
        if run.link is not None:
            _look.say("run", f"recording {self._name} at {run.link}", "bold")
        if run.stall_after is not None:
            self._watch_no_more = self._watch(run, run.stall_after)
        if self._transcript is None:
            return
        if run.keeps_log:
            self._transcript.belongs_to(run.run_id, Path(run.state), masked=run.masks, attempt=run.attempt)
        else:
            self._transcript.discard()

    def _watch(self, run: OpenRun, stall_after: float) -> Undo:
        """Report output to the agent as progress, as the job itself does for logged data."""
        from autogen_team._process import identity
        from autogen_team._ship import watched

        identity.keep_for(self.pid)
        watched.tell_no_stacks()
        undo = watched.start(Path(run.state), watched.Limits(stall_after))
        watched.join(run.run_id, self._name)
        return undo

    def _run_failed(self) -> None:
        """End the job, because its run cannot be opened."""
        self._process.send_signal(signal.SIGTERM)
        timer = threading.Timer(_GRACE, self._process.send_signal, [signal.SIGKILL])
        timer.daemon = True
        timer.start()


def _environment(ready: Ready, run: OpenRun | None, words: list[str]) -> dict[str, str]:
    """Return the environment of the job `words`, in which a nested supervisor opens its own run."""
    found = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AUTOGEN_TEAM_RUN_") and name != "AUTOGEN_TEAM_WORKER_OF"
    }
    found |= {**ready.environment, SUPERVISED: "1"}
    if run is not None:
        # `mlflow run` refuses an experiment that is given both by id and by name, even in variables.
        found.pop(_EXPERIMENT_NAME, None)
        names_one = any(word.startswith("--experiment-") for word in words)
        found |= {name: value for name, value in run.variables.items() if name != _EXPERIMENT_ID or not names_one}
    return found


def _bootstrap(address: str) -> dict[str, str]:
    """Return the variables that make Python load the bootstrap at startup; the bootstrap removes them."""
    folder = str(Path(bootstrap.__file__).parent)
    path = os.environ.get("PYTHONPATH")
    given = {} if path is None else {bootstrap.PATH: path}
    return {**given, bootstrap.ADDRESS: address, "PYTHONPATH": os.pathsep.join(filter(None, (folder, path)))}
