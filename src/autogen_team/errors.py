"""Every error and warning that autogen_team raises.

    AutogenTeamError
    ├── ConfigurationError(ValueError)          a setting is invalid
    │   └── MissingExtraError(ImportError)      ... because an optional dependency is not installed
    ├── NotStartedError(RuntimeError)           no service, context or run is active
    ├── JobRunningError(RuntimeError)           another process holds the run of this job
    └── TrackingUnavailableError(ConnectionError)   the tracking or registry server does not answer

    AutogenTeamWarning(UserWarning)
    └── ConfigurationWarning                    a setting was ignored, or is about to stop working

Configuration errors are raised early and name the value and the remedy. Delivery errors (an alert that does not arrive,
a log line that cannot be written) never reach the job. They are counted, and reported once through the standard
library's ``autogen_team`` logger.
"""

__all__ = [
    "AutogenTeamError",
    "AutogenTeamWarning",
    "ConfigurationError",
    "ConfigurationWarning",
    "JobRunningError",
    "MissingExtraError",
    "NotStartedError",
    "TrackingUnavailableError",
]


class AutogenTeamError(Exception):
    """Base of every error raised by this library."""


class ConfigurationError(AutogenTeamError, ValueError):
    """A setting is invalid. The message names the setting, its value and valid values."""


class MissingExtraError(ConfigurationError, ImportError):
    """A setting needs an optional dependency. The message names the extra to install."""


class NotStartedError(AutogenTeamError, RuntimeError):
    """No service, context or run is active. The message says how to start one."""


class JobRunningError(AutogenTeamError, RuntimeError):
    """Another process holds the run of this job. The message names the process, its host and its last sign of life."""


class TrackingUnavailableError(AutogenTeamError, ConnectionError):
    """The tracking or registry server refused the connection or did not answer in time."""


class AutogenTeamWarning(UserWarning):
    """Base of every warning issued by this library."""


class ConfigurationWarning(AutogenTeamWarning):
    """A setting was ignored, or will stop working. The message says what to use instead."""
