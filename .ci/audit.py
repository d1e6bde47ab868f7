"""Ask PyPI's vulnerability service about each requirement of a lock: `python .ci/audit.py LOCK...`, or `make audit`.

Exits with 1 if there is a known vulnerability, and with 2 if the service cannot be reached.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def main(locks: list[str]) -> int:
    """Print the known vulnerabilities of each requirement, and the number of audited requirements."""
    pip_audit = str(Path(sys.executable).with_name("pip-audit"))
    command = [pip_audit, "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command += [option for lock in locks for option in ("--requirement", lock)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = done.stderr.strip().splitlines()[-1:] or ["it printed no reason"]
        print(f"nothing was audited: pip-audit could not reach the vulnerability service: {reason[0]}")
        return 2
    audited = [each for each in found if "vulns" in each]
    if not audited:
        print("nothing was audited: the package index in use has no vulnerability data")
        return 2
    vulnerable = [(each, fault) for each in audited for fault in each["vulns"]]
    for each, fault in vulnerable:
        fixed = ", ".join(fault["fix_versions"]) or "no version"
        print(f"{each['name']} {each['version']}: {fault['id']} ({', '.join(fault['aliases'])}), fixed in {fixed}")
    print(f"{len(audited)} of {len(found)} requirements audited, {len(vulnerable)} known vulnerabilities")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
