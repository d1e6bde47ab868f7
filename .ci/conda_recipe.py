"""Print a conda recipe (format 1) of the package, for conda-forge: its dependencies are those of `pyproject.toml`.

    python .ci/conda_recipe.py SDIST URL > recipe.yaml

SDIST is the uploaded file, URL is its address for downloads.
"""

from __future__ import annotations

import hashlib
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def recipe(project: dict, build: list[str], *, version: str, url: str, sha256: str) -> dict:
    """Return the recipe of a project.

    Args:
        project: the table `project` of `pyproject.toml`.
        build: the requirements of the build.
        version: the version of the sdist.
        url: the address of the sdist.
        sha256: the digest of the sdist.

    """
    python = f"python {project['requires-python']}"
    return {
        "schema_version": 1,
        "context": {"name": project["name"], "version": version, "python_min": project["requires-python"].strip(">=")},
        "package": {"name": "${{ name }}", "version": "${{ version }}"},
        "source": {"url": url, "sha256": sha256},
        "build": {
            "number": 0,
            "noarch": "python",
            "script": "${{ PYTHON }} -m pip install . -vv --no-deps --no-build-isolation",
            "python": {"entry_points": [f"{name} = {target}" for name, target in project["scripts"].items()]},
        },
        "requirements": {
            "host": ["python ${{ python_min }}.*", "pip", *map(_dependency, build)],
            # The package is the same for all systems, so dependencies that only Linux needs are installed everywhere.
            "run": [python, *map(_dependency, project["dependencies"])],
        },
        "tests": [
            {
                "python": {
                    "imports": ["autogen_team", "autogen_team.io.services"],
                    "python_version": ["${{ python_min }}.*", "*"],
                }
            },
            {"script": [f"{name} --version" for name in project["scripts"]]},
        ],
        "about": {
            "summary": project["description"],
            "license": project["license"],
            "license_file": project["license-files"],
        },
        "extra": {"recipe-maintainers": ["YOUR-GITHUB-NAME"]},
    }


def _dependency(text: str) -> str:
    found = Requirement(text)
    return f"{found.name} {found.specifier}".strip()


def main() -> None:
    """Print the recipe."""
    sdist, url = Path(sys.argv[1]), sys.argv[2]
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = sdist.name.removesuffix(".tar.gz").rpartition("-")[2]
    sha256 = hashlib.sha256(sdist.read_bytes()).hexdigest()
    found = recipe(table["project"], table["build-system"]["requires"], version=version, url=url, sha256=sha256)
    yaml.safe_dump(found, sys.stdout, sort_keys=False, width=120)


if __name__ == "__main__":
    main()
