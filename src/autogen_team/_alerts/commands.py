"""Alerts on the desktops of macOS and Windows, through a command of the system.

Tested only with stand-ins for the two commands, never on the systems themselves.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Final

from autogen_team._alerts.channel import NoAnswerError, UndeliveredError
from autogen_team._alerts.text import one_line

if TYPE_CHECKING:
    from autogen_team._alerts.channel import Alert

ANSWER_WITHIN: Final = 5.0  # seconds; PowerShell alone needs about one to start

_APPLESCRIPT: Final = (
    "on run argv",
    "display notification (item 2 of argv) with title (item 3 of argv) subtitle (item 1 of argv)",
    "end run",
)

# The texts arrive in the environment and enter the document as text nodes, so they are never parsed.
_POWERSHELL: Final = """
$ErrorActionPreference = 'Stop'
[void][Windows.UI.Notifications.ToastNotificationManager, Windows.UI.Notifications, ContentType = WindowsRuntime]
$kind = [Windows.UI.Notifications.ToastTemplateType]::ToastText02
$toast = [Windows.UI.Notifications.ToastNotificationManager]::GetTemplateContent($kind)
$texts = $toast.GetElementsByTagName('text')
[void]$texts.Item(0).AppendChild($toast.CreateTextNode($env:AUTOGEN_TEAM_ALERT_TITLE))
[void]$texts.Item(1).AppendChild($toast.CreateTextNode($env:AUTOGEN_TEAM_ALERT_MESSAGE))
$app = '{1AC14E77-02E7-4E5D-B744-2EB1AE5198B7}\\WindowsPowerShell\\v1.0\\powershell.exe'
$notification = [Windows.UI.Notifications.ToastNotification]::new($toast)
[Windows.UI.Notifications.ToastNotificationManager]::CreateToastNotifier($app).Show($notification)
"""


class CommandDesktop:
    """Channel that runs a command for each alert; the system decides how long an alert stays."""

    name = "desktop"
    is_local = True

    def __init__(self, app_name: str, *, system: str, answer_within: float = ANSWER_WITHIN) -> None:
        self._app_name = app_name
        self._system = system
        self._answer_within = answer_within

    def takes(self, level: str) -> bool:  # noqa: ARG002 - the protocol requires it; a desktop shows all levels
        """Accept every level."""
        return True

    def close(self) -> None:
        """Do nothing: each command has already ended."""

    def deliver(self, alert: Alert) -> None:
        """Return when the command reports that the system accepted the alert."""
        command, environment = self._command(alert)
        try:
            subprocess.run(  # noqa: S603 - a fixed command; the texts are arguments or variables, never code
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._answer_within,
                check=True,
            )
        except subprocess.TimeoutExpired as error:
            raise NoAnswerError(f"{command[0]} did not end within {self._answer_within:g} s") from error
        except subprocess.CalledProcessError as error:
            said = one_line(bytes(error.stderr).decode(errors="replace"))[:200]
            raise UndeliveredError(f"{command[0]} failed with status {error.returncode}: {said}") from error
        except OSError as error:
            raise UndeliveredError(f"{command[0]} cannot be run: {error.strerror}") from error

    def _command(self, alert: Alert) -> tuple[list[str], dict[str, str]]:
        if self._system == "darwin":
            script = [part for line in _APPLESCRIPT for part in ("-e", line)]
            return ["osascript", *script, "--", alert.title, alert.message, self._app_name], {}
        texts = {
            "AUTOGEN_TEAM_ALERT_TITLE": f"{self._app_name}: {alert.title}",
            "AUTOGEN_TEAM_ALERT_MESSAGE": alert.message,
        }
        return ["powershell.exe", "-NoProfile", "-NonInteractive", "-Command", _POWERSHELL], texts
