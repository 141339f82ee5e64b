"""The pytest plugin of plaid_relay_async: its marker, its hooks and its fixtures. See `docs/testing.md`.

pytest loads this module in every run of every project that has the package installed. So it is outside of the
package, and imports the package only for a test that uses one of the fixtures.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

    from pluggy import Result

    from plaid_relay_async import RelayClient
    from plaid_relay_async.testing import SimulatorThread
    from plaid_relay_async.testing.scenario import Scenario

_MARKER = (
    "plaid(*, reports=(), faults=(), latency=0.0, allow_unclaimed=False): "
    "the state of the test's simulator of Plaid, and whether the test may lose relay tokens."
)
# A test that requests one of these uses the plugin. The public fixtures request them, and a project may have
# fixtures of its own with the public names.
_SCENARIO_FIXTURE, _SERVER_FIXTURE = "_plaid_scenario", "_plaid_server"
_ASYNCIO_FIXTURES = "plaid_relay_async_asyncio_fixtures"
_LOOP_SCOPE_SETTING = "asyncio_default_test_loop_scope"
_LOOP_SCOPES = ("function", "class", "module", "package", "session")

# In the stash of the session: the test that is running, whether its function and subtests passed; the server.
_scenario = pytest.StashKey["Scenario"]()
_passed = pytest.StashKey[list[bool]]()
_server = pytest.StashKey["SimulatorThread"]()


# --------------------------------------------------------------------------------------------- the session


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and, if pytest-asyncio is active, the fixtures that it runs."""
    config.addinivalue_line("markers", _MARKER)
    try:
        config.getini(_LOOP_SCOPE_SETTING)
    except ValueError:  # pytest-asyncio isn't active, or is too old
        return
    import pytest_asyncio

    config.pluginmanager.register(_asyncio_fixtures(pytest_asyncio.fixture), _ASYNCIO_FIXTURES)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server of the session, and end a test whose teardown was left out because of Ctrl-C."""
    if _scenario in config.stash:
        config.stash[_scenario].end()
        del config.stash[_scenario]
    if _server in config.stash:
        config.stash[_server].__exit__(None, None, None)
        del config.stash[_server]


def _running_server(config: pytest.Config) -> SimulatorThread:
    from plaid_relay_async.testing import SimulatorThread

    if _server not in config.stash:
        config.stash[_server] = SimulatorThread().__enter__()
    return config.stash[_server]


# ------------------------------------------------------------------------------------------------ one test


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Prepare a test that uses the fixtures, before any of its fixtures is set up.

    A fixture that creates a client may be set up before the simulator's, and must not find real credentials.
    """
    if {_SCENARIO_FIXTURE, _SERVER_FIXTURE}.intersection(getattr(item, "fixturenames", ())):
        _current_scenario(item)


def _current_scenario(item: pytest.Item) -> Scenario:
    """Return the scenario of the running test, which begins with the first fixture that needs it."""
    stash = item.config.stash
    if _scenario not in stash:
        from plaid_relay_async.testing.scenario import Options, Scenario

        try:
            options = Options.from_markers(item.iter_markers("plaid"))
        except ValueError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        uses_server = _SERVER_FIXTURE in getattr(item, "fixturenames", ())
        stash[_scenario] = Scenario(options, _running_server(item.config) if uses_server else None)
        stash[_passed] = []
    return stash[_scenario]


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note whether the test function, or a subtest, passed."""
    if call.when == "call" and _scenario in item.config.stash:
        item.config.stash[_passed].append(call.excinfo is None)


# Of the old style: pytest 7 loads this module as well, and its pluggy may reject wrappers of the new style.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Result[None], None]:
    """Check the end of a test when its fixtures are torn down, and restore the environment."""
    outcome = yield
    stash = item.config.stash
    if _scenario not in stash:
        return
    scenario, passed = stash[_scenario], stash[_passed]
    del stash[_scenario]
    scenario.end()
    if outcome.excinfo is None:
        try:
            # What is wrong after a failure is a consequence of it, and would only distract from it.
            _check_end(item, scenario, passed=bool(passed) and all(passed))
        except BaseException as error:  # noqa: BLE001  # pluggy would warn about an exception of a wrapper
            outcome.force_exception(error)


def _check_end(item: pytest.Item, scenario: Scenario, *, passed: bool) -> None:
    if scenario.bypassed_patch:
        from plaid_relay_async.testing.interception import PATCHED_SESSION, PatchedSessionWarning

        item.warn(PatchedSessionWarning(PATCHED_SESSION))
    problems = [*scenario.problems()] if passed else []
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


# -------------------------------------------------------------------------------------------- the fixtures


@pytest.fixture(name=_SCENARIO_FIXTURE)
def _plaid_scenario(request: pytest.FixtureRequest) -> Scenario:
    return _current_scenario(request.node)


@pytest.fixture(scope="session", name=_SERVER_FIXTURE)
def _plaid_server(pytestconfig: pytest.Config) -> SimulatorThread:
    return _running_server(pytestconfig)


@pytest.fixture
def plaid_simulator(_plaid_scenario: Scenario) -> SimulatorThread:
    """The test's simulator of Plaid: a new one, or that of the session if the test uses it.

    It runs in a thread: so a test may use pytest-asyncio, anyio or no event loop at all.
    """
    return _plaid_scenario.simulator


@pytest.fixture(scope="session")
def plaid_simulator_server(_plaid_server: SimulatorThread) -> SimulatorThread:
    """A simulator of Plaid with the same address for the whole session, which is reset before each test."""
    return _plaid_server


@pytest.fixture
def relay_client(
    request: pytest.FixtureRequest,
    plaid_simulator: SimulatorThread,  # noqa: ARG001  # so that a test of this client is one that uses the simulator
) -> Any:
    """An open `RelayClient` of `plaid_simulator`, in the event loop of the test."""
    return request.getfixturevalue(_client_fixture(request))


def _client_fixture(request: pytest.FixtureRequest) -> str:
    """Return the name of the fixture that opens a client in the event loop of the test.

    No function is an async fixture for both plugins, and neither runs those of the other.
    """
    marker = request.node.get_closest_marker("asyncio")
    if marker is not None and request.config.pluginmanager.has_plugin(_ASYNCIO_FIXTURES):
        scope = marker.kwargs.get("loop_scope") or request.config.getini(_LOOP_SCOPE_SETTING)
        return _asyncio_name(scope)
    if "anyio_backend" in request.fixturenames:
        if request.getfixturevalue("anyio_backend_name") != "asyncio":
            pytest.fail('RelayClient needs asyncio: let anyio_backend return "asyncio"', pytrace=False)
        return "_relay_client_anyio"
    return pytest.fail(
        "relay_client is for asynchronous tests, of pytest-asyncio (1.0 or newer) or of anyio. In another "
        "test, use plaid_simulator, and open a RelayClient in the event loop that uses it",
        pytrace=False,
    )


def _open_client_function() -> Any:
    """Return a new function for a fixture, because pytest-asyncio stores the scope in the function."""

    async def open_relay_client(plaid_simulator: SimulatorThread) -> AsyncIterator[RelayClient]:
        from plaid_relay_async.testing.scenario import open_client

        async with open_client(plaid_simulator) as client:
            yield client

    return open_relay_client


_relay_client_anyio = pytest.fixture(name="_relay_client_anyio")(_open_client_function())


def _asyncio_fixtures(fixture: Any) -> ModuleType:
    """Return a plugin with the fixtures that pytest-asyncio runs, one for each scope of a test's event loop.

    Args:
        fixture: pytest-asyncio's `fixture`.
    """
    module = ModuleType(_ASYNCIO_FIXTURES)
    for scope in _LOOP_SCOPES:
        name = _asyncio_name(scope)
        setattr(module, name, fixture(_open_client_function(), loop_scope=scope, name=name))
    return module


def _asyncio_name(scope: str) -> str:
    return f"_relay_client_asyncio_{scope}"
