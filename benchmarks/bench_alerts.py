"""Compare how long `notify` blocks its caller with plyer on the same bus.

Needs `dbus-daemon`, and `notify-send` for plyer. If plyer cannot be imported, it is installed into a temporary folder
(`pip install --target`). The bus and the notification daemon are separate processes. Our calls and plyer's alternate,
and the figures are medians of rounds. While the daemon hangs, plyer is called only with `--hang-plyer`, and only once,
because the call takes 25 s.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autogen_team._alerts.delivery import Delivery
from autogen_team.io.services import AlertsService
from report import Row, show

BUS = """<busconfig><type>session</type><listen>unix:tmpdir=/tmp</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"""

DAEMON = """
import sys
from jeepney import HeaderFields, message_bus, new_method_return
from jeepney.io.blocking import open_dbus_connection
connection = open_dbus_connection()
connection.send_and_get_reply(message_bus.RequestName("org.freedesktop.Notifications"))
print("ready", flush=True)
while True:
    message = connection.receive()
    member = message.header.fields.get(HeaderFields.member)
    if member == "GetCapabilities":
        connection.send(new_method_return(message, "as", (["body", "body-markup"],)))
    elif member == "GetServerInformation":
        connection.send(new_method_return(message, "ssss", ("bench", "us", "1", "1.2")))
    elif member == "Notify" and sys.argv[1] == "ok":
        connection.send(new_method_return(message, "u", (1,)))
"""


@contextlib.contextmanager
def running(*command, **options):
    """Run a process that prints one line when it is ready, and yield that line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextlib.contextmanager
def session(mode):
    """Run a bus with a notification daemon, and make it the session bus."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as configuration:
        configuration.write(BUS)
        configuration.flush()
        command = ["dbus-daemon", f"--config-file={configuration.name}", "--nofork", "--nopidfile", "--print-address"]
        with running(*command, stderr=subprocess.DEVNULL) as address:
            os.environ["DBUS_SESSION_BUS_ADDRESS"] = address
            with running(sys.executable, "-c", DAEMON, mode):
                yield


def plyer(folder):
    """Return a function that calls plyer's `notify`; install plyer into the folder if it cannot be imported."""
    try:
        import plyer
    except ImportError:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "plyer==2.1.0"]
        subprocess.run(command, check=True)
        sys.path.append(folder)
        import plyer
    return lambda: plyer.notification.notify(title="done", message="model trained", app_name="bench", timeout=5)


def deliver():
    """Return a delivery as the service creates it."""
    return Delivery(AlertsService(app_name="bench", timeout=5, flush_timeout=0.001))


def milliseconds(call):
    """Return the milliseconds that a call takes."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def healthy(rounds, calls, theirs):
    """Return the median times of delivered alerts, ours and plyer's."""
    alerts = deliver()
    alerts.notify("done", "model trained")
    theirs()
    medians = []
    for _ in range(rounds):
        pairs = [
            (milliseconds(lambda: alerts.notify("done", "model trained")), milliseconds(theirs)) for _ in range(calls)
        ]
        medians.append([statistics.median(side) for side in zip(*pairs, strict=True)])
    flood = milliseconds(lambda: [alerts.notify(str(number), "") for number in range(1000)])
    print(f"a thousand alerts in {flood / 1000:.2f} s")
    alerts.stop()
    return [statistics.median(side) for side in zip(*medians, strict=True)]


def hanging(rounds, calls, theirs):
    """Return the median time of an alert while the daemon is known to hang; the alerts are printed to devnull."""
    alerts = deliver()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        first = milliseconds(lambda: alerts.notify("done", "model trained"))
        medians = [
            statistics.median(milliseconds(lambda: alerts.notify("done", "model trained")) for _ in range(calls))
            for _ in range(rounds)
        ]
    print(f"the first alert to the hanging daemon: {first:.0f} ms; stop after that: {milliseconds(alerts.stop):.1f} ms")
    if theirs is not None:
        print(f"plyer, for each alert: {milliseconds(theirs):.0f} ms")
    return statistics.median(medians)


def main():
    """Measure and print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--hang-plyer", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        theirs = plyer(folder)
        with session("ok"):
            delivered, plyers = healthy(arguments.rounds, arguments.calls, theirs)
        with session("hang"):
            printed = hanging(arguments.rounds, arguments.calls, theirs if arguments.hang_plyer else None)
    show(
        [
            Row("notify, delivered", delivered, plyers, "plyer, delivered", "ms", 0.5),
            Row("notify, delivered", delivered, 2.0, "our target", "ms", 1.0),
            Row("notify, daemon hangs", printed, plyers, "plyer, delivered", "ms", 0.05),
            Row("notify, daemon hangs", printed, 0.1, "our target", "ms", 1.0),
        ]
    )


if __name__ == "__main__":
    main()
