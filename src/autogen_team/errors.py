"""Every error and warning that autogen_team raises.

    AutogenTeamError
    ├── ConfigurationError(ValueError)          a setting is invalid
    │   └── MissingExtraError(ImportError)      ... because an optional dependency is not installed
    ├── NotStartedError(RuntimeError)           no service, context or run is active
    ├── JobRunningError(RuntimeError)           another process has the run of this job
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
    """A running service or context, or an open run, is needed for this; the message says how to start it."""


class JobRunningError(AutogenTeamError, RuntimeError):
    """Another process has the run of this job; the message says which, where, and when it was last seen alive."""


class TrackingUnavailableError(AutogenTeamError, ConnectionError):
    """The tracking or registry server refused the connection or did not answer in time."""


class AutogenTeamWarning(UserWarning):
    """Base of every warning issued by this library."""


class ConfigurationWarning(AutogenTeamWarning):
    """A setting was ignored, or will stop working. The message says what to use instead."""
