"""Every error and warning that autogen_team raises.

    AutogenTeamError
    ├── ConfigurationError(ValueError)          a setting cannot be used as given
    │   └── MissingExtraError(ImportError)      ... because an optional dependency is not installed
    ├── NotStartedError(RuntimeError)           asked for something that exists only between start and stop
    ├── JobRunningError(RuntimeError)           another process has the run of this job
    └── TrackingUnavailableError(ConnectionError)   the tracking or registry server does not answer

    AutogenTeamWarning(UserWarning)
    └── ConfigurationWarning                    a setting was ignored, or is about to stop working

Configuration faults are raised early and name the value and the remedy. Delivery faults (an alert that does not arrive,
a log line that cannot be written) never reach the job. They are reported once through the standard library's
``autogen_team`` logger, and counted.
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
    """A setting cannot be used as given; the message names it, its value and what it may be."""


class MissingExtraError(ConfigurationError, ImportError):
    """A setting needs an optional dependency; the message names the extra to install."""


class NotStartedError(AutogenTeamError, RuntimeError):
    """Something that exists only between ``start`` and ``stop`` was asked for outside of them."""


class JobRunningError(AutogenTeamError, RuntimeError):
    """Another process has the run of this job; the message says which, where, and when it was last seen alive."""


class TrackingUnavailableError(AutogenTeamError, ConnectionError):
    """The tracking or registry server refused the connection or did not answer in time."""


class AutogenTeamWarning(UserWarning):
    """Base of every warning issued by this library."""


class ConfigurationWarning(AutogenTeamWarning):
    """A setting was ignored or is about to stop working; the message says what to write instead."""
