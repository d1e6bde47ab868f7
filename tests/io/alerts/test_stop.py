"""The end of an alerts service: pending alerts are delivered, printed or reported."""

import threading
import time

from autogen_team._alerts import delivery as delivery_module
from autogen_team._alerts.channel import Alert, RecordingChannel, UndeliveredError

PATIENCE = 20.0


class TestStop:
    """`stop` of the alerts service."""

    def test_stop_delivers_pending_alerts(self, delivery, endpoint, capfd):
        """Pending alerts are delivered."""
        server = endpoint()
        alerts = delivery(urls=(server.url,), flush_timeout=PATIENCE)
        for number in range(20):
            alerts.notify(str(number), "")
        alerts.stop()
        assert [request["title"] for request in server.requests] == [str(number) for number in range(20)]
        assert capfd.readouterr().out == ""

    def test_stop_prints_undelivered_alerts(self, delivery, gated, capfd):
        """At the timeout, the alert in progress and the queued ones are printed in order."""
        remote = gated()
        alerts = delivery(channels=[remote], flush_timeout=0.1)
        for number in range(3):
            alerts.notify(str(number), "")
        alerts.stop()
        assert capfd.readouterr().out == "[test] 0: \n[test] 1: \n[test] 2: \n"

    def test_alerts_printed_by_stop_are_not_printed_again(self, delivery, gated, capfd, wait_until):
        """A channel that fails after the timeout does not print again."""
        remote = gated(error=UndeliveredError("no network"))
        alerts = delivery(channels=[remote], flush_timeout=0.1)
        alerts.notify("done", "")
        alerts.stop()
        remote.gate.set()
        wait_until(lambda: not any("alerts to gated" in thread.name for thread in threading.enumerate()))
        assert capfd.readouterr().out == "[test] done: \n"

    def test_alerts_displayed_by_the_desktop_are_not_printed_by_stop(self, delivery, gated, capfd, caplog):
        """A late remote copy of an alert that the desktop confirmed is reported, not printed."""
        remote = gated(name="remote")
        alerts = delivery(channels=[RecordingChannel("desktop"), remote], flush_timeout=0.1)
        alerts.notify("done", "")
        alerts.stop()
        assert capfd.readouterr().out == ""
        assert "remote: still not delivered when the alerts service stopped" in caplog.text

    def test_stop_does_not_wait_for_printed_alerts(self, delivery, gated, impatient):
        """`stop` does not wait again for a hanging desktop whose alerts are printed already."""
        alerts = delivery(channels=[gated(is_local=True)], flush_timeout=60.0)
        alerts.notify("done", "")
        started = time.monotonic()
        alerts.stop()
        assert time.monotonic() - started < 30

    def test_stop_closes_channels_that_are_idle(self, delivery, gated):
        """`stop` closes connections, except one that is in use."""
        idle, busy = gated(name="idle"), gated(name="busy")
        idle.gate.set()
        alerts = delivery(channels=[idle, busy], flush_timeout=0.1)
        alerts.notify("done", "")
        alerts.stop()
        assert (idle.closed, busy.closed) == (1, 0)

    def test_a_second_stop_does_nothing(self, delivery, capfd):
        """`stop` is idempotent."""
        alerts = delivery(channels=[RecordingChannel()])
        alerts.stop()
        alerts.stop()
        assert capfd.readouterr() == ("", "")

    def test_an_alert_during_stop_is_printed(self, delivery, gated, capfd, wait_until):
        """While `stop` waits for earlier alerts, a new one is printed at once."""
        remote = gated()
        alerts = delivery(channels=[remote], flush_timeout=PATIENCE)
        alerts.notify("before", "")
        stopper = threading.Thread(target=alerts.stop)
        stopper.start()
        wait_until(lambda: alerts._stopped)
        alerts.notify("late", "but there")
        assert capfd.readouterr().out == "[test] late: but there\n"
        remote.gate.set()
        stopper.join(PATIENCE)
        assert [alert.title for alert in remote.alerts] == ["before"]

    def test_an_alert_after_stop_is_printed(self, delivery, capfd):
        """An alert after `stop` is not lost."""
        channel = RecordingChannel()
        alerts = delivery(channels=[channel])
        alerts.stop()
        alerts.notify("late", "but there")
        assert channel.alerts == []
        assert capfd.readouterr().out == "[test] late: but there\n"

    def test_an_error_in_stop_does_not_reach_the_job(self, delivery, monkeypatch, caplog):
        """`stop` never raises."""

        def fail(self):
            raise RuntimeError("a bug")

        alerts = delivery(channels=[RecordingChannel()])
        monkeypatch.setattr(delivery_module.Cooldown, "drain", fail)
        alerts.stop()
        assert "RuntimeError: a bug" in caplog.text

    def test_the_count_of_the_cooldown_is_reported_at_stop(self, delivery, capfd):
        """The number of suppressed alerts is sent when the job ends."""
        channel = RecordingChannel()
        alerts = delivery(channels=[channel], cooldown=3600)
        for number in range(5):
            alerts.notify("loss", f"nan at {number}", "warning")
        alerts.stop()
        assert channel.alerts == [Alert("loss", "nan at 0", "warning"), Alert("loss", "(4 more)", "warning")]
        assert capfd.readouterr().out == ""

    def test_a_service_without_pending_counts_is_released(self, delivery):
        """Only a service with a count to report is kept until the process exits."""
        alerts = delivery(channels=[RecordingChannel()], cooldown=3600)
        for number in range(3):
            alerts.notify(str(number), "")
            assert alerts not in delivery_module._known_at_exit
        alerts.notify("0", "again")
        assert alerts in delivery_module._known_at_exit  # it has a count to report

    def test_the_count_is_printed_if_no_channel_takes_it(self, delivery, capfd):
        """A count that cannot be delivered is printed like any alert."""
        alerts = delivery(channels=[RecordingChannel(fail_with="no desktop")], cooldown=3600)
        for _ in range(3):
            alerts.notify("loss", "nan")
        alerts.stop()
        assert capfd.readouterr().out == "[test] loss: nan\n[test] loss: (2 more)\n"
