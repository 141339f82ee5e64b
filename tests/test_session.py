from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING

import aiohttp
import pytest
import trustme
from aiohttp import web
from support import OWNER, QUICK

from plaid_relay_async import (
    ClientClosedError,
    ConfigurationError,
    InvalidRequestError,
    NotSentError,
    RelayClient,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.session import SessionManager
from plaid_relay_async.simulator import Fault

if TYPE_CHECKING:
    from plaid_relay_async.simulator import Simulator

ONCE = RetryPolicy(attempts=1)


async def share(client: RelayClient, plaid: Simulator) -> str:
    return (await client.relay.create([plaid.add_report()], "partner")).relay_token


async def test_a_client_that_is_not_open_says_so(plaid):
    """Before it is opened, a client refuses calls with the way to open it."""
    client = RelayClient(OWNER, base_url=plaid.url)
    with pytest.raises(ClientClosedError, match=r"not open yet.*async with RelayClient"):
        await client.relay.remove("t")
    await client.close()


async def test_a_closed_client_stays_closed(plaid):
    """After it is closed, a client refuses calls and won't open again; closing again is harmless."""
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        await share(client, plaid)
    await client.close()
    with pytest.raises(ClientClosedError, match="this client is closed"):
        await client.relay.remove("t")
    with pytest.raises(ClientClosedError, match="create a new one"):
        await client.open()


async def test_a_pool_is_closed_once():
    """A session manager that is closed again does nothing."""
    manager = SessionManager(base_url="https://sandbox.plaid.com")
    await manager.open()
    await manager.close()
    assert not manager.start_closing()
    await manager.close()
    assert not manager.is_open


async def test_a_client_is_opened_once(plaid):
    """A second `async with` on an open client is a mistake that is named."""
    async with RelayClient(OWNER, base_url=plaid.url) as client:
        with pytest.raises(ClientClosedError, match="open already"):
            await client.open()
        await share(client, plaid)


async def test_a_client_belongs_to_its_loop(plaid):
    """In another event loop, a client refuses calls instead of hanging."""
    async with RelayClient(OWNER, base_url=plaid.url) as client:

        def elsewhere() -> str:
            with pytest.raises(ClientClosedError) as caught:
                asyncio.run(client.relay.remove("t"))
            return str(caught.value)

        assert "another event loop" in await asyncio.to_thread(elsewhere)


async def test_a_borrowed_session_stays_open(plaid):
    """Two clients share the caller's session, with its settings, and neither closes it."""
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as session:
        async with RelayClient(OWNER, base_url=plaid.url, session=session) as one:
            async with RelayClient(OWNER, base_url=plaid.url, session=session) as two:
                await share(one, plaid)
                await share(two, plaid)
            await share(one, plaid)
            assert one._session.slots is two._session.slots
        assert not session.closed
    assert [request.headers["x-mine"] for request in plaid.requests] == ["yes"] * 3
    with pytest.raises(ClientClosedError, match="borrowed is closed"):
        await RelayClient(OWNER, base_url=plaid.url, session=session).open()


async def test_a_borrowed_session_without_a_limit_has_none(plaid):
    """A pool that the caller made unlimited stays unlimited."""
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        RelayClient(OWNER, base_url=plaid.url, session=session) as client,
    ):
        await share(client, plaid)
        assert client._session.slots._value > 10**6


async def test_the_smaller_limit_of_a_borrowed_pool_holds(plaid):
    """Calls queue before the pool, also where it is bounded for each host: no timeout counts the queue."""
    plaid.fail(Fault(path="/credit/relay/create", latency=0.05))
    connector = aiohttp.TCPConnector(limit=50, limit_per_host=1)
    timeouts = Timeouts(connect=0.2)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        RelayClient(OWNER, base_url=plaid.url, session=session, timeouts=timeouts, retry=ONCE) as client,
    ):
        await asyncio.gather(*(share(client, plaid) for _ in range(10)))
    assert len(plaid.ledger) == 10


async def test_a_session_that_is_closed_under_the_client_is_named(plaid):
    """If the lender closes the session, calls say so."""
    async with aiohttp.ClientSession() as session:
        async with RelayClient(OWNER, base_url=plaid.url, session=session) as client:
            await session.close()
            with pytest.raises(ClientClosedError, match="has been closed"):
                await client.relay.remove("t")


async def test_settings_of_the_pool_belong_to_its_owner():
    """A lent session brings its own TLS and proxy: both at once contradict each other."""
    async with aiohttp.ClientSession() as session:
        for more in ({"proxy": "http://p"}, {"trust_env": True}, {"ssl": ssl.create_default_context()}):
            with pytest.raises(ConfigurationError, match="are settings of the borrowed session"):
                RelayClient(OWNER, session=session, **more)


async def test_a_cancelled_body_closes_the_pool(plaid):
    """However the body of `async with` ends, the pool is closed in order."""
    opened = []

    async def body() -> None:
        async with RelayClient(OWNER, base_url=plaid.url) as client:
            await share(client, plaid)
            opened.append(client)
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    while not opened:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened[0]._session._session.closed


async def test_closing_is_finished_though_it_is_cancelled(plaid):
    """A cancellation that comes while the pool closes is kept until it is closed."""
    client = RelayClient(OWNER, base_url=plaid.url)
    await client.open()
    await share(client, plaid)
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert client._session._session.closed


def test_a_forgotten_close_is_a_warning_and_never_a_crash():
    """A client that is dropped open gives a ResourceWarning, also when its loop is gone, and no other noise."""
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


async def test_a_client_that_was_closed_warns_of_nothing(plaid):
    """Neither a closed client nor one that was never opened is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with RelayClient(OWNER, base_url=plaid.url) as client:
            await share(client, plaid)
        RelayClient(OWNER, base_url=plaid.url)
        del client
        gc.collect()
    assert [str(w.message) for w in caught] == []


# ------------------------------------------------------------------------------- what goes over the wire


@contextlib.asynccontextmanager
async def echoing(tls: ssl.SSLContext | None = None):
    """A server that sets a cookie, remembers what came, and answers as it is told."""
    came = []
    told = {"status": 200, "headers": {}}

    async def answer(request: web.Request) -> web.Response:
        came.append((request.path_qs, dict(request.headers), await request.read()))
        reply = web.json_response(
            {"removed": True, "request_id": "q"}, status=told["status"], headers=told["headers"]
        )
        reply.set_cookie("tracking", "you")
        return reply

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    port = runner.addresses[0][1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}", came, told
    finally:
        await runner.cleanup()


@pytest.fixture
async def echo():
    async with echoing() as server:
        yield server


async def test_a_server_that_nobody_vouches_for_gets_nothing():
    """TLS is verified; with the CA's own bundle the same server is trusted."""
    authority, theirs, ours = (
        trustme.CA(),
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        ssl.create_default_context(),
    )
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    async with echoing(theirs) as (url, came, _):
        async with RelayClient(OWNER, base_url=url, retry=ONCE) as client:
            with pytest.raises(NotSentError, match=r"the certificate of .* isn't trusted"):
                await client.relay.remove("t")
        assert came == []
        async with RelayClient(OWNER, base_url=url, retry=ONCE, ssl=ours) as client:
            assert (await client.relay.remove("t")).removed


async def test_no_cookie_is_kept(echo):
    """What a server asks to be remembered is forgotten."""
    url, came, _ = echo
    # By its name: of an address in numbers even a common cookie jar keeps none.
    async with RelayClient(OWNER, base_url=url.replace("127.0.0.1", "localhost")) as client:
        await client.relay.remove("t")
        await client.relay.remove("t")
    assert len(came) == 2
    assert all("Cookie" not in headers for _, headers, _ in came)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(echo, status):
    """A redirect would carry the secret elsewhere: it is an error that names the address as the thing to mend."""
    url, came, told = echo
    told.update(status=status, headers={"Location": f"{url}/elsewhere"})
    async with RelayClient(OWNER, base_url=url) as client:
        with pytest.raises(Exception, match="Redirects aren't followed") as caught:
            await client.relay.create(["t"], "p")
    assert caught.value.status == status
    assert [path for path, *_ in came] == ["/credit/relay/create"]


async def test_every_request_says_who_we_are(echo):
    """Version, user agent and content type are on each request, and credentials in the headers."""
    url, came, _ = echo
    async with RelayClient(OWNER, base_url=f"{url}/under/a/path") as client:
        await client.relay.remove("t")
    path, headers, body = came[0]
    assert path == "/under/a/path/credit/relay/remove"
    assert headers["Plaid-Version"] == "2020-09-14"
    assert headers["User-Agent"].startswith("plaid_relay_async/")
    assert headers["Content-Type"] == "application/json"
    assert (headers["PLAID-CLIENT-ID"], headers["PLAID-SECRET"]) == (OWNER.client_id, OWNER.secret)
    assert body == b'{"relay_token":"t"}'


# --------------------------------------------------------------------------- what a borrowed session adds


async def test_auth_of_a_borrowed_session_does_not_go_with_a_gateway_key():
    """Both need the same header: an error when the client is made, before a call is tried."""
    with pytest.warns(DeprecationWarning, match="auth"):
        session = aiohttp.ClientSession(auth=aiohttp.BasicAuth("me", "canary-password"))
    async with session:
        with pytest.raises(ConfigurationError, match=r"has auth=.*pass a session without auth=") as caught:
            RelayClient(gateway_key="key", session=session)
        assert "canary" not in str(caught.value)
        RelayClient(OWNER, session=session)


@pytest.mark.parametrize("name", ["PLAID-CLIENT-ID", "plaid-secret"])
async def test_credentials_of_a_borrowed_session_do_not_go_beside_others(echo, name):
    """Two lenders' credentials in one request are refused; where the client's replace them, it goes on."""
    url, came, _ = echo
    async with aiohttp.ClientSession(headers={name: "canary-value"}) as session:
        for who in ({"gateway_key": "key"}, {"credentials": OWNER, "credentials_in": "body"}):
            with pytest.raises(
                ConfigurationError, match="in addition to the client's own credentials"
            ) as caught:
                RelayClient(**who, session=session)
            assert "canary" not in str(caught.value)
        async with RelayClient(OWNER, base_url=url, session=session) as client:
            await client.relay.remove("t")
    assert "canary-value" not in str(came)


@pytest.mark.may_block  # aiohttp reads .netrc
@pytest.mark.parametrize("where", ["argument", "environment"])
async def test_a_borrowed_session_must_not_send_plain_http_to_a_proxy(echo, monkeypatch, where):
    """Plain http goes to loopback alone: a proxy elsewhere would read the secret and the tokens."""
    url, _, _ = echo
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    async def opened(proxy: str, base_url: str = url) -> None:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        lent = {"trust_env": True} if where == "environment" else {"proxy": proxy}
        async with (
            aiohttp.ClientSession(**lent) as session,
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
    """With trust_env aiohttp would send it to the server: refused when the client is opened, by its name."""
    url, came, _ = echo
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
            assert [headers.get("Authorization") for _, headers, _ in came] == [
                "Bearer key" if "gateway_key" in who else None
            ]


@pytest.mark.may_block  # aiohttp reads .netrc
async def test_a_contradiction_that_comes_later_is_raised_once(echo, monkeypatch, tmp_path):
    """A `.netrc` that gets a login while the client is open: one error, no repetition, and nothing is sent."""
    url, came, _ = echo
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine elsewhere.example login me password word\n")
    async with (
        aiohttp.ClientSession(trust_env=True) as session,
        RelayClient(gateway_key="key", base_url=url, session=session, retry=QUICK) as client,
    ):
        (tmp_path / "netrc").write_text("default login me password canary-word\n")
        with pytest.raises(ConfigurationError, match=r"auth=, a login in \.netrc") as caught:
            await client.relay.remove("t")
    assert (caught.value.attempts, came) == (1, [])
    assert "canary" not in str(caught.value)


async def test_other_settings_of_a_borrowed_session_change_no_call(echo):
    """Its base_url, its way with errors, its default Content-Type and the like don't reach the client's calls."""
    url, came, told = echo
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
            told.update(status=400)
            with pytest.raises(InvalidRequestError):
                await client.relay.remove("t")
    for _, headers, body in came:
        assert (headers["Content-Type"], headers["Authorization"]) == ("application/json", "Bearer key")
        assert body == b'{"relay_token":"t"}'
