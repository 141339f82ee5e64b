"""The pytest plugin beside other features of pytest and of its plugins: each test is judged once, and rightly."""

from __future__ import annotations

import os
import threading

import pytest

pytest_plugins = ["pytester"]

HEAD = """
import asyncio
import threading
import unittest
import hypothesis
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings, strategies
from plaid_relay_async import OutcomeUnknownError, RelayClient
from plaid_relay_async.testing import Fault

pytestmark = pytest.mark.plaid(reports=["report-1"])
LOST = Fault(when="after", close=True, times=1)

async def create(partner="partner-1"):
    async with RelayClient() as client:
        return await client.relay.create(["report-1"], partner)

def lose_token(plaid):
    plaid.fail(LOST)
    with pytest.raises(OutcomeUnknownError):
        asyncio.run(create())

"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder for a test suite, in an environment with credentials that a test must not use."""
    monkeypatch.setenv("PLAID_SECRET", "real-secret")
    pytester.makeini("[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n")
    return pytester


def run(suite: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    suite.makepyfile(HEAD + source)
    result = suite.runpytest("-p", "no:cacheprovider", *options)
    assert os.environ["PLAID_SECRET"] == "real-secret"
    assert "PLAID_BASE_URL" not in os.environ
    return result


def test_only_a_test_that_passed_is_checked(suite):
    """A token that was lost isn't reported after a skip, an expected failure, or a failure of the set-up."""
    source = """
@pytest.fixture
def broken(plaid_simulator):
    lose_token(plaid_simulator)
    raise RuntimeError("the reason")

def test_set_up(broken): ...

@pytest.mark.xfail
def test_expected_failure(plaid_simulator):
    lose_token(plaid_simulator)
    assert False

def test_skipped_inside(plaid_simulator):
    lose_token(plaid_simulator)
    pytest.skip()

@pytest.mark.skip
@pytest.mark.plaid(unknown=1)
def test_skipped(plaid_simulator): ...
"""
    result = run(suite, source)
    result.assert_outcomes(errors=1, xfailed=1, skipped=2)
    assert "allow_unclaimed" not in str(result.stdout)


def test_an_expected_failure_may_be_that_of_the_check(suite):
    """If a test is expected to fail, so is the check at its end."""
    source = """
@pytest.mark.xfail
def test_it(plaid_simulator):
    lose_token(plaid_simulator)
"""
    run(suite, source).assert_outcomes(xpassed=1, xfailed=1)


def test_a_failed_subtest_is_reported_alone(suite):
    """The end of a test isn't checked if one of its subtests failed."""
    source = """
def test_pytest(plaid_simulator, subtests):
    with subtests.test("first"):
        lose_token(plaid_simulator)
        assert False
    with subtests.test("second"):
        pass

@pytest.mark.usefixtures("plaid_simulator")
class TestUnittest(unittest.TestCase):
    def test_it(self):
        with self.subTest("first"):
            self.fail()
"""
    outcomes = run(suite, source).parseoutcomes()
    assert outcomes["failed"] == 3
    assert "errors" not in outcomes


def test_parametrized_tests_are_judged_one_by_one(suite):
    """Only the case that lost a token fails, and the mark of a case permits it."""
    source = """
@pytest.mark.parametrize("loses", [
    False, True, pytest.param(True, marks=pytest.mark.plaid(allow_unclaimed=True)), False
])
@pytest.mark.parametrize("simulator", ["plaid_simulator", "plaid_simulator_server"])
def test_it(request, plaid_simulator_server, simulator, loses):
    plaid = request.getfixturevalue(simulator)
    lose_token(plaid) if loses else asyncio.run(create())
"""
    run(suite, source).assert_outcomes(passed=8, errors=2)


def test_the_two_fixtures_are_one_simulator(suite):
    """A test that uses the simulator of the session has no other one."""
    source = """
@pytest.fixture(scope="session", autouse=True)
def address(plaid_simulator_server):
    return plaid_simulator_server.url

@pytest.mark.asyncio
async def test_it(address, plaid_simulator, relay_client):
    await relay_client.relay.create(["report-1"], "partner-1")
    assert plaid_simulator.url == address
    assert len(plaid_simulator.ledger) == 1
"""
    run(suite, source).assert_outcomes(passed=1)


def test_a_client_from_outside_calls_no_other_machine(suite, monkeypatch):
    """A client that a module or an earlier test created, with real credentials, sends nothing."""
    source = """
client = RelayClient()

@pytest.fixture(scope="session")
def earlier_client():
    return RelayClient()

def test_before(earlier_client): ...

@pytest.mark.parametrize("name", ["module", "session"])
def test_it(plaid_simulator, earlier_client, name):
    async def call():
        async with {"module": client, "session": earlier_client}[name] as used:
            await used.relay.create(["report-1"], "partner-1")
    asyncio.run(call())
"""
    monkeypatch.setenv("PLAID_CLIENT_ID", "real-client-id")
    monkeypatch.setenv("PLAID_ENV", "production")
    result = run(suite, source)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*ConfigurationError: a test that uses a simulator must not call https://production*"]
    )


def test_fixtures_with_a_wider_scope(suite):
    """Fixtures of a class, also asynchronous ones, may hold a client of the session's simulator."""
    source = """
@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def client(plaid_simulator_server):
    async with RelayClient() as client:
        yield client

@pytest.mark.asyncio(loop_scope="class")
class TestSharing:
    async def test_first(self, client):
        await client.relay.create(["report-1"], "partner-1")

    @pytest.mark.plaid(faults=[Fault(status=500)], allow_unclaimed=True)
    async def test_second(self, client, relay_client, plaid_simulator_server):
        for each in (client, relay_client):
            with pytest.raises(OutcomeUnknownError):
                await each.relay.create(["report-1"], "partner-1")
        assert len(plaid_simulator_server.requests) == 2
"""
    run(suite, source).assert_outcomes(passed=2)


def test_examples_of_hypothesis(suite):
    """Tests of Hypothesis may use the simulators; the examples of a test share its state."""
    source = """
profile = settings(
    max_examples=5, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

@profile
@hypothesis.given(number=strategies.integers())
def test_synchronous(plaid_simulator_server, number):
    asyncio.run(create(f"partner-{number}"))

@pytest.mark.asyncio
@profile
@hypothesis.given(number=strategies.integers())
async def test_asynchronous(relay_client, number):
    await relay_client.relay.create(["report-1"], f"partner-{number}")
"""
    run(suite, source).assert_outcomes(passed=2)


@pytest.mark.may_block  # the first clients import modules, in threads that wait for each other
def test_clients_in_threads(suite):
    """The tokens of several clients, in several threads and event loops, count as returned."""
    source = """
def test_it(plaid_simulator):
    partners = [f"partner-{number}" for number in range(4)]
    threads = [threading.Thread(target=lambda name=name: asyncio.run(create(name))) for name in partners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plaid_simulator.ledger) == 4

@pytest.mark.asyncio
async def test_a_thread_of_an_asynchronous_test(relay_client, plaid_simulator):
    await relay_client.relay.create(["report-1"], "partner-1")
    await asyncio.to_thread(asyncio.run, create("partner-2"))
    assert len(plaid_simulator.ledger) == 2
"""
    run(suite, source).assert_outcomes(passed=2)


def test_a_session_inside_of_a_test(suite):
    """A test that uses a simulator may run another session, which has its own simulator and checks."""
    source = """
pytest_plugins = ["pytester"]

INNER = \"\"\"
from plaid_relay_async.testing import Fault

def test_inner(plaid_simulator):
    plaid_simulator.fail(Fault(status=500))
\"\"\"

def test_it(plaid_simulator, pytester):
    pytester.makepyfile(INNER)
    pytester.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=1, errors=1)
    asyncio.run(create())
    assert len(plaid_simulator.ledger) == 1
"""
    run(suite, source).assert_outcomes(passed=1)


def test_an_interrupted_session_restores_the_environment(suite):
    """Ctrl-C during a test restores the environment at the end of the session, and stops the simulators."""
    suite.makepyfile(f"{HEAD}def test_it(plaid_simulator): raise KeyboardInterrupt")
    result = suite.runpytest_inprocess("-p", "no:cacheprovider", no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert os.environ["PLAID_SECRET"] == "real-secret"
    assert "plaid-simulator" not in [thread.name for thread in threading.enumerate()]


def test_doctests(suite):
    """A doctest may request the simulator."""
    suite.maketxtfile(
        test_page="""
        >>> plaid = getfixture("plaid_simulator")
        >>> plaid.url == __import__("os").environ["PLAID_BASE_URL"]
        True
        """
    )
    suite.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=1)
    assert os.environ["PLAID_SECRET"] == "real-secret"
