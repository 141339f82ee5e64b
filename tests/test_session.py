from __future__ import annotations

import asyncio
import gc
import ssl
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import aiohttp
import pytest
import trustme
from processes import wait_until_async
from recorder import Recorder
from servers import echoing
from support import BOTH_EXCHANGES, CREATE, OWNER, QUICK

import plaid_relay_async
from plaid_relay_async import (
    ClientClosedError,
    ConfigurationError,
    InvalidRequestError,
    NotSentError,
    RelayClient,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.config import USER_AGENT
from plaid_relay_async.session import SessionManager
from plaid_relay_async.simulator import Fault

if TYPE_CHECKING:
    from plaid_relay_async.simulator import Simulator

ONCE = RetryPolicy(attempts=1)


async def create_token(client: RelayClient, plaid: Simulator) -> str:
    return (await client.relay.create([plaid.add_report()], "partner")).relay_token


async def test_a_client_that_is_not_open_rejects_calls(plaid):
    """The error of a client that isn't open says how to open it."""
    client = RelayClient(OWNER, base_url=plaid.url)
    with pytest.raises(ClientClosedError, match=r"not open yet.*async with RelayClient"):
        await client.relay.remove("t")
    await client.close()


async def test_a_closed_client_stays_closed(plaid):
    """A closed client rejects calls and can't be opened again; closing it again does nothing."""
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        await create_token(client, plaid)
    await client.close()
    with pytest.raises(ClientClosedError, match="this client is closed"):
        await client.relay.remove("t")
    with pytest.raises(ClientClosedError, match="create a new one"):
        await client.open()


async def test_a_session_manager_is_closed_once():
    """Closing it again does nothing."""
    manager = SessionManager(base_url="https://sandbox.plaid.com")
    await manager.open()
    await manager.close()
    assert not manager.start_closing()
    await manager.close()
    assert not manager.is_open


async def test_a_client_is_opened_once(plaid):
    """A second `async with` on an open client is an error."""
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        with pytest.raises(ClientClosedError, match="already open"):
            await client.open()
        await create_token(client, plaid)


async def test_a_client_belongs_to_its_loop(plaid):
    """In another event loop, a client rejects calls instead of hanging."""
    async with RelayClient(OWNER, base_url=plaid.url) as client:

        def elsewhere() -> str:
            with pytest.raises(ClientClosedError) as caught:
                asyncio.run(client.relay.remove("t"))
            return str(caught.value)

        assert "another event loop" in await asyncio.to_thread(elsewhere)


async def test_a_borrowed_session_stays_open(plaid):
    """Two clients share the caller's session with its settings and connections, and neither closes it."""
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}, connector=connector) as session:
        async with RelayClient(OWNER, base_url=plaid.url, session=session) as one:
            async with RelayClient(OWNER, base_url=plaid.url, session=session) as two:
                plaid.fail(Fault(path=CREATE, latency=0.3, times=1))
                first = asyncio.create_task(create_token(one, plaid))
                await wait_until_async(lambda: plaid.counts[CREATE])
                second = asyncio.create_task(create_token(two, plaid))
                await wait_until_async(lambda: two.statistics().queued)
                await asyncio.gather(first, second)
            await create_token(one, plaid)
        assert not session.closed
    assert [request.headers["x-mine"] for request in plaid.requests] == ["yes"] * 3
    with pytest.raises(ClientClosedError, match="borrowed is closed"):
        await RelayClient(OWNER, base_url=plaid.url, session=session).open()


async def test_a_borrowed_session_may_be_unlimited(plaid):
    """A pool that the caller made unlimited stays unlimited."""
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        RelayClient(OWNER, base_url=plaid.url, session=session) as client,
    ):
        plaid.fail(Fault(path=CREATE, latency=0.5))
        calls = [asyncio.create_task(create_token(client, plaid)) for _ in range(120)]
        await wait_until_async(lambda: plaid.counts[CREATE] == 120)
        assert (client.statistics().in_flight, client.statistics().queued) == (120, 0)
        await asyncio.gather(*calls)


async def test_the_smaller_limit_of_a_borrowed_pool_applies(plaid):
    """Calls queue before the pool, also if it is limited for each host, so no timeout counts the queue."""
    plaid.fail(Fault(path=CREATE, latency=0.05))
    connector = aiohttp.TCPConnector(limit=50, limit_per_host=1)
    timeouts = Timeouts(connect=0.2)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        RelayClient(OWNER, base_url=plaid.url, session=session, timeouts=timeouts, retry=ONCE) as client,
    ):
        await asyncio.gather(*(create_token(client, plaid) for _ in range(10)))
    assert len(plaid.ledger) == 10


async def test_a_borrowed_session_that_was_closed_is_reported(plaid):
    """If the caller closes the session, calls fail with an error that says so."""
    async with aiohttp.ClientSession() as session:
        async with RelayClient(OWNER, base_url=plaid.url, session=session) as client:
            await session.close()
            with pytest.raises(ClientClosedError, match="has been closed"):
                await client.relay.remove("t")


async def test_a_borrowed_session_excludes_settings_of_the_pool():
    """A borrowed session has its own TLS and proxy settings; passing both is an error."""
    async with aiohttp.ClientSession() as session:
        for settings in ({"proxy": "http://p"}, {"trust_env": True}, {"ssl": ssl.create_default_context()}):
            with pytest.raises(ConfigurationError, match="are settings of the borrowed session"):
                RelayClient(OWNER, session=session, **settings)


async def test_a_cancelled_body_closes_the_pool():
    """The pool is closed however the body of `async with` ends."""
    created = asyncio.Event()

    async def body(url: str) -> None:
        async with RelayClient(OWNER, base_url=url) as client:
            await client.relay.create(["report"], "partner")
            created.set()
            await asyncio.Event().wait()

    async with Recorder() as upstream:
        task = asyncio.create_task(body(upstream.url))
        await created.wait()
        assert upstream.connections == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until_async(lambda: not upstream.connections)


async def test_closing_completes_although_it_is_cancelled():
    """A cancellation during the closing is raised once the pool is closed."""
    async with Recorder() as upstream:
        client = RelayClient(OWNER, base_url=upstream.url)
        await client.open()
        await client.relay.create(["report"], "partner")
        assert upstream.connections == 1
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await wait_until_async(lambda: not upstream.connections)


def test_a_missing_close_is_only_a_warning():
    """A client that isn't closed causes a ResourceWarning and nothing else, also after its loop has ended."""
    program = """
import asyncio, gc
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.simulator import Simulator

async def main():
    async with Simulator() as plaid:
        client = RelayClient(Credentials("a", "b"), base_url=plaid.url)
        await client.open()
        await client.relay.create([plaid.add_report()], "p")
    return client

asyncio.run(main())
gc.collect()
"""
    run = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0
    assert "ResourceWarning: a RelayClient was never closed" in run.stderr
    assert "Event loop is closed" not in run.stderr
    assert "Exception ignored" not in run.stderr


async def test_a_closed_client_causes_no_warning(plaid):
    """Neither a closed client nor one that was never opened causes a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with RelayClient(OWNER, base_url=plaid.url) as client:
            await create_token(client, plaid)
        RelayClient(OWNER, base_url=plaid.url)
        del client
        gc.collect()
    assert [str(w.message) for w in caught] == []


# ---------------------------------------------------------------------------------------- what is sent


@pytest.fixture
async def echo():
    async with echoing() as server:
        yield server


async def test_an_untrusted_server_receives_nothing():
    """TLS is verified; with the private CA's bundle the same server is trusted."""
    authority, theirs, ours = (
        trustme.CA(),
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        ssl.create_default_context(),
    )
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    async with echoing(theirs) as (url, requests, _):
        async with RelayClient(OWNER, base_url=url, retry=ONCE) as client:
            with pytest.raises(NotSentError, match=r"the certificate of .* isn't trusted"):
                await client.relay.remove("t")
        assert requests == []
        async with RelayClient(OWNER, base_url=url, retry=ONCE, ssl=ours) as client:
            assert (await client.relay.remove("t")).removed


async def test_no_cookie_is_stored(echo):
    """A cookie that a server sets isn't sent with the next request."""
    url, requests, _ = echo
    # The server is called by its name, because even a common cookie jar stores no cookies of IP addresses.
    async with RelayClient(OWNER, base_url=url.replace("127.0.0.1", "localhost")) as client:
        await client.relay.remove("t")
        await client.relay.remove("t")
    assert len(requests) == 2
    assert all("Cookie" not in headers for _, headers, _ in requests)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(echo, status):
    """A redirect would send the secret elsewhere: it is an error that advises to fix the address."""
    url, requests, response_settings = echo
    response_settings.update(status=status, headers={"Location": f"{url}/elsewhere"})
    async with RelayClient(OWNER, base_url=url) as client:
        with pytest.raises(Exception, match="Redirects aren't followed") as caught:
            await client.relay.create(["t"], "p")
    assert caught.value.status == status
    assert [path for path, *_ in requests] == ["/credit/relay/create"]


async def test_the_headers_of_every_request(echo):
    """Version, user agent and content type are on each request, and credentials are in the headers."""
    url, requests, _ = echo
    async with RelayClient(OWNER, base_url=f"{url}/under/a/path") as client:
        await client.relay.remove("t")
    path, headers, body = requests[0]
    assert path == "/under/a/path/credit/relay/remove"
    assert headers["Plaid-Version"] == "2020-09-14"
    assert headers["User-Agent"] == USER_AGENT == f"plaid_relay_async/{plaid_relay_async.__version__}"
    assert headers["Content-Type"] == "application/json"
    assert (headers["PLAID-CLIENT-ID"], headers["PLAID-SECRET"]) == (OWNER.client_id, OWNER.secret)
    assert body == b'{"relay_token":"t"}'


@BOTH_EXCHANGES
async def test_the_application_in_the_user_agent(echo, direct):
    """The header User-Agent ends with the name and the version of the application, which are RFC 9110's tokens."""
    url, requests, _ = echo
    application = ("loan-service", "1.4+build_7~x")
    async with RelayClient(OWNER, base_url=url, application=application, direct=direct) as client:
        await client.relay.remove("t")
        await client.asset_report.remove("t")
    expected = f"{USER_AGENT} loan-service/1.4+build_7~x"
    assert [headers["User-Agent"] for _, headers, _ in requests] == [expected] * 2


# ------------------------------------------------------------------------- settings of a borrowed session


async def test_auth_of_a_borrowed_session_conflicts_with_a_gateway_key():
    """Both need the same header, so creating the client fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of `auth`, since aiohttp 3.14
        session = aiohttp.ClientSession(auth=aiohttp.BasicAuth("me", "canary-password"))
    async with session:
        with pytest.raises(ConfigurationError, match=r"has auth=.*pass a session without auth=") as caught:
            RelayClient(gateway_key="key", session=session)
        assert "canary" not in str(caught.value)
        RelayClient(OWNER, session=session)


@pytest.mark.parametrize("name", ["PLAID-CLIENT-ID", "plaid-secret"])
async def test_credentials_of_a_borrowed_session_conflict_with_others(echo, name):
    """Two sets of credentials in one request are rejected; if the client's replace the session's, calls work."""
    url, requests, _ = echo
    async with aiohttp.ClientSession(headers={name: "canary-value"}) as session:
        for who in ({"gateway_key": "key"}, {"credentials": OWNER, "credentials_in": "body"}):
            with pytest.raises(
                ConfigurationError, match="in addition to the client's own credentials"
            ) as caught:
                RelayClient(**who, session=session)
            assert "canary" not in str(caught.value)
        async with RelayClient(OWNER, base_url=url, session=session) as client:
            await client.relay.remove("t")
    assert "canary-value" not in str(requests)


@pytest.mark.may_block  # aiohttp reads .netrc
@pytest.mark.parametrize("where", ["argument", "environment"])
async def test_a_borrowed_session_must_not_send_plain_http_to_a_proxy(echo, monkeypatch, where):
    """Plain http goes to loopback only: a proxy elsewhere could read the secret and the tokens."""
    url, _, _ = echo
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    async def opened(proxy: str, base_url: str = url) -> None:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        settings = {"trust_env": True} if where == "environment" else {"proxy": proxy}
        async with (
            aiohttp.ClientSession(**settings) as session,
            RelayClient(OWNER, base_url=base_url, session=session),
        ):
            assert not session.closed

    with pytest.raises(ConfigurationError, match=r"plain http for 127\.0\.0\.1 to a proxy") as caught:
        await opened("http://me:canary-word@192.0.2.1:3128")
    assert "canary" not in str(caught.value)
    await opened("http://127.0.0.1:3128")
    await opened("http://192.0.2.1:3128", "https://sandbox.plaid.com")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if where == "environment":
        await opened("http://192.0.2.1:3128")


@pytest.mark.may_block  # aiohttp reads .netrc
@pytest.mark.parametrize(
    "login", ["default login me password canary-word", "machine 127.0.0.1 login a password b"]
)
@pytest.mark.parametrize(
    "who", [{"credentials": OWNER}, {"gateway_key": "key"}], ids=["credentials", "gateway_key"]
)
async def test_a_borrowed_session_must_not_send_a_login_of_netrc(echo, monkeypatch, tmp_path, login, who):
    """With trust_env aiohttp would send it to the server: opening the client fails and names the host."""
    url, requests, _ = echo
    (tmp_path / "netrc").write_text(f"{login}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with aiohttp.ClientSession(trust_env=True) as session:
        with pytest.raises(ConfigurationError, match=r"\.netrc has a login for 127\.0\.0\.1") as caught:
            await RelayClient(**who, base_url=url, session=session).open()
        assert "canary" not in str(caught.value)
        (tmp_path / "netrc").write_text("machine proxy.example login me password word\n")
        async with RelayClient(**who, base_url=url, session=session) as client:
            await client.relay.remove("t")
            assert [headers.get("Authorization") for _, headers, _ in requests] == [
                "Bearer key" if "gateway_key" in who else None
            ]


@pytest.mark.may_block  # aiohttp reads .netrc
async def test_a_conflict_that_arises_later_is_not_retried(echo, monkeypatch, tmp_path):
    """If `.netrc` gets a login while the client is open, the call fails once, and nothing is sent."""
    url, requests, _ = echo
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine elsewhere.example login me password word\n")
    async with (
        aiohttp.ClientSession(trust_env=True) as session,
        RelayClient(gateway_key="key", base_url=url, session=session, retry=QUICK) as client,
    ):
        (tmp_path / "netrc").write_text("default login me password canary-word\n")
        with pytest.raises(ConfigurationError, match=r"auth=, a login in \.netrc") as caught:
            await client.relay.remove("t")
    assert (caught.value.attempts, requests) == (1, [])
    assert "canary" not in str(caught.value)


async def test_other_settings_of_a_borrowed_session_change_no_call(echo):
    """Its base_url, raise_for_status, default Content-Type and the like don't affect the client's calls."""
    url, requests, response_settings = echo
    settings = {
        "base_url": "https://elsewhere.example/",
        "raise_for_status": True,
        "auto_decompress": False,
        "json_serialize": repr,
        "read_bufsize": 64,
        "requote_redirect_url": False,
        "headers": {"Content-Type": "text/plain", "Authorization": "Basic x"},
        "skip_auto_headers": ["Content-Type"],
        "timeout": aiohttp.ClientTimeout(total=0.001),
    }
    async with aiohttp.ClientSession(**settings) as session:
        async with RelayClient(gateway_key="key", base_url=url, session=session, retry=ONCE) as client:
            assert (await client.relay.remove("t")).removed
            response_settings.update(status=400)
            with pytest.raises(InvalidRequestError):
                await client.relay.remove("t")
    for _, headers, body in requests:
        assert (headers["Content-Type"], headers["Authorization"]) == ("application/json", "Bearer key")
        assert body == b'{"relay_token":"t"}'
