"""Notifications that the Linux desktop receives on D-Bus, and errors if it receives none."""

import os
import socket
import sys
import threading

import pytest

from autogen_team._alerts.channel import Alert, NoAnswerError, UndeliveredError
from autogen_team._alerts.dbus import DBusDesktop, session_bus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="D-Bus is the desktop of Linux")


@pytest.fixture
def desktop():
    """Return a function that creates a desktop channel; channels are closed after the test."""
    made = []

    def desktop(app_name="test", timeout=None, **options):
        made.append(DBusDesktop(app_name, timeout, **options))
        return made[-1]

    yield desktop
    for one in made:
        one.close()


def test_the_alert_is_seen_on_the_bus(daemon, desktop):
    """The daemon receives the application's name, title, body and icon."""
    running = daemon()
    desktop("my job").deliver(Alert("done", "model trained"))
    assert running.calls == [
        {
            "app": "my job",
            "icon": "dialog-information",
            "title": "done",
            "body": "model trained",
            "hints": {"urgency": ("y", 1)},
            "expire": -1,
        }
    ]


@pytest.mark.parametrize(("timeout", "expire"), [(None, -1), (0, 0), (1, 1000), (5, 5000), (10_000_000, 2**31 - 1)])
def test_the_timeout_is_seen_on_the_bus(daemon, desktop, timeout, expire):
    """None means the daemon's default, 0 is kept, seconds become milliseconds, and large values are capped."""
    running = daemon()
    desktop(timeout=timeout).deliver(Alert("done", ""))
    assert running.calls[0]["expire"] == expire


@pytest.mark.parametrize(
    ("level", "urgency", "icon"),
    [
        ("info", 1, "dialog-information"),
        ("success", 1, "emblem-default"),
        ("warning", 1, "dialog-warning"),
        ("error", 2, "dialog-error"),
    ],
)
def test_the_level_is_urgency_and_icon(daemon, desktop, level, urgency, icon):
    """An error has critical urgency, and each level has its own icon."""
    running = daemon()
    desktop().deliver(Alert("done", "", level))
    assert (running.calls[0]["hints"]["urgency"], running.calls[0]["icon"]) == (("y", urgency), icon)


@pytest.mark.parametrize(
    ("capabilities", "body"),
    [
        (("body", "body-markup"), "loss &lt; 0.1 &amp; \"acc\" &gt; '0.9' &lt;b&gt;"),
        (("body",), "loss < 0.1 & \"acc\" > '0.9' <b>"),
    ],
)
def test_the_body_is_escaped_where_markup_is_read(daemon, desktop, capabilities, body):
    """The body is escaped only for a daemon that parses markup; the title never is."""
    running = daemon(capabilities=capabilities)
    desktop().deliver(Alert("a < b & c", "loss < 0.1 & \"acc\" > '0.9' <b>"))
    assert (running.calls[0]["title"], running.calls[0]["body"]) == ("a < b & c", body)


def test_an_alert_without_a_title_shows_the_application(daemon, desktop):
    """The application's name becomes the title, because some daemons do not display an empty one."""
    running = daemon()
    desktop("my job").deliver(Alert("", "model trained"))
    assert running.calls[0]["title"] == "my job"


def test_one_connection_carries_all_alerts(daemon, desktop):
    """A thousand alerts share one connection."""
    running = daemon()
    channel = desktop()
    for number in range(20):
        channel.deliver(Alert(str(number), ""))
    assert len(running.calls) == 20
    assert len(running.connections) == 1


def test_a_daemon_that_hangs_is_left_after_its_time(daemon, desktop):
    """The channel's timeout bounds the wait, and the error names the cause."""
    daemon("hang")
    with pytest.raises(NoAnswerError, match=r"did not answer within 0\.1 s"):
        desktop(answer_within=0.1).deliver(Alert("done", ""))


def test_a_daemon_that_comes_back_gets_the_next_alert(daemon, desktop):
    """After a hang, a working daemon receives the next alert."""
    running = daemon("hang")
    channel = desktop(answer_within=0.1)
    with pytest.raises(NoAnswerError):
        channel.deliver(Alert("first", ""))
    running.mode = "ok"
    channel.deliver(Alert("second", ""))
    assert [call["title"] for call in running.calls] == ["first", "second"]


def test_a_daemon_that_refuses_is_quoted(daemon, desktop):
    """The reason contains the daemon's error."""
    daemon("error")
    with pytest.raises(UndeliveredError, match=r"refused: .*ExcessNotificationGeneration: .*too many"):
        desktop().deliver(Alert("done", ""))


def test_a_bus_without_a_daemon_is_the_reason(bus, desktop):
    """The reason says that no notification daemon runs."""
    with pytest.raises(UndeliveredError, match="no notification daemon on the session bus"):
        desktop().deliver(Alert("done", ""))


def test_a_missing_bus_is_the_reason(desktop):
    """Without a bus, as on most servers, the reason names the environment variable."""
    with pytest.raises(UndeliveredError, match="DBUS_SESSION_BUS_ADDRESS is not set"):
        desktop().deliver(Alert("done", ""))


@pytest.mark.parametrize("address", ["unix:path=/nowhere/at/all", "tcp:host=127.0.0.1,port=1", "nonsense"])
def test_a_bus_that_cannot_be_reached_is_an_undelivered_alert(desktop, monkeypatch, address):
    """For any value of the variable, the reason is one line."""
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    with pytest.raises(UndeliveredError, match=r"the session bus cannot be (reached|used)"):
        desktop().deliver(Alert("done", ""))


def test_a_bus_that_never_answers_is_left_after_its_time(desktop, monkeypatch, tmp_path):
    """A socket that accepts and never answers does not block the thread."""
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "bus"))
        mute.listen()
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")
        with pytest.raises(NoAnswerError):
            desktop(answer_within=0.1).deliver(Alert("done", ""))


def test_a_broken_connection_is_replaced(daemon, desktop):
    """After the bus has restarted, the next alert is delivered on a new connection."""
    running = daemon()
    channel = desktop()
    channel.deliver(Alert("first", ""))
    channel._connection.sock.shutdown(socket.SHUT_RDWR)
    channel.deliver(Alert("second", ""))
    assert [call["title"] for call in running.calls] == ["first", "second"]
    assert len(running.connections) == 2


def test_an_unreferenced_desktop_closes_its_connection(daemon):
    """A garbage-collected channel closes its connection, because its service may never be stopped."""
    daemon()
    channel = DBusDesktop("test", None)
    channel.deliver(Alert("done", ""))
    socket_ = channel._connection.sock
    del channel

    assert socket_.fileno() == -1


def test_without_jeepney_the_reason_is_its_name(desktop, monkeypatch, bus):
    """On other systems jeepney is not installed, and the reason names it."""
    monkeypatch.setitem(sys.modules, "jeepney.io.blocking", None)
    with pytest.raises(UndeliveredError, match="the package jeepney"):
        desktop().deliver(Alert("done", ""))


def test_it_works_in_any_thread(daemon, desktop):
    """A connection opened in one thread works in the next."""
    running = daemon()
    channel = desktop()
    for number in range(3):
        thread = threading.Thread(target=channel.deliver, args=(Alert(str(number), ""),))
        thread.start()
        thread.join(20)
    assert [call["title"] for call in running.calls] == ["0", "1", "2"]


def test_the_bus_of_systemd_is_found_without_the_variable(monkeypatch, tmp_path):
    """A job from cron or ssh finds the bus of the user's login session."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(UndeliveredError):
        session_bus()
    (tmp_path / "bus").touch()
    with pytest.raises(UndeliveredError):
        session_bus()
    (tmp_path / "bus").unlink()
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(os.fspath(tmp_path / "bus"))
        assert session_bus() == f"unix:path={tmp_path / 'bus'}"
