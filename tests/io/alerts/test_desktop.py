"""A real notification daemon on a virtual screen: the popups, and the daemon's history."""

import json
import os
import shutil
import subprocess

import pytest
from PIL import Image

PROGRAMS = ("dbus-daemon", "dunst", "dunstctl", "Xvfb", "import")
MISSING = [program for program in PROGRAMS if shutil.which(program) is None]

pytestmark = [
    pytest.mark.desktop,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}: make system-deps"),
]

DUNSTRC = """
[global]
    font = DejaVu Sans 12
    width = 500
    height = 300
    origin = top-right
    offset = 20x20
    format = "<b>%a</b> | %s\\n%b"
    markup = full
    notification_limit = 8
    history_length = 2000
    sort = no
[urgency_normal]
    background = "#204060"
[urgency_critical]
    background = "#900000"
"""
NORMAL, CRITICAL = (0x20, 0x40, 0x60), (0x90, 0, 0)


@pytest.fixture
def screen(monkeypatch):
    """Run a virtual screen on a free display number."""
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1024x640x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL) as server:
        os.close(writer)
        with os.fdopen(reader) as answer:
            monkeypatch.setenv("DISPLAY", f":{answer.readline().strip()}")
        yield
        server.terminate()


@pytest.fixture
def dunst(bus, screen, tmp_path, wait_until):
    """Run dunst on the bus; return a function that closes its popups and returns its history, oldest first."""
    (tmp_path / "dunstrc").write_text(DUNSTRC)
    with subprocess.Popen(["dunst", "-conf", tmp_path / "dunstrc"], stderr=subprocess.DEVNULL) as server:

        def control(*command):
            return subprocess.run(["dunstctl", *command], capture_output=True, text=True, check=False, timeout=20)

        def shown():
            return int(control("count", "displayed").stdout)

        def history(expected):
            control("close-all")
            entries = []

            def complete():
                [entries[:]] = json.loads(control("history").stdout)["data"]
                return len(entries) == expected

            wait_until(complete), entries
            return [{name: fact["data"] for name, fact in entry.items()} for entry in reversed(entries)]

        wait_until(lambda: control("is-paused").returncode == 0)
        history.shown = shown
        yield history
        server.terminate()


def screenshot(path):
    """Save an image of the screen."""
    subprocess.run(["import", "-window", "root", path], check=True, timeout=20)
    return path


def coloured(path, colour):
    """Return the number of pixels of that colour in an image."""
    with Image.open(path) as image:
        return dict(map(reversed, image.convert("RGB").getcolors(maxcolors=2**24))).get(colour, 0)


def test_a_real_daemon_shows_the_alerts(dunst, delivery, artifacts, capfd, wait_until):
    """The daemon's history has names, texts, urgencies and timeouts, and the popups are on the screen."""
    alerts = delivery(app_name="my training", timeout=30)
    alerts.notify("training finished", "loss < 0.1 & acc > 0.9\n<b>no markup of ours</b>")
    alerts.notify("training <b>failed</b> & stopped", "ValueError: bad shape 🚀", "error")
    delivery(app_name="my training", timeout=0).notify("stays", "until it is dismissed", "warning")
    wait_until(lambda: dunst.shown() == 3)
    wait_until(lambda: coloured(screenshot(artifacts / "desktop.png"), NORMAL) > 10_000)
    first, second, third = dunst(3)
    assert {entry["appname"] for entry in (first, second, third)} == {"my training"}
    assert first["summary"] == "training finished"
    assert first["body"] == "loss &lt; 0.1 &amp; acc &gt; 0.9\n&lt;b&gt;no markup of ours&lt;/b&gt;"
    assert second["summary"] == "training <b>failed</b> & stopped"
    assert coloured(artifacts / "desktop.png", CRITICAL) > 5000  # pixels: only the error is critical
    assert (first["timeout"], third["timeout"]) == (30_000_000, 0)  # microseconds
    assert capfd.readouterr().out == ""


def test_a_real_daemon_takes_any_text(dunst, delivery, capfd):
    """The history contains texts that make other clients fail or crash."""
    alerts = delivery()
    texts = ["", None, 42, "-h", "a\0b", "\ud83d", "x" * 200_000, "\x1b[31mred", "one\ntwo"]
    for text in texts:
        alerts.notify(text, text)
    assert len(dunst(len(texts))) == len(texts)
    assert capfd.readouterr().out == ""


def test_a_real_daemon_gets_a_thousand_alerts(dunst, delivery, capfd):
    """No alert of a burst is lost: what the daemon did not confirm in time is printed."""
    alerts = delivery(flush_timeout=20.0)
    for number in range(1000):
        alerts.notify(f"alert {number}", "")
    alerts.stop()
    printed = {line.removeprefix("[test] ").removesuffix(": ") for line in capfd.readouterr().out.splitlines()}
    shown = {entry["summary"] for entry in dunst(1000 - len(printed))} if len(printed) < 1000 else set()
    assert shown | printed == {f"alert {number}" for number in range(1000)}
