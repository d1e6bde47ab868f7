"""Never block, lose or raise: what the caller of `notify` sees while channels answer, refuse or hang."""

import asyncio
import logging
import sys
import threading
import time

import pytest

from autogen_team._alerts import delivery as delivery_module
from autogen_team._alerts.channel import Alert, NoAnswerError, RecordingChannel, UndeliveredError
from autogen_team._alerts.delivery import Delivery
from autogen_team.errors import ConfigurationError, MissingExtraError

PATIENCE = 20.0


class TestTheConsole:
    """Alerts that are disabled, or that no desktop can display."""

    def test_a_disabled_alert_is_one_line_on_stdout(self, delivery, capfd):
        """A disabled alert prints exactly its line on stdout and nothing on stderr."""
        delivery(enable=False, app_name="train").notify("done", "model trained")
        assert capfd.readouterr() == ("[train] done: model trained\n", "")

    def test_a_disabled_delivery_sends_nothing(self, delivery, daemon, endpoint):
        """Neither the desktop nor a URL receives a disabled alert."""
        running, server = daemon(), endpoint()
        alerts = delivery(enable=False, urls=(server.url,))
        alerts.notify("done", "model trained")
        alerts.stop()
        assert (running.calls, server.requests) == ([], [])

    def test_a_delivered_alert_is_not_printed(self, delivery, daemon, capfd):
        """An alert confirmed by the desktop is not printed."""
        running = daemon()
        delivery().notify("done", "model trained")
        assert [call["title"] for call in running.calls] == ["done"]
        assert capfd.readouterr() == ("", "")

    def test_without_a_desktop_the_alert_is_that_line(self, delivery, capfd):
        """A headless server prints each alert."""
        alerts = delivery()
        alerts.notify("first", "one")
        alerts.notify("second", "two", "error")
        assert capfd.readouterr().out == "[test] first: one\n[test] second: two\n"

    @pytest.mark.parametrize("address", [None, "unix:path=/nowhere/bus"])
    def test_a_missing_desktop_causes_no_warning(self, delivery, caplog, monkeypatch, address):
        """On a server, alerts go to the console, and the reason is logged at DEBUG."""
        if address is not None:
            monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
        with caplog.at_level(logging.DEBUG, logger="autogen_team"):
            delivery().notify("done", "")
        [record] = caplog.records
        assert (record.levelname, record.exc_info) == ("DEBUG", None)
        assert "session bus" in record.getMessage()

    def test_a_desktop_that_refuses_is_reported_once(self, delivery, daemon, caplog):
        """One warning per process gives the reason, without a traceback."""
        running = daemon("error")
        for _ in range(2):
            alerts = delivery()
            for number in range(3):
                alerts.notify(str(number), "")
        [record] = caplog.records
        assert (record.levelname, record.exc_info) == ("WARNING", None)
        assert "the notification daemon refused" in record.getMessage()
        assert running.calls

    def test_the_brief_form_is_for_the_console_alone(self, delivery, capfd):
        """Channels receive the whole message."""
        delivery(channels=[]).notify("train failed", "ValueError\n\nTraceback", "error", brief="ValueError")
        channel = RecordingChannel()
        delivery(channels=[channel]).notify("train failed", "ValueError\n\nTraceback", "error", brief="ValueError")
        assert capfd.readouterr().out == "[test] train failed: ValueError\n"
        assert [alert.message for alert in channel.alerts] == ["ValueError\n\nTraceback"]

    def test_the_brief_form_of_a_repeated_alert_has_the_count(self, delivery, capfd):
        """The count is appended to the brief form, as it is to the message."""
        alerts = delivery(channels=[], cooldown=60)
        for _ in range(3):
            alerts.notify("train failed", "whole", "error", brief="short")
        alerts.stop()
        assert capfd.readouterr().out == "[test] train failed: short\n[test] train failed: (2 more)\n"

    @pytest.mark.parametrize("mode", ["error", "hang"])
    def test_an_alert_that_the_daemon_does_not_confirm_is_printed(self, delivery, daemon, capfd, impatient, mode):
        """Alerts that the daemon refuses or does not answer are printed, once each."""
        running = daemon(mode)
        alerts = delivery(flush_timeout=0.1)
        for number in range(3):
            alerts.notify(str(number), "")
        alerts.stop()
        assert capfd.readouterr().out == "[test] 0: \n[test] 1: \n[test] 2: \n"
        assert running.calls[0]["title"] == "0"

    @pytest.mark.parametrize(
        "text",
        ["", None, 42, "a\0b", "\ud83d", "x" * 200_000, "\x1b[31mred", "one\ntwo", b"\xff", "-h", "🚀", object()],
    )
    def test_any_text_arrives_on_desktop_and_console(self, delivery, daemon, capfd, text):
        """No value raises, is lost, or prints a line that could be taken for another alert."""
        running = daemon()
        delivery().notify(text, text)
        assert len(running.calls) == 1
        delivery(enable=False).notify(text, text)
        first, *others = capfd.readouterr().out.splitlines()
        assert first.startswith("[test] ")
        assert all(line.startswith("    ") for line in others)

    @pytest.mark.parametrize("level", ["fatal", "INFO", "", None, 3])
    @pytest.mark.parametrize("enable", [True, False])
    def test_an_unknown_level_is_refused(self, delivery, level, enable):
        """An unknown level is a programming error: it is raised, and the message lists the levels."""
        with pytest.raises(ConfigurationError, match="use one of info, success, warning, error"):
            delivery(enable=enable).notify("done", "", level)

    def test_an_internal_error_does_not_reach_the_job(self, delivery, monkeypatch, capfd, caplog):
        """If our own code fails, the alert is printed and the job continues."""

        def fail(self, alert):
            raise RuntimeError("a bug")

        monkeypatch.setattr(delivery_module.Cooldown, "admit", fail)
        delivery().notify("done", "model trained")
        assert capfd.readouterr().out == "[test] done: model trained\n"
        assert "RuntimeError: a bug" in caplog.text


class TestWaiting:
    """How long `notify` and `flush` wait, and for which channels."""

    def test_a_hanging_desktop_is_waited_for_once(self, delivery, gated, capfd):
        """The first alert waits for a second at most; alerts during the hang do not wait."""
        desktop = gated(is_local=True)
        alerts = delivery(channels=[desktop], flush_timeout=0.001)
        started = time.monotonic()
        alerts.notify("first", "")
        first = time.monotonic() - started
        started = time.monotonic()
        for number in range(1000):
            alerts.notify(str(number), "")
        others = time.monotonic() - started
        assert 0.9 < first < 5
        assert others < 5  # seconds for all; waiting for each would take a thousand
        assert len(capfd.readouterr().out.splitlines()) == 1001

    def test_a_desktop_that_comes_back_is_used_again(self, delivery, gated, capfd, impatient, wait_until):
        """The late answer ends the hang; its alert has been printed and is not awaited again."""
        desktop = gated(is_local=True)
        alerts = delivery(channels=[desktop])
        alerts.notify("printed", "")
        desktop.gate.set()
        wait_until(lambda: not alerts._lanes[0].hangs)
        alerts.notify("shown", "")
        assert [alert.title for alert in desktop.alerts] == ["printed", "shown"]
        assert capfd.readouterr().out == "[test] printed: \n"

    def test_a_desktop_that_hangs_is_tried_with_one_alert_at_a_time(self, delivery, gated, impatient, wait_until):
        """During a hang no alerts queue up, so they do not all appear when it ends."""
        desktop = gated(is_local=True, error=NoAnswerError("no answer"))
        alerts = delivery(channels=[desktop])
        for number in range(10):
            alerts.notify(str(number), "")
        desktop.error = None
        desktop.gate.set()
        wait_until(lambda: alerts._lanes[0].worker.is_idle)
        assert [alert.title for alert in desktop.alerts] == ["0"]

    def test_a_remote_channel_is_not_waited_for(self, delivery, gated, capfd):
        """Without a desktop channel, `notify` returns while the remote channel still delivers."""
        remote = gated()
        alerts = delivery(channels=[remote])
        alerts.notify("done", "")
        assert remote.alerts == []
        remote.gate.set()
        assert alerts.flush(PATIENCE)
        assert remote.alerts == [Alert("done", "")]
        assert capfd.readouterr().out == ""

    def test_one_slow_channel_does_not_hold_up_another(self, delivery, gated, wait_until):
        """Each channel has its own worker."""
        slow, quick = gated(name="slow"), RecordingChannel(is_local=False)
        alerts = delivery(channels=[slow, quick])
        for number in range(5):
            alerts.notify(str(number), "")
        wait_until(lambda: len(quick.alerts) == 5)
        assert slow.alerts == []

    def test_flush_gives_up_after_its_timeout(self, delivery, gated):
        """`flush` returns whether all alerts were delivered in time."""
        remote = gated()
        alerts = delivery(channels=[remote])
        assert alerts.flush(0.0)
        alerts.notify("done", "")
        assert not alerts.flush(0.05)
        remote.gate.set()
        assert alerts.flush(PATIENCE)

    def test_flush_waits_only_for_earlier_alerts(self, delivery, gated, wait_until):
        """Alerts from other threads after the call do not prolong a flush."""
        first, second = gated(name="first"), gated(name="second")
        first.takes = lambda level: level == "info"
        second.takes = lambda level: level == "error"
        alerts = delivery(channels=[first, second], flush_timeout=0.001)
        alerts.notify("before", "", "info")
        flushed = []
        flusher = threading.Thread(target=lambda: flushed.append(alerts.flush(PATIENCE)))
        flusher.start()
        wait_until(lambda: alerts._changed._waiters)
        alerts.notify("after", "", "error")
        first.gate.set()
        flusher.join(PATIENCE)
        assert flushed == [True]
        assert not alerts.flush(0.0)

    def test_flush_waits_for_all_earlier_alerts_in_any_order(self, delivery, gated, monkeypatch):
        """`flush` also waits for an earlier alert that a later one has overtaken."""
        made, gate = threading.Event(), threading.Event()

        class Ticket(delivery_module._Ticket):
            def __init__(self, alert, waiting, *, awaited):
                super().__init__(alert, waiting, awaited=awaited)
                if alert.title == "overtaken":
                    made.set()
                    assert gate.wait(PATIENCE)

        monkeypatch.setattr(delivery_module, "_Ticket", Ticket)
        remote = gated()
        alerts = delivery(channels=[remote])
        thread = threading.Thread(target=alerts.notify, args=("overtaken", ""))
        thread.start()
        assert made.wait(PATIENCE)
        alerts.notify("first", "")
        gate.set()
        thread.join(PATIENCE)
        assert not alerts.flush(0.05)
        remote.gate.set()
        assert alerts.flush(PATIENCE)

    def test_ctrl_c_while_an_alert_is_handed_over_leaves_nothing_open(self, delivery, monkeypatch, capfd):
        """Channels that already have the alert deliver it; `flush` does not wait for the others."""

        def interrupt(ticket):
            raise KeyboardInterrupt

        channels = [RecordingChannel("first", is_local=False), RecordingChannel("second", is_local=False)]
        alerts = delivery(channels=channels)
        monkeypatch.setattr(alerts._lanes[1].worker, "submit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            alerts.notify("done", "")
        assert alerts.flush(PATIENCE)
        assert [len(channel.alerts) for channel in channels] == [1, 0]
        assert capfd.readouterr().out == ""


class TestConfirmation:
    """One confirming channel is enough; without any, the line is printed."""

    @pytest.mark.parametrize("desktop", [None, "no desktop"])
    @pytest.mark.parametrize("remote", [None, "no network"])
    def test_the_line_is_printed_only_if_no_channel_confirmed(self, delivery, capfd, desktop, remote):
        """The line is printed only if both the desktop and the remote channel fail."""
        channels = [
            RecordingChannel("desktop", fail_with=desktop),
            RecordingChannel("remote", is_local=False, fail_with=remote),
        ]
        alerts = delivery(channels=channels)
        alerts.notify("done", "model trained")
        assert alerts.flush(PATIENCE)
        lost = desktop is not None and remote is not None
        assert capfd.readouterr().out == ("[test] done: model trained\n" if lost else "")

    def test_the_line_comes_when_the_last_channel_gives_up(self, delivery, gated, capfd):
        """While one channel can still confirm, nothing is printed."""
        remote = gated(error=UndeliveredError("no network"))
        alerts = delivery(channels=[RecordingChannel("desktop", fail_with="no desktop"), remote])
        alerts.notify("done", "model trained")
        assert capfd.readouterr().out == ""
        remote.gate.set()
        assert alerts.flush(PATIENCE)
        assert capfd.readouterr().out == "[test] done: model trained\n"

    def test_with_a_remote_channel_a_missing_desktop_causes_no_warning(self, delivery, caplog):
        """A headless server with a web hook gets no warning."""
        channels = [RecordingChannel("desktop", fail_with="no desktop"), RecordingChannel("remote", is_local=False)]
        with caplog.at_level(logging.INFO, logger="autogen_team"):
            alerts = delivery(channels=channels)
            alerts.notify("done", "")
            assert alerts.flush(PATIENCE)
        assert caplog.records == []

    def test_a_remote_channel_that_fails_is_reported_once(self, delivery, caplog):
        """The reason is reported once, even if the desktop confirmed each alert."""
        channels = [RecordingChannel("desktop"), RecordingChannel("remote", is_local=False, fail_with="no network")]
        alerts = delivery(channels=channels)
        for number in range(10):
            alerts.notify(str(number), "")
        assert alerts.flush(PATIENCE)
        assert [record.getMessage() for record in caplog.records] == [
            "alerts: remote: no network; unconfirmed alerts are printed (reported once)"
        ]

    @pytest.mark.parametrize("error", [ZeroDivisionError("of all things"), SystemExit(1)], ids=repr)
    def test_an_unforeseen_error_of_a_channel_is_a_failure_like_any_other(self, delivery, gated, capfd, error):
        """A channel that raises any error or exits its thread has not confirmed, and is not awaited."""
        remote = gated(error=error)
        remote.gate.set()
        alerts = delivery(channels=[remote])
        alerts.notify("done", "")
        assert alerts.flush(PATIENCE)
        assert capfd.readouterr().out == "[test] done: \n"

    def test_a_log_handler_that_raises_loses_no_alert(self, delivery, capfd, monkeypatch):
        """The alert is printed even if reporting the failure raises."""

        class Broken(logging.Handler):
            def handle(self, record):
                raise RuntimeError("a bug of the job's")

        monkeypatch.setattr(logging.getLogger("autogen_team"), "handlers", [Broken()])
        alerts = delivery(channels=[RecordingChannel("remote", is_local=False, fail_with="no network")])
        alerts.notify("done", "")
        assert alerts.flush(PATIENCE)
        assert capfd.readouterr().out == "[test] done: \n"

    def test_an_alert_that_no_channel_takes_is_printed(self, delivery, endpoint, capfd):
        """On a server, an information is printed if the only web hook takes errors."""
        server = endpoint()
        alerts = delivery(urls=(f"error={server.url}",))
        alerts.notify("done", "")
        alerts.notify("failed", "", "error")
        assert alerts.flush(PATIENCE)
        assert [request["title"] for request in server.requests] == ["failed"]
        assert capfd.readouterr().out == "[test] done: \n"

    def test_desktop_and_url_both_get_the_alert(self, delivery, daemon, endpoint, capfd):
        """All configured channels receive the alert."""
        running, server = daemon(), endpoint()
        alerts = delivery(urls=(server.url,))
        alerts.notify("done", "model trained", "warning")
        assert alerts.flush(PATIENCE)
        assert running.calls[0]["title"] == server.requests[0]["title"] == "done"
        assert capfd.readouterr().out == ""

    def test_an_alert_beyond_the_queue_is_printed(self, delivery, gated, capfd, monkeypatch):
        """If a channel's queue is full, alerts are printed, and memory does not grow."""
        monkeypatch.setattr(delivery_module, "_CAPACITY", 2)
        remote = gated()
        alerts = delivery(channels=[remote])
        alerts.notify("0", "")
        assert remote.entered.wait(PATIENCE)
        for number in range(1, 5):
            alerts.notify(str(number), "")
        assert capfd.readouterr().out == "[test] 3: \n[test] 4: \n"
        remote.gate.set()
        assert alerts.flush(PATIENCE)
        assert [alert.title for alert in remote.alerts] == ["0", "1", "2"]


class TestManyCallers:
    """Threads and event loops."""

    def test_alerts_of_many_threads_all_arrive(self, delivery, daemon, capfd):
        """Each alert of eight threads is displayed or printed, and no alert is displayed twice."""
        running = daemon()
        alerts = delivery()

        def notify(thread):
            for number in range(25):
                alerts.notify(f"{thread}.{number}", "")

        threads = [threading.Thread(target=notify, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        printed = [line.removeprefix("[test] ").removesuffix(": ") for line in capfd.readouterr().out.splitlines()]
        shown = [call["title"] for call in running.calls]
        assert sorted({*printed, *shown}) == sorted(f"{thread}.{number}" for thread in range(8) for number in range(25))
        assert len(shown) == len(set(shown))

    def test_a_thousand_alerts_arrive(self, delivery, daemon, capfd):
        """No alert of a burst through a healthy desktop is lost."""
        running = daemon()
        alerts = delivery()
        for number in range(1000):
            alerts.notify(str(number), "")
        alerts.stop()
        printed = [line.removeprefix("[test] ").removesuffix(": ") for line in capfd.readouterr().out.splitlines()]
        assert sorted({*(call["title"] for call in running.calls), *printed}) == sorted(map(str, range(1000)))

    def test_a_thousand_alerts_to_a_web_hook_arrive_or_are_printed(self, delivery, endpoint, capfd):
        """A burst that the service cannot take in time is partly delivered, and the rest is printed."""
        server = endpoint()
        alerts = delivery(urls=(server.url,), flush_timeout=1.0)
        for number in range(1000):
            alerts.notify(str(number), "")
        alerts.stop()
        printed = [line.removeprefix("[test] ").removesuffix(": ") for line in capfd.readouterr().out.splitlines()]
        arrived = {request["title"] for request in server.requests}
        assert arrived
        assert sorted({*arrived, *printed}, key=int) == [str(number) for number in range(1000)]

    def test_it_works_inside_a_running_loop(self, delivery, daemon):
        """A coroutine can call `notify`."""
        running = daemon()

        async def job():
            delivery().notify("done", "")

        asyncio.run(job())
        assert [call["title"] for call in running.calls] == ["done"]


class TestConfiguration:
    """Settings that are rejected before the job begins."""

    @pytest.mark.parametrize("enable", [True, False])
    def test_a_malformed_url_is_refused(self, settings, enable):
        """A malformed URL is rejected at the start, not at the first alert, and not displayed."""
        with pytest.raises(ConfigurationError, match="alerts url 1") as caught:
            Delivery(settings(enable=enable, urls=("slack://" + "tok3n" * 5,)))
        assert "tok3n" not in str(caught.value)

    def test_a_missing_extra_is_refused(self, settings, monkeypatch):
        """The message contains the remedy."""
        monkeypatch.setitem(sys.modules, "apprise", None)
        with pytest.raises(MissingExtraError, match=r"autogen-team\[alerts\]"):
            Delivery(settings(urls=("json://127.0.0.1",)))

    def test_settings_do_not_show_their_urls(self, settings):
        """URLs are secrets, also in a repr."""
        assert "tok3n" not in repr(settings(urls=("slack://tok3n",)))

    def test_creating_a_delivery_connects_to_nothing(self, settings, daemon):
        """The bus is first contacted by the first alert."""
        running = daemon()
        before = threading.active_count()
        Delivery(settings())
        assert threading.active_count() == before
        assert running.connections == set()
