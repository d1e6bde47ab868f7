"""Refuse a release if version, tag, CHANGELOG and tree do not agree, and print each fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def faults(version: str, tags: list[str], changelog: str, changed: list[str]) -> list[str]:
    """Return the reasons why `version` cannot be released.

    Args:
        version: the version in the source.
        tags: the tags of the commit.
        changelog: the text of the CHANGELOG.
        changed: the uncommitted files.

    """
    found = []
    if f"v{version}" not in tags:
        found.append(f"the commit has the tags {tags or 'none'}, not v{version}: git tag v{version}")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no heading '## [{version}] - YEAR-MONTH-DAY': rename '## [Unreleased]'")
    if changed:
        found.append(f"not committed: {', '.join(changed)}")
    return found


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S607
    return done.stdout.splitlines()


def main() -> None:
    """Exit with 1 and the faults, if there are any."""
    sys.path.insert(0, str(ROOT / "src"))
    from autogen_team import __version__

    changelog = (ROOT / "CHANGELOG.md").read_text()
    changed = [line[3:] for line in _git("status", "--porcelain")]
    found = faults(__version__, _git("tag", "--points-at", "HEAD"), changelog, changed)
    for fault in found:
        print(fault)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
