"""Check whether alerts can be delivered, without sending one."""

import contextlib
import socket
import threading

import pytest
from jeepney import HeaderFields, MessageType, message_bus, new_method_return
from jeepney.io.blocking import open_dbus_connection

from autogen_team._alerts import reach
from autogen_team._alerts.channel import NoAnswerError, UndeliveredError
from autogen_team._alerts.remote import open_channels


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Remove the proxy variables of the machine."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def notification_daemon(bus):
    """Return a function that starts a daemon that answers or hangs; it returns the list of requests."""
    over, threads = threading.Event(), []

    def start(*, hangs=False):
        asked = []
        connection = open_dbus_connection(bus)
        name = message_bus.RequestName("org.freedesktop.Notifications")
        assert connection.send_and_get_reply(name).body == (1,)

        def serve():
            with contextlib.closing(connection):
                while not over.is_set():
                    with contextlib.suppress(TimeoutError):
                        message = connection.receive(timeout=0.02)
                        if message.header.message_type is MessageType.method_call:
                            asked.append(message.header.fields[HeaderFields.member])
                            if not hangs:
                                who = ("wren", "example.org", "1.2", "1.2")
                                connection.send(new_method_return(message, "ssss", who))

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return asked

    yield start
    over.set()
    for thread in threads:
        thread.join()


def endpoint_of(url):
    """Return the endpoint that the channel of a URL connects to."""
    (channel,) = open_channels([url], "tests")
    return reach.endpoint(channel)


def test_the_daemon_is_identified_without_a_notification(notification_daemon):
    """The check sends one query and no notification."""
    asked = notification_daemon()

    assert reach.desktop(system="linux") == "wren 1.2 (example.org)"
    assert asked == ["GetServerInformation"]


def test_a_hanging_daemon_is_distinguished_from_a_missing_one(notification_daemon, monkeypatch):
    """A hanging daemon raises a different error from a missing one."""
    monkeypatch.setattr(reach, "_ANSWER_WITHIN", 0.2)
    notification_daemon(hangs=True)

    with pytest.raises(NoAnswerError, match="did not answer within"):
        reach.desktop(system="linux")


@pytest.mark.usefixtures("bus")
def test_a_bus_without_a_daemon_is_an_error():
    """The error says that there is no notification daemon."""
    with pytest.raises(UndeliveredError, match="no notification daemon"):
        reach.desktop(system="linux")


def test_a_machine_without_a_bus_is_an_error(monkeypatch):
    """The error distinguishes an unset variable from an unreachable bus."""
    with pytest.raises(UndeliveredError, match="DBUS_SESSION_BUS_ADDRESS is not set"):
        reach.desktop(system="linux")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere/bus")
    with pytest.raises(UndeliveredError, match="cannot be reached"):
        reach.desktop(system="linux")


def test_other_systems_have_a_command(tmp_path, monkeypatch):
    """The command is looked up, not run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UndeliveredError, match="osascript"):
        reach.desktop(system="darwin")

    command = tmp_path / "osascript"
    command.write_text("#!/bin/false\n")
    command.chmod(0o755)
    assert reach.desktop(system="darwin") == "osascript is installed"


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("json://example.org/x", "example.org:80"),
        ("jsons://example.org/x", "example.org:443"),
        ("json://example.org:8080/x", "example.org:8080"),
        ("mailtos://user:pass@example.org?smtp=mail.example.org", "mail.example.org:587"),
        ("ntfy://topic", "ntfy.sh:443"),
        ("ntfys://ntfy.example.org/topic", "ntfy.example.org:443"),
        ("discord://0000000000/aaaaaaaaaaaaaaaaaaaaaaaa", "discord.com:443"),
        ("slack://T00000000/B00000000/aaaaaaaaaaaaaaaaaaaaaaaa/#general", "hooks.slack.com:443"),
        ("workflows://example.org:443/workflow/signature", "example.org:443"),
        ("mailgun://user@example.org/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbb-cccccccc", "None"),
        ("rsyslog://example.org", "None"),
    ],
)
def test_where_a_channel_connects_to(url, where):
    """The endpoint is known if the plugin has it; the domain of a mail service is not a host."""
    assert str(endpoint_of(url)) == where


def test_behind_a_proxy_only_the_proxy_is_checked(monkeypatch):
    """Behind a proxy, the proxy is checked and named."""
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pass@proxy.example.org:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example.org")

    assert str(endpoint_of("jsons://example.org/x")) == "the proxy proxy.example.org:3128"
    assert str(endpoint_of("jsons://inside.example.org/x")) == "inside.example.org:443"


def test_a_connection_check_sends_nothing(closed_port):
    """The check connects and closes the connection; a closed port is an error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        reach.connect(reach.Endpoint("127.0.0.1", listener.getsockname()[1]), 5.0)
        with listener.accept()[0] as connection:
            assert connection.recv(1) == b""

    with pytest.raises(ConnectionRefusedError):
        reach.connect(reach.Endpoint("127.0.0.1", closed_port), 5.0)
