"""`autogen-team notify`."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

NOTIFY = ("-m", "autogen_team", "notify", "disk full", "91% of /data")
NO_DESKTOP = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere/bus"}


@pytest.fixture
def web_hook():
    """Return the URL of a web hook and the list of received requests."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}/secret-path", got
    server.shutdown()
    server.server_close()


def test_each_channel_has_a_row(run_python, web_hook):
    """One channel delivers and one gives its error; the URL is masked; one delivery is a success."""
    url, got = web_hook

    status, out, err = run_python(*NOTIFY, "--level", "warning", AUTOGEN_TEAM_ALERTS_URLS=url, **NO_DESKTOP)

    assert status == 0, err
    header, desktop, hook = out.splitlines()
    assert header.split() == ["channel", "delivered", "ms", "why", "not"]
    assert desktop.split()[:2] == ["desktop", "no"]
    assert "bus" in desktop
    assert hook.split()[1] == "yes"
    assert "secret-path" not in out + err
    assert (got[0]["title"], got[0]["message"], got[0]["type"]) == ("disk full", "91% of /data", "warning")


def test_nothing_delivered_is_status_1(run_python):
    """Scripts and health checks can use the status."""
    status, out, _ = run_python(*NOTIFY, "--json", **NO_DESKTOP)

    assert status == 1
    (outcome,) = json.loads(out)
    assert (outcome["channel"], outcome["delivered"]) == ("desktop", False)
    assert outcome["reason"]


def test_disabled_alerts_are_printed(run_python):
    """Disabled alerts are printed on the console."""
    status, out, _ = run_python(*NOTIFY, "--set", "alerts.enable=false")

    assert status == 0
    assert out.splitlines()[0] == "[autogen_team] disk full: 91% of /data"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "loud"], "'loud'"),
        (["--set", "alerts.urls=nonsense://secret-token"], "is unknown to Apprise"),
    ],
)
def test_an_invalid_command_is_one_line_and_status_2(run_python, options, message):
    """No traceback is printed, and the secret is not shown."""
    status, out, err = run_python(*NOTIFY, *options)

    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "secret-token" not in err


def test_json_is_valid_although_an_alert_is_printed(run_python):
    """The printed alert goes to stderr."""
    status, out, err = run_python(*NOTIFY, "--set", "alerts.enable=false", "--json")

    assert status == 0
    assert [outcome["channel"] for outcome in json.loads(out)] == ["console"]
    assert "[autogen_team] disk full" in err
