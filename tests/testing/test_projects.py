"""Projects outside of this package: those whose tests use the plugin, and one that doesn't know the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attrs import frozen

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent.parent
PROJECTS = Path(__file__).parent / "projects"
PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
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


@frozen
class Case:
    """A project, what is installed for it, and the options with which its tests are run, once for each."""

    project: str
    packages: tuple[str, ...]
    runs: tuple[str, ...] = ("",)
    extras: str = ""


ASYNCIO_RUNS = ("-o asyncio_mode=strict", "-o asyncio_mode=auto", "-n 2")
CASES = {
    "FastAPI": Case("fastapi", ("pytest", "fastapi", "httpx2")),
    "Django": Case("django", ("pytest", "django")),
    "pytest-asyncio": Case("asyncio", ("pytest-asyncio", "pytest-xdist"), ASYNCIO_RUNS),
    "anyio": Case("anyio", ("pytest", "anyio", "pytest-xdist"), ("", "-n 2")),
    "all extras": Case("asyncio", ("pytest-asyncio", "pytest-xdist"), ASYNCIO_RUNS, extras="[all]"),
    "extra testing": Case("django", ("django",), extras="[testing]"),
    "reruns": Case("django", ("django", "pytest-rerunfailures"), ("--reruns 1",)),
    # The oldest releases that docs/testing.md names; pytest-asyncio 1.0 requires pytest 8.2.
    "oldest pytest-asyncio": Case("asyncio", ("pytest==8.2.0", "pytest-asyncio==1.0.0"), ASYNCIO_RUNS[:2]),
    "oldest pytest and anyio": Case("anyio", ("pytest==8.0.0", "anyio==4.5.0")),
}


@pytest.mark.parametrize("name", ["FastAPI", "Django", "pytest-asyncio", "anyio"])
def test_a_project_passes_its_own_tests(tmp_path, name):
    """The tests of a project pass in an environment of this environment's packages, in which it is a folder."""
    run_project(sys.executable, tmp_path, CASES[name])


def test_testing_md_names_the_oldest_versions():
    """The versions in testing.md are the oldest ones with which a project is tested."""
    versions = dict(re.findall(r"^\| ([\w-]+) \| (\d+\.\d+) \|", PAGE, re.MULTILINE))
    assert versions.keys() == {"pytest", "pytest-asyncio", "anyio"}
    tested = {package for case in CASES.values() for package in case.packages}
    assert {f"{name}=={version}.0" for name, version in versions.items()} <= tested


# --------------------------------------------------------------------------------------- new environments

PLUGINS = ("pytest", "pytest-asyncio", "anyio")
# A new environment takes half a minute of a core, so `slow` creates a sample, and `endurance` all.
SAMPLE = "oldest pytest and anyio"


def pytest_generate_tests(metafunc):
    """By default, choose a sample of the cases and of the plugins; with --endurance, all."""
    is_complete = metafunc.config.getoption("--endurance")
    if "case" in metafunc.fixturenames:
        names = CASES if is_complete else [SAMPLE]
        metafunc.parametrize("case", [CASES[name] for name in names], ids=names)
    if "plugin" in metafunc.fixturenames:
        metafunc.parametrize("plugin", PLUGINS if is_complete else PLUGINS[:1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python = new_environment(folder)
    install(python, "build")
    subprocess.run([python, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_a_project_passes_its_own_tests_with_the_wheel(tmp_path, wheel, case):
    """The tests of a project pass in a new environment with the wheel, and without packages that it doesn't need."""
    python = new_environment(tmp_path)
    install(python, f"{wheel}{case.extras}", *case.packages)
    run_project(python, tmp_path, case)


@pytest.mark.slow
def test_a_project_without_the_fixtures_is_not_affected(tmp_path, wheel, plugin):
    """A project without the fixtures has the same tests, warnings, variables and modules after the installation."""
    shutil.copytree(PROJECTS / "unrelated", tmp_path / "unrelated")
    python = new_environment(tmp_path)
    install(python, "pytest", plugin)
    options = [
        "-v",
        "-W error",
        "--strict-markers",
        "-p no:plaid_relay_async",
        "--collect-only",
        "--fixtures-per-test",
    ]
    before = [output_of(python, tmp_path / "unrelated", each) for each in options]
    install(python, wheel)
    after = [output_of(python, tmp_path / "unrelated", each) for each in options]
    assert "plaid_relay_async" not in str(before)
    assert "test_numbers[1] PASSED" in before[0]
    assert before == [each.replace("'_plaid_relay_async_pytest', ", "") for each in after]


def new_environment(folder: Path) -> Path:
    """Create a virtual environment, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    return folder / "venv" / "bin" / "python"


def install(python: Path, *packages: str | Path) -> None:
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    subprocess.run(command, check=True)


def run_project(python: str | Path, tmp_path: Path, case: Case) -> None:
    """Run the tests of a copy of a project, and print how long that took."""
    folder = tmp_path / case.project
    shutil.copytree(PROJECTS / case.project, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for options in case.runs:
        started = time.monotonic()
        run = run_pytest(python, folder, options)
        seconds = time.monotonic() - started
        print(f"{case.project} {options}: {seconds:.1f} s")  # noqa: T201  # reported with pytest -rP
        assert run.returncode == 0, run.stdout + run.stderr
        assert " 2 passed" in run.stdout


def run_pytest(python: str | Path, folder: Path, options: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *options.split()]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def output_of(python: Path, folder: Path, options: str) -> str:
    """Return what pytest prints in a project, without its header and its times."""
    run = run_pytest(python, folder, f"--no-header {options}")
    return re.sub(r"\d+\.\d+s", "0s", run.stdout + run.stderr)
