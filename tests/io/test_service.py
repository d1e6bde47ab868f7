"""What every service is."""

from __future__ import annotations

import pytest

from autogen_team.io.services import AlertsService, LoggerService, MlflowService, Service


@pytest.mark.parametrize("cls", [LoggerService, AlertsService, MlflowService])
def test_extends_the_base_class(cls):
    """And implements `start`."""
    assert issubclass(cls, Service)
    assert cls.start is not Service.start


def test_start_must_be_implemented():
    """A service without it cannot be made."""

    class Half(Service):
        """Nothing."""

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_a_service_of_one_s_own_needs_only_start():
    """It is configured, and used by `with`, like ours."""

    class Mail(Service):
        """Sends mail."""

        variable_prefix = "MAIL_"
        host: str = "localhost"
        """Where to."""

        def start(self) -> None:
            """Note that it happened."""
            started.append(self.host)

    started: list[str] = []
    with Mail() as service:
        assert not service.is_started
    assert started == ["localhost"]


def test_without_a_prefix_nothing_is_read_from_variables_of_others():
    """A field that is called `path` is not the variable PATH."""

    class Lock(Service):
        """Is held."""

        path: str = "train.lock"
        """Where."""

        def start(self) -> None:
            """Do nothing."""

    assert Lock().path == "train.lock"
    assert [setting.name for setting in Lock().settings()] == []


def test_a_copy_of_a_running_service_does_not_run():
    """Running is no part of the value."""
    with LoggerService(sink="job.log") as service:
        assert service.is_started
        assert not service.model_copy().is_started
        assert service == LoggerService(sink="job.log")
    assert not service.is_started


def test_a_stop_that_fails_is_reported_and_not_raised(caplog):
    """The job's own exception must not be masked."""

    class Broken(Service):
        """Cannot stop."""

        def start(self) -> None:
            """Note what cannot be undone."""
            self._on_stop(lambda: 1 / 0)

    with Broken():
        pass

    assert "Broken did not stop cleanly" in caplog.text
