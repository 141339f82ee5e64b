"""The two ways to exchange a request for its response, which have to come to the same."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from asyncio import sslproto

import aiohttp
import pytest
import trustme
from support import OWNER, PARTNER, QUICK
from test_session import echoing
from test_transport import read_request, serving

from plaid_relay_async import ConfigurationError, OutcomeUnknownError, RelayClient
from plaid_relay_async.exchange import DirectExchange, RequestBody, SessionExchange
from plaid_relay_async.simulator import Simulator

TOKEN = b'{"relay_token": "T-1", "request_id": "q"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(TOKEN), TOKEN)
BOTH = pytest.mark.parametrize("direct", [True, False], ids=["directly", "by a session"])


def way(client: RelayClient) -> type:
    return type(client._session.get_exchange())


async def test_an_own_pool_is_used_directly_and_all_else_by_a_session():
    """A proxy and a borrowed session need what aiohttp's session does; `direct=False` asks for it."""
    async with RelayClient(OWNER) as client:
        assert way(client) is DirectExchange
    for more in ({"direct": False}, {"proxy": "http://127.0.0.1:9"}):
        async with RelayClient(OWNER, **more) as client:
            assert way(client) is SessionExchange
    async with aiohttp.ClientSession() as session, RelayClient(OWNER, session=session) as client:
        assert way(client) is SessionExchange


@pytest.mark.parametrize(
    ("more", "named"),
    [({"direct": 1}, "direct"), ({"tls_buffer": 0}, "tls_buffer")],
    ids=["direct", "tls_buffer"],
)
def test_an_option_that_cannot_be_is_named(more, named):
    """As all options are, before anything is opened."""
    with pytest.raises(ConfigurationError, match=named):
        RelayClient(OWNER, **more)


@BOTH
async def test_all_operations_of_a_relay_go_either_way(direct):
    """Tokens, a report, a PDF, zipped or not: as Plaid sent them."""
    async with Simulator() as plaid:
        report = plaid.add_report()
        async with (
            RelayClient(OWNER, base_url=plaid.url, direct=direct) as owner,
            RelayClient(PARTNER, base_url=plaid.url, direct=direct, credentials_in="body") as partner,
        ):
            token = (await owner.relay.create([report], PARTNER.client_id)).relay_token
            assert token == plaid.ledger[0]["relay_token"]
            assert (await partner.relay.get(token)).report.items
            assert (await partner.relay.get_pdf(token)).content.startswith(b"%PDF-")
            assert (await owner.relay.remove(token)).removed


async def heard_by_a_server(*, direct: bool) -> list[bytes]:
    heads = []

    async def listen(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await reader.read(65_536)
        writer.write(OK)
        await reader.read()

    async with serving(listen) as (url, _), RelayClient(OWNER, base_url=url, direct=direct) as client:
        await client.relay.create(["t"], "p")
        return heads[0].replace(url.rpartition(":")[2].encode(), b"PORT").split(b"\r\n")


async def test_both_send_the_same_head():
    """Line for line, but for their order."""
    ours, theirs = await heard_by_a_server(direct=True), await heard_by_a_server(direct=False)
    assert ours[0] == theirs[0] == b"POST /credit/relay/create HTTP/1.1"
    assert sorted(ours) == sorted(theirs)


async def test_a_header_that_would_be_two_is_refused():
    """A line break in a header would smuggle another one in."""
    async with aiohttp.TCPConnector() as connector:
        exchange = DirectExchange(connector, asyncio.get_running_loop())
        with pytest.raises(ValueError, match="line break"):
            exchange.prepare("http://127.0.0.1", {"User-Agent": "a\r\nPLAID-SECRET: b"})


@BOTH
async def test_what_is_said_in_between_is_passed_over(direct):
    """100 and its like come before an answer and are none."""

    async def hinting(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
        await reader.read()

    async with serving(hinting) as (url, _), RelayClient(OWNER, base_url=url, direct=direct) as client:
        assert (await client.relay.create(["t"], "p")).relay_token == "T-1"


@BOTH
async def test_another_protocol_is_no_answer(direct):
    """101 ends what was agreed on the connection: unknown, and the connection isn't used again."""

    async def switching(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        await reader.read()

    async with serving(switching) as (url, seen), RelayClient(OWNER, base_url=url, direct=direct) as client:
        for _ in range(2):
            with pytest.raises(OutcomeUnknownError):
                await client.relay.create(["t"], "p")
        assert len(seen) == 2


async def test_a_connection_with_a_rest_of_the_request_is_not_used_again():
    """A server that answers before it has taken the whole body leaves a rest of it in the way of the next one."""

    async def hasty(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(10)

    async with serving(hasty) as (url, seen), aiohttp.TCPConnector() as connector:
        exchange = DirectExchange(connector, asyncio.get_running_loop())
        to = exchange.prepare(url, {})
        for _ in range(2):
            response = await exchange.post(to, RequestBody(b" " * 50_000_000, lambda: None))
            assert await response.content.read() == TOKEN
        assert len(seen) == 2


class Connected:
    """What a body looks at before it leaves: a connection's protocol."""

    should_close = False

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


async def test_a_body_does_not_leave_on_what_the_loop_has_not_read_yet():
    """Between two turns of the loop something may arrive unasked: it is found all the same."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, writer = await asyncio.open_connection(*server.getsockname())
        theirs, _ = server.accept()
        with theirs:
            connected = Connected(writer.transport)
            assert RequestBody(b"{}", lambda: None).begin_send(connected)
            theirs.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            select.select([writer.get_extra_info("socket")], [], [], 10)
            body = RequestBody(b"{}", lambda: None)
            with pytest.raises(aiohttp.ClientConnectionError):
                body.begin_send(connected)
            assert not body.sent
            writer.close()


async def test_other_releases_of_aiohttp_are_recognized():
    """Where what is used has other parameters, the session's way is taken."""

    class Connector:
        async def connect(self, req, traces): ...

    class Handler:
        def set_response_params(self, *, read_until_eof): ...

    assert DirectExchange.is_supported()
    assert not DirectExchange.is_supported(connector=Connector)
    assert not DirectExchange.is_supported(handler=Handler)


async def test_less_may_be_set_aside_for_each_connection_of_tls():
    """However little that is, a call gets through, in as many pieces as it takes."""
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    asyncios = sslproto.SSLProtocol.max_size
    try:
        async with echoing(theirs) as (url, _, _):
            async with RelayClient(OWNER, base_url=url, ssl=ours, tls_buffer=64, retry=QUICK) as client:
                assert sslproto.SSLProtocol.max_size == 64
                assert (await client.relay.remove("t")).removed
    finally:
        sslproto.SSLProtocol.max_size = asyncios
