"""The supervisor's socket, where the job asks for its run and reports how it ends."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autogen_team.cli._supervisor.keeping import Keeper


class Answers:
    """Answers the job's requests, each on its own thread."""

    def __init__(self, keeper: Keeper) -> None:
        self.said: dict[str, Any] = {}
        """The job's report about its end."""
        self._keeper = keeper
        self.folder = tempfile.mkdtemp(prefix="autogen-team-")
        self.address = f"{self.folder}/job"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()

    def start(self) -> None:
        """Start to answer; earlier requests have been waiting."""
        threading.Thread(target=self._listen, name="autogen_team-answers", daemon=True).start()

    def close(self) -> None:
        """Remove the socket."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _listen(self) -> None:
        while True:
            connection = self._listener.accept()[0]
            threading.Thread(target=self._answer, args=(connection,), name="autogen_team-answer", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection, connection.makefile("rwb") as stream:
            stream.write(json.dumps(self._answer_to(json.loads(stream.readline()))).encode() + b"\n")

    def _answer_to(self, said: dict[str, Any]) -> dict[str, Any]:
        match said:
            case {"ask": "run"}:
                run = self._keeper.wait_for_run()
                return {} if run is None else run.joining
            case {"hide": list(secrets)}:
                from autogen_team._redact import values

                values.add(secrets)
                self._keeper.say(hide=secrets)
            case {"end": dict(end)}:
                self.said = end
        return {"done": True}
