"""Projects outside of this package, whose tests use the plugin, such as a FastAPI service and a Django app."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent.parent
PROJECTS = Path(__file__).parent / "projects"
PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
# The packages that each project requires, and the options with which it runs pytest.
REQUIREMENTS = {
    "asyncio": ["pytest-asyncio", "pytest-xdist"],
    "fastapi": ["fastapi", "httpx2"],
    "django": ["django"],
}
OPTIONS = {"asyncio": ["-n", "2"]}
# The files that testing.md shows.
SHOWN = [
    "asyncio/test_sharing",
    "fastapi/service",
    "fastapi/test_service",
    "django/views",
    "django/test_views",
]


@pytest.mark.parametrize("name", SHOWN)
def test_testing_md_shows_the_files_of_the_projects(name):
    """The examples of testing.md for asyncio, FastAPI and Django are the files of the projects."""
    assert (PROJECTS / f"{name}.py").read_text(encoding="utf-8") in PAGE


def test_the_other_examples_of_testing_md_pass(pytester):
    """The tests that testing.md shows pass, apart from those of the projects, which have their own test."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    suites = {f"test_{number}.py": block for number, block in enumerate(blocks) if "def test_" in block}
    for name, block in suites.items():
        (pytester.path / name).write_text(block, encoding="utf-8")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=PAGE.count("def test_") - 3)


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_a_project_passes_its_own_tests(tmp_path, name):
    """The tests of a project pass in an environment of this environment's packages, in which it is a folder."""
    shutil.copytree(PROJECTS / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    run_tests(sys.executable, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUIREMENTS)
def test_a_project_passes_its_own_tests_with_the_wheel(tmp_path, name):
    """The tests of a project pass in a new environment with the wheel, without the extras and their packages."""
    folder = tmp_path / name
    shutil.copytree(PROJECTS / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = (f"{ROOT}[testing]", "pytest", *REQUIREMENTS[name])
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    run_tests(python, folder)


def run_tests(python: str | Path, folder: Path) -> None:
    command = [python, "-m", "pytest", "-p", "no:cacheprovider"]
    command += OPTIONS.get(folder.name, [])
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 2 passed" in run.stdout
