"""docs/web-services.md: its services run in processes of their own, against the simulator."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import signal

import pytest
from processes import wait_until_async
from raw_http import raw_connection
from redis_server import RedisServer
from support import CREATE, issued_tokens
from web_services import RECIPES, Service, check_nothing_lost, request_to_share, slow

from plaid_relay_async import (
    AuthenticationError,
    DuplicateRequestError,
    InvalidRequestError,
    JournalError,
    NotSentError,
    OutcomeUnknownError,
    RateLimitError,
    RequestValidationError,
    WaitTooLongError,
)
from plaid_relay_async.simulator import Fault

# The services run in other processes. A journal that a test opens looks up its own path.
pytestmark = pytest.mark.may_block
PAGE = (RECIPES.parent.parent / "docs" / "web-services.md").read_text(encoding="utf-8")
ONLY_FOR_TESTS = {
    "django_asgi.py",
    "django_settings.py",
    "handlers.py",
    "reports.py",
    "sync_views.py",
    "worker.py",
    "wsgi.py",
}
DJANGO = {"DJANGO_SETTINGS_MODULE": "django_settings"}


MINUTES = 300.0  # in seconds: Celery starts slowly, and notices only after ten seconds that a process is lost
VARIABLES = {
    "django": {**DJANGO, "VIEW": "views.share"},
    "wsgi": {**DJANGO, "VIEW": "wsgi_views.share"},
    "gunicorn": {"RELAY_LIMIT": "1000"},
}


@contextlib.asynccontextmanager
async def running_service(name, plaid, folder, *options, **variables):
    """Run a service, and the Redis server that its rate limiter needs."""
    async with contextlib.AsyncExitStack() as stack:
        variables = VARIABLES.get(name, {}) | variables
        if name == "gunicorn":
            redis = RedisServer(folder)
            await redis.start()
            stack.push_async_callback(redis.stop)
            variables |= {"REDIS_URL": redis.url}
        service = Service(name, plaid, folder, options, variables)
        yield await stack.enter_async_context(service.running())


SLOW_SERVICES = [pytest.param(name, marks=pytest.mark.slow) for name in ("gunicorn", "wsgi")]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.name)
def test_web_services_md_shows_the_files(path):
    """web-services.md has each file of the services, except those that only the tests need."""
    text = path.read_text(encoding="utf-8")
    assert (f"```py\n{text}```\n" in PAGE) == (path.name not in ONLY_FOR_TESTS)


@pytest.mark.parametrize(
    ("error", "status", "retry_after", "outcome"),
    [
        (OutcomeUnknownError("x", request_id="1"), 502, None, "unknown"),
        (RateLimitError("x", retry_after=6.2), 503, "7", "failed"),
        (RateLimitError("x"), 503, "60", "failed"),
        (WaitTooLongError("x", retry_after=90.0), 503, "90", "failed"),
        (NotSentError("x"), 503, "5", "failed"),
        (JournalError("x"), 503, "5", "failed"),
        (TimeoutError(), 503, "5", "pending"),
        (RequestValidationError("x", field="secondary_client_id", problem="y"), 422, None, "failed"),
        (InvalidRequestError("x"), 422, None, "failed"),
        (DuplicateRequestError("x"), 409, None, "failed"),
        (AuthenticationError("x"), 502, None, "failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_the_table_of_responses(monkeypatch, error, status, retry_after, outcome):
    """The response to each error is that of the page's table."""
    monkeypatch.syspath_prepend(str(RECIPES))
    response = importlib.import_module("relay").error_response(error)
    assert (response[0], response[1].get("Retry-After"), response[2]["outcome"]) == (
        status,
        retry_after,
        outcome,
    )
    name = "the 45 seconds have passed" if isinstance(error, TimeoutError) else f"`{type(error).__name__}`"
    rows = [row for row in re.findall(r"^\| (.+?) \| (\d+)", PAGE, re.MULTILINE) if name in row[0]]
    assert rows == [] if name == "`AuthenticationError`" else [each for _, each in rows] == [str(status)]


@pytest.fixture(params=["fastapi", "aiohttp", "django", *SLOW_SERVICES])
async def service(request, plaid, tmp_path):
    async with running_service(request.param, plaid, tmp_path) as running:
        yield running


async def test_the_responses(service, plaid):
    """The response to each outcome has the documented status, and a repeated request gets the same one."""
    plaid.fail(
        Fault(secondary_client_id="lost", when="after", close=True),
        Fault(secondary_client_id="later", status=429, headers={"Retry-After": "50"}),
    )
    created = await service.share("ada")
    assert created.status == 200, service.log
    assert created.json == {"relay_token": issued_tokens(plaid)[0]}
    assert (await service.share("ada")).json == created.json
    for _ in range(2):
        unknown = await service.share("lost")
        assert (unknown.status, unknown.json["outcome"]) == (502, "unknown")
        assert "Retry-After" not in unknown.headers
    invalid = await service.share("a%20b")
    assert (invalid.status, invalid.json["outcome"]) == (422, "failed")
    later = await service.share("later")
    assert (later.status, later.headers["Retry-After"]) == (503, "50")
    assert plaid.counts[CREATE] == 3
    await service.stop()
    await check_nothing_lost(service, unknown={"lost"})


async def test_a_disconnect(service, plaid):
    """If a caller disconnects during a creation, the token is recorded, and repeated requests return it."""
    plaid.fail(slow("ada"), slow("ben"))
    await asyncio.gather(service.disconnect("ada"), service.disconnect("ben"))
    responses = await asyncio.gather(*[service.share("ada") for _ in range(5)])
    assert {response.status for response in responses} == {200}, service.log
    [token] = {response.json["relay_token"] for response in responses}
    assert token in issued_tokens(plaid)
    await service.stop()
    assert len(plaid.ledger) == 2
    await check_nothing_lost(service)


@pytest.mark.slow
async def test_a_synchronous_view_under_asgi(plaid, tmp_path):
    """A synchronous view of Django under ASGI can use the server's client; its token isn't lost either."""
    plaid.fail(slow("ada"))
    async with running_service("django", plaid, tmp_path, VIEW="sync_views.share") as service:
        await service.disconnect("ada")
        created = await service.share("ada")
        assert created.json == {"relay_token": issued_tokens(plaid)[0]}
        await check_nothing_lost(service)


@pytest.mark.slow
async def test_a_shutdown(service, plaid, tmp_path):
    """A service that is asked to stop completes the creations in flight, and responds to their callers."""
    plaid.fail(slow("ada"))
    async with asyncio.TaskGroup() as tasks:
        response = tasks.create_task(service.share("ada"))
        await service.wait_for_creation("ada")
        await service.stop()
    assert response.result().json == {"relay_token": issued_tokens(plaid)[0]}
    # uvicorn stops in order, and then ends with the signal that it received.
    assert service.process.returncode in {0, -signal.SIGTERM}
    assert not list(tmp_path.glob("relay.db?*"))  # each process has closed the journal: its lock file is gone
    await check_nothing_lost(service)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "status"),
    [
        ("fastapi", ("--timeout-graceful-shutdown", "1"), 500),
        ("django", ("--timeout-graceful-shutdown", "1"), 500),
        ("aiohttp", ("shutdown_timeout=1",), None),
    ],
)
async def test_a_short_shutdown(plaid, tmp_path, name, options, status):
    """If a server cancels the handlers when it stops, the creations in flight are recorded."""
    plaid.fail(slow("ada", 5))
    async with running_service(name, plaid, tmp_path, *options) as service:
        request = asyncio.create_task(service.share("ada"))
        await service.wait_for_creation("ada")
        await service.stop()
        assert plaid.requests[-1].status is not None  # the service has waited for Plaid's response
        [response] = await asyncio.gather(request, return_exceptions=True)
        assert getattr(response, "status", None) == status
        await check_nothing_lost(service)


@pytest.mark.slow
async def test_a_graceful_timeout_of_gunicorn(plaid, tmp_path):
    """If gunicorn kills its workers, because a request takes longer than `graceful_timeout`, it is unknown."""
    plaid.fail(slow("ada", 60))
    async with running_service("gunicorn", plaid, tmp_path, "--graceful-timeout", "1") as service:
        await service.disconnect("ada")
        await service.stop()
        await check_nothing_lost(service, unknown={"ada"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastapi", "aiohttp", "django"])
async def test_a_journal_that_cannot_be_opened(plaid, tmp_path, name):
    """A service doesn't start without its journal."""
    async with running_service(
        name, plaid, tmp_path, RELAY_JOURNAL=str(tmp_path / "no" / "relay.db")
    ) as service:
        await service.process.wait()
        assert service.process.returncode > 0
        assert "relay.db" in service.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "database"), [("gunicorn", "sqlite"), ("gunicorn", "postgresql"), ("wsgi", "sqlite")]
)
async def test_killed_workers(request, plaid, tmp_path, name, database):
    """If workers are killed during a creation, its outcome is unknown, and a repeated request sends nothing."""
    plaid.fail(slow("ada", 60))
    variables = {}
    if database == "postgresql":
        server = request.getfixturevalue("postgres")
        await server.reset()
        variables = {"RELAY_JOURNAL": server.url}
    async with running_service(name, plaid, tmp_path, **variables) as service:
        await service.disconnect("ada")
        for pid in service.children():
            os.kill(pid, signal.SIGKILL)
        unknown = await service.share("ada")
        assert (unknown.status, unknown.json["outcome"]) == (502, "unknown"), service.log
        assert plaid.counts[CREATE] == 1
        await service.stop()
        await check_nothing_lost(service, unknown={"ada"})


@pytest.mark.slow
async def test_workers_share_a_rate_limit(plaid, tmp_path):
    """The workers of gunicorn share a rate limit: if it is used up, no other worker sends a creation."""
    async with running_service("gunicorn", plaid, tmp_path, "--preload", RELAY_LIMIT="4") as service:
        async with asyncio.timeout(60):
            tasks = [asyncio.create_task(service.share(f"partner-{n}")) for n in range(12)]
            await wait_until_async(lambda: sum(task.done() for task in tasks) == 4)
        await asyncio.sleep(1)
        assert plaid.counts[CREATE] == 4
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        os.killpg(service.process.pid, signal.SIGKILL)
        await check_nothing_lost(service)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cancelled", "variables"),
    [
        ("Starlette", False, {}),
        ("Starlette with BaseHTTPMiddleware", False, {}),
        ("a StreamingResponse", True, {}),
        ("Starlette under gunicorn's own worker", True, {"SECONDS": "10"}),
        ("Django", True, DJANGO),
        ("Django", True, {**DJANGO, "MIDDLEWARE": "handlers.synchronous_middleware"}),
        ("aiohttp.web", False, {}),
        ("aiohttp.web with handler_cancellation", True, {}),
    ],
)
async def test_which_frameworks_cancel_a_handler(plaid, tmp_path, name, cancelled, variables):
    """If a caller disconnects, a framework cancels its handler, or doesn't, as the page says."""
    variables = {"SECONDS": "1", "VIEW": "handlers.view", **variables}
    async with running_service(name, plaid, tmp_path, **variables) as service:
        async with raw_connection(service.url) as connection:
            await connection.send(request_to_share("ada"))
            await wait_until_async(lambda: "started" in service.log)
        await wait_until_async(lambda: "completed" in service.log or "cancelled" in service.log)
        assert ("cancelled" in service.log) == cancelled


@pytest.fixture
def start_celery(plaid, tmp_path):
    """A function that runs a worker of Celery whose broker is a folder."""

    @contextlib.asynccontextmanager
    async def start(**variables):
        broker = tmp_path / "broker"
        broker.mkdir()
        async with running_service("celery", plaid, tmp_path, BROKER=str(broker), **variables) as service:
            await wait_until_async(lambda: "ready." in service.log, MINUTES)
            yield service

    return start


@pytest.mark.slow
async def test_tasks(plaid, start_celery):
    """A task records its token, which isn't in Celery's log. A repeated task sends nothing."""
    plaid.fail(Fault(secondary_client_id="later", status=429, headers={"Retry-After": "50"}))
    async with start_celery() as service:
        for partner in ("ada", "ada", "later"):
            await service.enqueue(partner)
        await wait_until_async(lambda: service.log.count("succeeded in") == 2, MINUTES)
        await wait_until_async(lambda: "Retry in 50s" in service.log, MINUTES)
        await service.stop()
        assert service.process.returncode == 0
        assert [entry["secondary_client_id"] for entry in plaid.ledger] == ["ada"]
        await check_nothing_lost(service)


@pytest.mark.slow
async def test_a_killed_process_of_a_task(plaid, start_celery):
    """If the process of a task is killed, the task runs again, sends nothing, and logs the unknown outcome."""
    plaid.fail(slow("ada", 60))
    async with start_celery() as service:
        await service.enqueue("ada")
        await service.wait_for_creation("ada")
        for pid in service.children():
            os.kill(pid, signal.SIGKILL)
        await wait_until_async(lambda: "isn't shared with ada: {'outcome': 'unknown'" in service.log, MINUTES)
        assert plaid.counts[CREATE] == 1
        await service.stop()
        await check_nothing_lost(service, unknown={"ada"})


@pytest.mark.slow
async def test_a_shutdown_of_celery(plaid, start_celery, tmp_path):
    """A worker that is asked to stop completes its tasks."""
    plaid.fail(slow("ada"))
    async with start_celery() as service:
        await service.enqueue("ada")
        await service.wait_for_creation("ada")
        await service.stop()
        assert not list(tmp_path.glob("relay.db?*"))
        await check_nothing_lost(service)


@pytest.mark.slow
async def test_a_soft_time_limit(plaid, start_celery):
    """The creation of a task that exceeds its soft time limit drains in the thread, and is recorded."""
    plaid.fail(slow("ada", 4))
    async with start_celery(SOFT_TIME_LIMIT="2") as service:
        await service.enqueue("ada")
        await wait_until_async(lambda: "SoftTimeLimitExceeded" in service.log, MINUTES)
        await service.stop()
        await check_nothing_lost(service)


@pytest.mark.parametrize("number", [signal.SIGINT, None])
async def test_a_script(plaid, tmp_path, number):
    """A script that runs one creation with `asyncio.run` records its token, also if it is interrupted."""
    plaid.fail(slow("ada"))
    async with running_service("script", plaid, tmp_path) as service:
        await service.wait_for_creation("ada")
        if number is not None:
            service.process.send_signal(number)
        await service.process.wait()
        assert (service.process.returncode == 0) == (number is None)
        await check_nothing_lost(service)
