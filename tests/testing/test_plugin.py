"""The pytest plugin, in test suites that use it."""

from __future__ import annotations

import os
import sys

import pytest

pytest_plugins = ["pytester"]

# Each way to run asynchronous tests: pytest's options, and the marker of a test.
WAYS = {
    "auto": (["-o", "asyncio_mode=auto"], ""),
    "strict": (["-o", "asyncio_mode=strict"], "@pytest.mark.asyncio"),
    "session loop": (["-o", "asyncio_mode=strict"], "@pytest.mark.asyncio(loop_scope='session')"),
    "default loop": (
        ["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=module"],
        "",
    ),
    "anyio": (["-p", "no:asyncio", "-W", "ignore::pytest.PytestConfigWarning"], "@pytest.mark.anyio"),
    "anyio's auto mode": (
        ["-p", "no:asyncio", "-W", "ignore::pytest.PytestConfigWarning", "-o", "anyio_mode=auto"],
        "",
    ),
    "anyio beside pytest-asyncio": (["-o", "asyncio_mode=strict"], "@pytest.mark.anyio"),
}

BACKEND = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""

CREATION = """
import pytest

@pytest.mark.plaid(reports=["report-1"])
{marker}
async def test_creation(relay_client, plaid_simulator):
    created = await relay_client.relay.create(["report-1"], "partner-1")
    assert plaid_simulator.ledger[0]["relay_token"] == created.relay_token
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder for a test suite, in an environment with credentials that a test must not use."""
    monkeypatch.setenv("PLAID_CLIENT_ID", "real-client-id")
    monkeypatch.setenv("PLAID_SECRET", "real-secret")
    monkeypatch.setenv("PLAID_ENV", "production")
    monkeypatch.setenv("PLAID_SECRET_EUROPE", "real-secret")
    monkeypatch.delenv("PLAID_BASE_URL", raising=False)
    pytester.makeini("[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makeconftest(BACKEND)
    return pytester


def run(suite: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    suite.makepyfile(source)
    return suite.runpytest("-p", "no:cacheprovider", *options)


def run_synchronous(suite: pytest.Pytester, body: str, marker: str = "") -> pytest.RunResult:
    """Run a test that has one function for its asynchronous steps, `main(client, plaid)`."""
    source = f"""
import asyncio
import pytest
from plaid_relay_async import OutcomeUnknownError, RelayClient, RelayCreateRequest
from plaid_relay_async.testing import Fault, WebhookFault

LOST = Fault(when="after", close=True, times=1)

async def main(client, plaid):
    {body}

@pytest.mark.plaid(reports=["report-1"])
{marker}
def test_it(plaid_simulator):
    async def run():
        async with RelayClient() as client:
            await main(client, plaid_simulator)
    asyncio.run(run())
"""
    return run(suite, source)


@pytest.mark.parametrize(("options", "marker"), WAYS.values(), ids=WAYS)
def test_a_client_in_the_event_loop_of_the_test(suite, options, marker):
    """relay_client is open in the test's event loop, with pytest-asyncio in each mode and with anyio."""
    result = run(suite, CREATION.format(marker=marker), *options)
    result.assert_outcomes(passed=1)


def test_a_fixture_may_use_the_client(suite):
    """An asynchronous fixture may use relay_client, because the client is opened before it."""
    source = """
import pytest
import pytest_asyncio

pytestmark = pytest.mark.plaid(reports=["report-1"])

@pytest_asyncio.fixture
async def token(relay_client):
    return (await relay_client.relay.create(["report-1"], "partner-1")).relay_token

@pytest.mark.asyncio
async def test_removal(relay_client, token):
    assert (await relay_client.relay.remove(token)).removed
"""
    run(suite, source).assert_outcomes(passed=1)


def test_a_synchronous_test_has_no_client(suite):
    """relay_client fails in a synchronous test, and says which tests it is for."""
    result = run(suite, "def test_it(relay_client): ...")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*relay_client is for asynchronous tests*"])


def test_trio_is_rejected(suite):
    """relay_client fails in anyio's tests on trio, and says how to select asyncio."""
    source = """
import pytest

@pytest.fixture
def anyio_backend():
    return "trio"

@pytest.mark.anyio
async def test_it(relay_client): ...
"""
    result = run(suite, source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['RelayClient needs asyncio: let anyio_backend return "asyncio"'])


def test_test_cases_of_unittest(suite):
    """Test cases of unittest may use the simulators, and a failed one is reported once."""
    source = """
import asyncio
import unittest
import pytest
from plaid_relay_async import RelayClient
from plaid_relay_async.testing import Fault

async def create():
    async with RelayClient() as client:
        await client.relay.create(["report-1"], "partner-1")

@pytest.mark.usefixtures("plaid_simulator_server")
@pytest.mark.plaid(reports=["report-1"])
class TestCreation(unittest.TestCase):
    def test_success(self):
        asyncio.run(create())

    @pytest.mark.plaid(faults=[Fault(when="after", close=True, times=1)])
    def test_failure(self):
        asyncio.run(create())

@pytest.mark.usefixtures("plaid_simulator")
@pytest.mark.plaid(reports=["report-1"])
class TestAsynchronousCreation(unittest.IsolatedAsyncioTestCase):
    async def test_success(self):
        await create()
"""
    run(suite, source).assert_outcomes(passed=2, failed=1)


def test_processes_of_xdist_have_their_own_simulators(suite):
    """With pytest-xdist, each process has its own simulators, and their teardown checks work."""
    source = CREATION.format(marker="@pytest.mark.parametrize('number', range(4))").replace(
        "(relay_client", "(number, plaid_simulator_server, relay_client"
    )
    suite.makepyfile(f"{source}\n\ndef test_without_the_fixtures():\n    assert True\n")
    result = suite.runpytest_subprocess("-n", "2", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=5)


# -------------------------------------------------------------------------------------- the environment


def test_real_credentials_are_out_of_reach(suite):
    """A test with the fixtures has fake credentials, also in fixtures set up before the simulator; others don't."""
    source = """
import os
import pytest
from plaid_relay_async import RelayClient

@pytest.fixture
def early_client():
    return RelayClient()

def test_before():
    assert os.environ["PLAID_SECRET"] == "real-secret"

def test_with_the_simulator(early_client, plaid_simulator):
    assert repr(early_client) == f"<RelayClient for {plaid_simulator.url}>"
    assert os.environ["PLAID_BASE_URL"] == plaid_simulator.url
    assert os.environ["PLAID_SECRET"] == "testing-secret-7e577e577e57"
    assert os.environ["PLAID_CLIENT_ID"] == "testing-client-id"
    assert "PLAID_ENV" not in os.environ
    assert "PLAID_SECRET_EUROPE" not in os.environ

def test_after():
    assert os.environ["PLAID_SECRET"] == "real-secret"
    assert "PLAID_BASE_URL" not in os.environ
"""
    run(suite, source).assert_outcomes(passed=3)
    assert os.environ["PLAID_SECRET"] == "real-secret"


def test_the_simulator_can_be_requested_dynamically(suite):
    """A test that requests plaid_simulator while it runs has fake credentials from then on."""
    source = """
import os

def test_it(request):
    plaid = request.getfixturevalue("plaid_simulator")
    assert os.environ["PLAID_BASE_URL"] == plaid.url
    assert os.environ["PLAID_CLIENT_ID"] == "testing-client-id"

def test_after():
    assert os.environ["PLAID_CLIENT_ID"] == "real-client-id"
"""
    run(suite, source).assert_outcomes(passed=2)


def test_a_project_may_have_fixtures_with_the_same_names(suite):
    """A project's own fixtures with the names of the plugin's take their place, and relay_client can use them."""
    source = """
import os
import pytest

@pytest.fixture
def plaid_simulator_server():
    return "mine"

@pytest.fixture
def plaid_simulator():
    from plaid_relay_async.testing import SimulatorThread
    with SimulatorThread(reports=["report-1"]) as plaid:
        yield plaid

@pytest.mark.plaid("of another plugin")
@pytest.mark.asyncio
async def test_it(plaid_simulator_server, relay_client, plaid_simulator):
    assert os.environ["PLAID_SECRET"] == "real-secret"
    await relay_client.relay.create(["report-1"], "partner-1")
    assert len(plaid_simulator.ledger) == 1
"""
    run(suite, source).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "source", ["def test_it(): ...", "import pytest\n@pytest.mark.plaid\ndef test_it(): ..."]
)
def test_the_plugin_imports_nothing_without_its_fixtures(suite, source):
    """A run that uses no fixture imports neither the package nor aiohttp, even if a test has the marker."""
    suite.makeconftest(
        "import sys\n"
        "def pytest_sessionfinish():\n"
        "    print('LOADED', *{'plaid_relay_async', 'aiohttp', 'attrs'} & {*sys.modules}, 'END')\n"
    )
    suite.makepyfile(source)
    options = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-s", "--strict-markers")
    result = suite.runpytest_subprocess(*options)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*LOADED END*"])


def test_a_program_that_has_imported_the_package_may_run_pytest(suite):
    """pytest.main() warns about nothing in a process that has imported the package."""
    suite.makepyfile("def test_it(): ...")
    program = "import plaid_relay_async, pytest; raise SystemExit(pytest.main(['-p', 'no:cacheprovider']))"
    result = suite.run(sys.executable, "-W", "error", "-c", program)
    assert result.ret == 0
    result.assert_outcomes(passed=1)


# ------------------------------------------------------------------------------- the checks at the end


def test_a_test_that_loses_nothing_passes(suite):
    """A test passes if its clients returned all tokens, alone and in batches, and its faults were met."""
    body = """
    plaid.fail(Fault(status=429, times=1, headers={"Retry-After": "0"}), Fault(stall=1.0, times=0))
    await client.relay.create(["report-1"], "partner-1")
    outcomes = []
    requests = RelayCreateRequest.fan_out(["report-1"], ["partner-2", "partner-3"])
    await client.relay.create_many(requests, on_outcome=outcomes.append)
    assert len(outcomes) == 2
    async with client.relay.create_many([RelayCreateRequest(["report-1"], "partner-4")]) as batch:
        async for outcome in batch:
            assert outcome.relay_token
    """
    run_synchronous(suite, body).assert_outcomes(passed=1)


def test_a_fault_that_was_never_met_fails_the_test(suite):
    """A test fails at its end if a scripted fault never applied: of a request, or of a webhook."""
    body = "plaid.fail(Fault(path='/credit/relay/get', status=500), WebhookFault(lose=True))"
    result = run_synchronous(suite, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*a scripted fault never applied: Fault(*", "*never applied: WebhookFault(*"]
    )


LOSES_A_TOKEN = """
    plaid.fail(LOST)
    with pytest.raises(OutcomeUnknownError):
        await client.relay.create(["report-1"], "partner-1")
"""


def test_a_token_that_no_client_returned_fails_the_test(suite):
    """A test fails at its end if a token was lost; the message has the partner, and not the token."""
    result = run_synchronous(suite, LOSES_A_TOKEN)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*no client of this process has returned the tokens for partner-1 (*); *allow_unclaimed=True)"]
    )
    assert "-sandbox-" not in str(result.stdout)


def test_many_lost_tokens_are_counted(suite):
    """The message about lost tokens lists ten partners, and counts the others."""
    body = """
    plaid.fail(Fault(when="after", close=True))
    requests = RelayCreateRequest.fan_out(["report-1"], [f"partner-{n}" for n in range(13)])
    await client.relay.create_many(requests)
    """
    result = run_synchronous(suite, body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*) and 3 others; *"])


def test_a_test_may_be_allowed_to_lose_tokens(suite):
    """With allow_unclaimed=True, a token may be lost."""
    result = run_synchronous(suite, LOSES_A_TOKEN, "@pytest.mark.plaid(allow_unclaimed=True)")
    result.assert_outcomes(passed=1)


def test_a_failed_test_fails_once(suite):
    """The checks at the end are left out after a failure, whose consequences they would report."""
    result = run_synchronous(suite, f"{LOSES_A_TOKEN}\n    assert False, 'the reason'")
    result.assert_outcomes(failed=1)


def test_a_failed_teardown_is_reported_alone(suite):
    """If another fixture's teardown fails, its error is reported, and the environment is restored."""
    source = """
import os
import pytest

@pytest.fixture
def broken():
    yield
    raise RuntimeError("the reason")

@pytest.mark.plaid(faults=[])
def test_it(plaid_simulator, broken): ...

def test_after():
    assert os.environ["PLAID_SECRET"] == "real-secret"
"""
    result = run(suite, source)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: the reason*"])


# --------------------------------------------------------------------------------------------- the marker


def test_the_marker_sets_the_state_of_the_simulator(suite):
    """The marker sets reports, faults and latency; the closest marker with an option decides about it."""
    source = """
import asyncio
import pytest
from plaid_relay_async import RateLimitError, RelayClient, RetryPolicy
from plaid_relay_async.testing import Fault

latencies = []

def latency():
    latencies.append(1)
    return 0.001

pytestmark = pytest.mark.plaid(reports=["report-1"], latency=60.0)

@pytest.mark.plaid(faults=[Fault(status=429, times=1)], latency=30.0)
class TestSharing:
    @pytest.mark.plaid(latency=latency)
    def test_it(self, plaid_simulator):
        async def create():
            async with RelayClient(retry=RetryPolicy(attempts=1)) as client:
                with pytest.raises(RateLimitError):
                    await client.relay.create(["report-1"], "partner-1")
                await client.relay.create(["report-1"], "partner-1")
        asyncio.run(create())
        assert len(latencies) == 2
"""
    run(suite, source).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("report=['a']", "there is no argument report"),
        ("['a']", "it takes no positional arguments"),
        ("reports='report-1'", "reports must be a list of tokens"),
        ("faults=Fault(status=429)", "faults must be a list of Fault(...) and WebhookFault(...)"),
        ("faults=[{'status': 429}]", "faults must be a list of Fault(...) and WebhookFault(...)"),
        ("latency=-1", "latency must be seconds, or a function that returns them"),
        ("latency='1'", "latency must be seconds, or a function that returns them"),
    ],
)
def test_an_invalid_marker_fails_the_test(suite, arguments, problem):
    """An invalid argument of the marker fails the test, and the message says what is allowed."""
    source = f"""
import pytest
from plaid_relay_async.testing import Fault

@pytest.mark.plaid({arguments})
def test_it(plaid_simulator): ...
"""
    result = run(suite, source)
    result.assert_outcomes(errors=1)
    problem = problem.replace("[", "[[]")
    result.stdout.fnmatch_lines([f"@pytest.mark.plaid: {problem}; its arguments are reports=, faults=, *"])


# --------------------------------------------------------------------------- the server of the session


def test_the_server_is_reset_before_each_test(suite):
    """plaid_simulator_server keeps its address for the session, and each test begins with a new state."""
    source = """
import asyncio
import os
import pytest
from plaid_relay_async import RelayClient

@pytest.fixture(scope="session")
def base_url(plaid_simulator_server):
    return os.environ["PLAID_BASE_URL"]

@pytest.mark.plaid(reports=["report-1"])
@pytest.mark.parametrize("number", [1, 2])
def test_it(base_url, plaid_simulator_server, number):
    async def create():
        async with RelayClient() as client:
            await client.relay.create(["report-1"], "partner-1")
    assert os.environ["PLAID_BASE_URL"] == plaid_simulator_server.url == base_url
    asyncio.run(create())
    assert len(plaid_simulator_server.ledger) == 1

def test_without():
    assert os.environ["PLAID_ENV"] == "production"

@pytest.mark.plaid(faults=[])
def test_no_report(plaid_simulator_server):
    assert not plaid_simulator_server.requests
"""
    run(suite, source).assert_outcomes(passed=4)


# -------------------------------------------------------------------------------- patched sessions

PATCHED = """
import pytest
from aioresponses import aioresponses

@pytest.mark.plaid(reports=["report-1"])
@pytest.mark.asyncio
async def test_it(relay_client):
    with aioresponses():
        await relay_client.relay.create(["report-1"], "partner-1")
"""


def test_a_patched_session_is_reported(suite):
    """A test gets a warning if its request bypassed a patch of ClientSession, such as that of aioresponses."""
    result = run(suite, PATCHED, "-W", "default")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*PatchedSessionWarning: aiohttp.ClientSession is patched*"])


def test_the_warning_can_be_an_error(suite):
    """With warnings as errors, the bypassed patch fails the test at its end."""
    result = run(suite, PATCHED)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*PatchedSessionWarning: aiohttp.ClientSession is patched*"])
