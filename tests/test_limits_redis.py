"""The rate limiter that processes share through Redis: a real server, and three processes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys

import pytest
import redis as redis_py
from processes import running_process_async
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis_server import RedisServer
from support import CREATE, OWNER, QUICK, max_in_window
from test_secrets import SECRET, assert_error_is_clean, assert_no_canary
from virtual_clock import run_virtually

from plaid_relay_async import ConfigurationError, NotSentError, RelayClient
from plaid_relay_async.limits import RateLimit, RedisLimiter
from plaid_relay_async.simulator import Limit, Simulator

# redis-py looks up its own version among the installed files for each connection.
pytestmark = pytest.mark.may_block

GET = "/asset_report/get"


@pytest.fixture
async def server(tmp_path):
    server = RedisServer(tmp_path)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


@pytest.fixture
async def redis(server):
    async with Redis.from_url(server.url) as redis:
        yield redis


async def redis_time(redis):
    seconds, micros = await redis.time()
    return seconds + micros / 1e6


async def test_two_limiters_share_a_limit(redis):
    """The permits of one limiter count for the other; another name or endpoint is another limit."""
    limits = {CREATE: RateLimit(3, 60), GET: RateLimit(1, 60)}
    first, second = RedisLimiter(limits, redis), RedisLimiter(limits, redis)
    elsewhere = RedisLimiter(limits, redis, name="another client ID")
    async with asyncio.timeout(10):
        for limiter in (first, second, first, elsewhere, elsewhere, elsewhere):
            await limiter.acquire(CREATE)
        await second.acquire(GET)
        await second.acquire("/credit/relay/get")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await second.acquire(CREATE)


async def test_redis_stores_only_the_permits_that_count(redis):
    """A key has at most as many entries as the limit, and expires one window after the last permit."""
    limiter = RedisLimiter({CREATE: RateLimit(5, 0.5)}, redis)
    for _ in range(18):
        await limiter.acquire(CREATE)
    (key,) = await redis.keys()
    assert 1 <= await redis.llen(key) <= 5
    assert 0 < await redis.pttl(key) <= 517
    while await redis.keys():
        await asyncio.sleep(0.05)


async def test_the_clock_is_that_of_redis(server, redis):
    """A process whose own clock runs through hours in a moment gets no more permits than the limit."""

    async def run_fast():
        loop, times = asyncio.get_running_loop(), []
        no_timeouts = {"socket_timeout": None, "socket_connect_timeout": None}
        async with Redis.from_url(server.url, **no_timeouts) as client:
            limiter = RedisLimiter({CREATE: RateLimit(4, 0.5)}, client)
            for _ in range(9):
                await limiter.acquire(CREATE)
                times.append(await redis_time(client))
        return loop.time(), times

    elapsed, times = await asyncio.to_thread(run_virtually, run_fast())
    assert elapsed > 10
    assert max_in_window(times, 0.5) <= 4
    assert times[-1] - times[0] >= 1


async def test_a_lost_script_is_loaded_again(redis):
    """The limiter continues after Redis has restarted or failed over."""
    limiter = RedisLimiter({CREATE: RateLimit(10)}, redis)
    for _ in range(3):
        await limiter.acquire(CREATE)
        await redis.script_flush()


async def test_without_redis_nothing_is_sent(server, plaid):
    """While Redis is unavailable, a creation fails and certainly wasn't sent; afterwards, creations succeed again."""
    await server.stop()
    async with (
        RedisLimiter({CREATE: RateLimit(10)}, server.url) as limiter,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=limiter) as client,
    ):
        with pytest.raises(NotSentError, match="rate limiter") as caught:
            await client.relay.create([plaid.add_report()], "p")
        assert "Redis, which stores the rate limit" in str(caught.value.__cause__)
        await server.start()
        await client.relay.create([plaid.add_report()], "p")
    assert len(plaid.ledger) == 1


async def test_an_unreachable_redis_sends_nothing(plaid):
    """The same holds for a client of the caller's whose server was never there."""
    no_retries = Retry(NoBackoff(), 0)  # redis-py's own would take seconds
    async with (
        Redis(host="127.0.0.1", port=1, retry=no_retries) as redis,
        RedisLimiter({CREATE: RateLimit(1)}, redis) as limiter,
        RelayClient(OWNER, base_url=plaid.url, retry=QUICK, rate_limiter=limiter) as client,
    ):
        with pytest.raises(NotSentError, match="rate limiter"):
            await client.relay.create([plaid.add_report()], "p")
    assert not plaid.ledger


async def test_a_client_of_the_caller_stays_open(redis):
    """The caller closes a client that it passed; the limiter closes the connections to a URL."""
    async with RedisLimiter({CREATE: RateLimit(10)}, redis) as limiter:
        await limiter.acquire(CREATE)
    assert await redis.ping()


async def test_the_password_of_redis_is_never_shown(tmp_path, every_log):
    """No repr, error or log line contains it, whether it is right or wrong."""
    server = RedisServer(tmp_path, password=SECRET)
    await server.start()
    try:
        async with RedisLimiter({CREATE: RateLimit(10)}, server.url) as limiter:
            await limiter.acquire(CREATE)
            assert_no_canary(f"{limiter!r} {vars(limiter)!r}")
        wrong = server.url.replace(SECRET, f"{SECRET}-wrong")
        async with RedisLimiter({CREATE: RateLimit(10)}, wrong) as limiter:
            with pytest.raises(NotSentError) as caught:
                await limiter.acquire(CREATE)
            assert_error_is_clean(caught.value)
    finally:
        await server.stop()
    assert_no_canary("\n".join(record.getMessage() for record in every_log.records))


@pytest.mark.parametrize(
    "url",
    [f"http://:{SECRET}@127.0.0.1", f"redis://:{SECRET}/x@127.0.0.1:1", f"redis://h/0?db={SECRET}", SECRET],
)
def test_an_invalid_url_is_rejected_without_being_shown(url):
    """It may contain a password."""
    with pytest.raises(ConfigurationError, match="redis isn't a URL of Redis") as caught:
        RedisLimiter({}, url)
    assert_error_is_clean(caught.value)


def test_a_blocking_client_is_rejected():
    """It would block the event loop."""
    with pytest.raises(ConfigurationError, match=r"must be a redis.asyncio.Redis, not Redis"):
        RedisLimiter({}, redis_py.Redis())


def test_a_missing_extra_is_named():
    """With a URL and without redis-py, the error names the extra to install."""
    code = (
        "import sys; sys.modules['redis.asyncio'] = None\n"
        "from plaid_relay_async.limits import RedisLimiter; RedisLimiter({}, 'redis://127.0.0.1')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigurationError" in done.stderr
    assert "pip install 'plaid_relay_async[redis]'" in done.stderr


# ------------------------------------------------------------------------------------- three processes

COUNT, PER, WINDOWS = 150, 3.0, 3
PROGRAM = f"""
import asyncio, itertools, sys
from plaid_relay_async import Credentials, RelayClient, RelayCreateRequest
from plaid_relay_async.limits import RateLimit, RedisLimiter

async def main(plaid, redis, name):
    partners = (f"{{name}}-{{number}}" for number in itertools.count())
    async with (
        RedisLimiter({{"{CREATE}": RateLimit({COUNT}, {PER})}}, redis) as limiter,
        RelayClient(Credentials("lender", "secret"), base_url=plaid, rate_limiter=limiter) as client,
        client.relay.create_many(RelayCreateRequest.fan_out(["report"], partners), concurrency=20) as outcomes,
    ):
        async for _ in outcomes:
            pass

asyncio.run(main(*sys.argv[1:]))
"""


async def create_by_three_processes(server):
    """Return the requests that Plaid declined, the processes that created tokens, and the used part of the limit."""
    async with Simulator(reports=["report"], limits=[Limit(CREATE, COUNT, PER)]) as plaid:
        arguments = ("-c", PROGRAM, plaid.url, server.url)
        async with contextlib.AsyncExitStack() as stack:
            processes = [
                await stack.enter_async_context(running_process_async(sys.executable, *arguments, name))
                for name in "abc"
            ]
            first, last = [await time_of_entry(plaid, number) for number in (1, WINDOWS * COUNT + 1)]
            for process in processes:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))
        partners = {entry["secondary_client_id"].partition("-")[0] for entry in plaid.ledger}
    return plaid.rate_limited, partners, WINDOWS * PER / (last - first)


async def test_three_processes_share_a_limit(server):
    """Plaid declines no request of three processes that share one Redis, and they use most of it."""
    for _ in range(8):  # a busy machine delays requests that have a permit
        declined, partners, used = await create_by_three_processes(server)
        if not declined:
            break
    assert not declined
    assert partners == {"a", "b", "c"}
    assert used > 0.5  # above 0.95 on an idle machine


async def time_of_entry(plaid, number):
    """Return the time at which the ledger gets its nth entry, to some milliseconds."""
    loop = asyncio.get_running_loop()
    while len(plaid.ledger) < number:
        await asyncio.sleep(0.002)
    return loop.time()
