"""The base class of all services."""

from __future__ import annotations

import pytest

from autogen_team.io.services import AlertsService, LoggerService, MlflowService, Service


@pytest.mark.parametrize("cls", [LoggerService, AlertsService, MlflowService])
def test_extends_the_base_class(cls):
    """Each service extends the base class and implements `start`."""
    assert issubclass(cls, Service)
    assert cls.start is not Service.start


def test_start_must_be_implemented():
    """A service class without `start` cannot be instantiated."""

    class Half(Service):
        """A service without `start`."""

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_a_custom_service_needs_only_start():
    """A user's service can be configured and used by `with`, like ours."""

    class Mail(Service):
        """A mail service."""

        variable_prefix = "MAIL_"
        host: str = "localhost"
        """Host name."""

        def start(self) -> None:
            """Record the start."""
            started.append(self.host)

    started: list[str] = []
    with Mail() as service:
        assert not service.is_started
    assert started == ["localhost"]


def test_without_a_prefix_no_variable_is_read():
    """Without a prefix, a field named `path` does not read the variable PATH."""

    class Lock(Service):
        """A lock file."""

        path: str = "train.lock"
        """Path of the file."""

        def start(self) -> None:
            """Do nothing."""

    assert Lock().path == "train.lock"
    assert [setting.name for setting in Lock().settings()] == []


def test_a_copy_of_a_running_service_does_not_run():
    """The running state is not part of the value."""
    with LoggerService(sink="job.log") as service:
        assert service.is_started
        assert not service.model_copy().is_started
        assert service == LoggerService(sink="job.log")
    assert not service.is_started


def test_a_stop_that_fails_is_reported_and_not_raised(caplog):
    """An exception of the job must not be replaced by one of `stop`."""

    class Broken(Service):
        """A service whose stop fails."""

        def start(self) -> None:
            """Register a failing stop function."""
            self._on_stop(lambda: 1 / 0)

    with Broken():
        pass

    assert "Broken did not stop cleanly" in caplog.text
