"""The pytest plugin of plaid_relay_async: its marker, its hooks and its fixtures. See `docs/testing.md`.

pytest loads this module in every run of every project that has the package installed. So it is outside of the
package, and imports the package only for a test that uses one of the fixtures.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

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
_LOOP_SCOPES = ("function", "class", "module", "package", "session")

_patch = pytest.StashKey[pytest.MonkeyPatch]()
_scenario = pytest.StashKey["Scenario"]()
_server = pytest.StashKey["SimulatorThread"]()


# --------------------------------------------------------------------------------------------- the session


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and, if pytest-asyncio is active, the fixtures that it runs."""
    config.addinivalue_line("markers", _MARKER)
    asyncio_plugin = config.pluginmanager.get_plugin("asyncio")
    fixture = getattr(asyncio_plugin, "fixture", None)
    if fixture is not None and "loop_scope" in inspect.signature(fixture).parameters:
        config.pluginmanager.register(_asyncio_fixtures(fixture), _ASYNCIO_FIXTURES)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server of the session."""
    if _server in config.stash:
        config.stash[_server].__exit__(None, None, None)
        del config.stash[_server]


def _running_server(config: pytest.Config) -> SimulatorThread:
    from plaid_relay_async.testing import SimulatorThread

    if _server not in config.stash:
        config.stash[_server] = SimulatorThread().__enter__()
    return config.stash[_server]


# ------------------------------------------------------------------------------------------------ one test


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Prepare a test that uses the fixtures, before any of its fixtures is set up.

    A fixture that creates a client may be set up before the simulator's, and must not find real credentials.
    """
    names = {_SCENARIO_FIXTURE, _SERVER_FIXTURE}.intersection(getattr(item, "fixturenames", ()))
    if not names:
        return
    scenario = _prepare(item)
    if _SERVER_FIXTURE in names:
        server = _running_server(item.config)
        server.run(server.reset(**scenario.state))
        _use_simulator(item, server)


def _prepare(item: pytest.Item) -> Scenario:
    """Return the scenario of a test, and begin it if a fixture is the first to need it."""
    if _scenario not in item.stash:
        from plaid_relay_async.testing.scenario import Options, Scenario

        try:
            options = Options.from_markers(item.iter_markers("plaid"))
        except ValueError as error:
            pytest.fail(str(error), pytrace=False)
        item.stash[_scenario] = scenario = Scenario(options)
        item.stash[_patch] = patch = pytest.MonkeyPatch()
        scenario.claims.record(patch)
        _set_environment(patch, scenario)
    return item.stash[_scenario]


def _use_simulator(item: pytest.Item, simulator: SimulatorThread) -> None:
    scenario = item.stash[_scenario]
    scenario.simulators.append(simulator)
    _set_environment(item.stash[_patch], scenario)


def _set_environment(patch: pytest.MonkeyPatch, scenario: Scenario) -> None:
    for name, value in scenario.environment.items():
        if value is None:
            patch.delenv(name, raising=False)
        else:
            patch.setenv(name, value)


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note whether the test function passed; what is wrong after a failure only distracts from it."""
    if call.when == "call" and _scenario in item.stash:
        item.stash[_scenario].passed = call.excinfo is None


# Of the old style, because pluggy before 1.2 rejects a module with wrappers of the new style.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Result[None], None]:
    """Check the end of a test when its fixtures are torn down, and restore the environment."""
    outcome = yield
    if _scenario not in item.stash:
        return
    scenario = item.stash[_scenario]
    item.stash[_patch].undo()
    del item.stash[_scenario], item.stash[_patch]
    if outcome.excinfo is None:
        try:
            _check_end(item, scenario)
        except BaseException as error:  # noqa: BLE001  # pluggy would warn about an exception of a wrapper
            outcome.force_exception(error)


def _check_end(item: pytest.Item, scenario: Scenario) -> None:
    if scenario.bypassed_patch:
        from plaid_relay_async.testing.interception import PATCHED_SESSION, PatchedSessionWarning

        item.warn(PatchedSessionWarning(PATCHED_SESSION))
    problems = [*scenario.problems()] if scenario.passed else []
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


# -------------------------------------------------------------------------------------------- the fixtures


@pytest.fixture(name=_SCENARIO_FIXTURE)
def _plaid_scenario(request: pytest.FixtureRequest) -> Scenario:
    return _prepare(request.node)


@pytest.fixture(scope="session", name=_SERVER_FIXTURE)
def _plaid_server(pytestconfig: pytest.Config) -> SimulatorThread:
    return _running_server(pytestconfig)


@pytest.fixture
def plaid_simulator(request: pytest.FixtureRequest, _plaid_scenario: Scenario) -> Iterator[SimulatorThread]:
    """A new simulator of Plaid for the test, with the environment variables of its clients.

    It runs in a thread: so a test may use pytest-asyncio, anyio or no event loop at all.
    """
    from plaid_relay_async.testing import SimulatorThread

    with SimulatorThread(**_plaid_scenario.state) as simulator:
        _use_simulator(request.node, simulator)
        yield simulator


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
        scope = marker.kwargs.get("loop_scope") or request.config.getini("asyncio_default_test_loop_scope")
        return _asyncio_name(scope)
    if "anyio_backend" in request.fixturenames:
        return "_relay_client_anyio"
    return pytest.fail(
        "relay_client is for asynchronous tests, of pytest-asyncio (1.0 or newer) or of anyio", pytrace=False
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
