"""A limit that many keep together through Redis: a real server, and three processes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys

import pytest
import redis as redis_py
from processes import running_process_async
from redis.asyncio import Redis
from redis_server import RedisServer
from support import OWNER, QUICK, max_in_window
from test_secrets import SECRET, assert_error_is_clean, assert_no_canary
from virtual_clock import run_virtually

from plaid_relay_async import ConfigurationError, NotSentError, RelayClient
from plaid_relay_async.limits import RateLimit, RedisLimiter
from plaid_relay_async.simulator import Limit, Simulator

# redis-py looks up its own version among the installed files for each connection.
pytestmark = pytest.mark.may_block

CREATE, GET = "/credit/relay/create", "/asset_report/get"


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
    """What one of them grants the other counts; another name or endpoint is another limit."""
    limits = {CREATE: RateLimit(3, 60), GET: RateLimit(1, 60)}
    one, two = RedisLimiter(limits, redis), RedisLimiter(limits, redis)
    elsewhere = RedisLimiter(limits, redis, name="another client id")
    async with asyncio.timeout(10):
        for limiter in (one, two, one, elsewhere, elsewhere, elsewhere):
            await limiter.acquire(CREATE)
        await two.acquire(GET)
        await two.acquire("/credit/relay/get")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await two.acquire(CREATE)


async def test_redis_keeps_no_more_than_counts(redis):
    """A key holds at most as many grants as the limit has, and is gone a window after the last."""
    limiter = RedisLimiter({CREATE: RateLimit(5, 0.5)}, redis)
    for _ in range(18):
        await limiter.acquire(CREATE)
    (key,) = await redis.keys()
    assert 1 <= await redis.llen(key) <= 5
    assert 0 < await redis.pttl(key) <= 517
    while await redis.keys():
        await asyncio.sleep(0.05)


async def test_the_clock_that_counts_is_that_of_redis(server, redis):
    """A process whose clock races through hours in a moment gets no more than the limit."""

    async def racing():
        clock, moments = asyncio.get_running_loop(), []
        patient = {"socket_timeout": None, "socket_connect_timeout": None}
        async with Redis.from_url(server.url, **patient) as there:
            limiter = RedisLimiter({CREATE: RateLimit(4, 0.5)}, there)
            for _ in range(9):
                await limiter.acquire(CREATE)
                moments.append(await redis_time(there))
        return clock.time(), moments

    passed, moments = await asyncio.to_thread(run_virtually, racing())
    assert passed > 10
    assert max_in_window(moments, 0.5) <= 4
    assert moments[-1] - moments[0] >= 1


async def test_a_redis_that_forgets_its_scripts_is_taught_again(redis):
    """After a restart or a failover the limiter goes on."""
    limiter = RedisLimiter({CREATE: RateLimit(10)}, redis)
    for _ in range(3):
        await limiter.acquire(CREATE)
        await redis.script_flush()


async def test_without_redis_nothing_is_sent(server, plaid):
    """While Redis is away a creation fails and surely wasn't sent; once it is back all is well."""
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


async def test_a_client_of_the_callers_stays_open(redis):
    """Who opened it closes it; a URL's connections are the limiter's."""
    async with RedisLimiter({CREATE: RateLimit(10)}, redis) as limiter:
        await limiter.acquire(CREATE)
    assert await redis.ping()


async def test_the_password_of_redis_shows_nowhere(tmp_path, every_log):
    """Not in a repr, an error or a log line, whether it is right or wrong."""
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
def test_a_url_that_is_none_is_refused_without_showing_it(url):
    """A password may be in it."""
    with pytest.raises(ConfigurationError, match="redis isn't a URL of Redis") as caught:
        RedisLimiter({}, url)
    assert_error_is_clean(caught.value)


def test_a_client_that_is_not_for_asyncio_is_refused():
    """It would block the event loop."""
    with pytest.raises(ConfigurationError, match=r"must be a redis.asyncio.Redis, not Redis"):
        RedisLimiter({}, redis_py.Redis())


def test_a_missing_extra_is_named():
    """With a URL, and no redis-py to open it."""
    code = (
        "import sys; sys.modules['redis.asyncio'] = None\n"
        "from plaid_relay_async.limits import RedisLimiter; RedisLimiter({}, 'redis://127.0.0.1')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigurationError" in done.stderr
    assert "pip install 'plaid_relay_async[redis]'" in done.stderr


# ------------------------------------------------------------------------------------- by many: processes

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


async def by_three_processes(server):
    """What Plaid refused of three processes' creations, whose were made, and how much of the limit was used."""
    async with Simulator(reports=["report"], limits=[Limit(CREATE, COUNT, PER)]) as plaid:
        arguments = ("-c", PROGRAM, plaid.url, server.url)
        async with contextlib.AsyncExitStack() as stack:
            processes = [
                await stack.enter_async_context(running_process_async(sys.executable, *arguments, name))
                for name in "abc"
            ]
            first, last = [await moment_of(plaid, number) for number in (1, WINDOWS * COUNT + 1)]
            for process in processes:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))
        partners = {entry["secondary_client_id"].partition("-")[0] for entry in plaid.ledger}
    return plaid.rate_limited, partners, WINDOWS * PER / (last - first)


async def test_three_processes_keep_one_limit(server):
    """Plaid refuses none of what three processes send through one Redis, and at least 95 % of the limit is used."""
    for _ in range(3):  # a busy machine holds processes up, and requests that had their leave
        refused, partners, used = await by_three_processes(server)
        if not refused and used >= 0.95:
            break
    assert not refused
    assert partners == {"a", "b", "c"}
    assert used >= 0.95


async def moment_of(plaid, number):
    """When the ledger's entry of this number was made, to some milliseconds."""
    loop = asyncio.get_running_loop()
    while len(plaid.ledger) < number:
        await asyncio.sleep(0.002)
    return loop.time()
