"""The two exchanges, through a session and directly over a pool, which must behave the same."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from asyncio import sslproto

import aiohttp
import pytest
import trustme
from servers import echoing, read_request, serving
from support import BOTH_EXCHANGES, OWNER, PARTNER, QUICK, session_of

from plaid_relay_async import ConfigurationError, OutcomeUnknownError, RelayClient
from plaid_relay_async.exchange import DirectExchange, RequestBody, SessionExchange
from plaid_relay_async.simulator import Simulator

TOKEN = b'{"relay_token": "T-1", "request_id": "q"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(TOKEN), TOKEN)


def exchange_type(client: RelayClient) -> type:
    return type(session_of(client).exchange)


async def test_which_exchange_a_client_uses():
    """An owned pool is used directly; a proxy, a borrowed session and `direct=False` need aiohttp's session."""
    async with RelayClient(OWNER) as client:
        assert exchange_type(client) is DirectExchange
    for options in ({"direct": False}, {"proxy": "http://127.0.0.1:9"}):
        async with RelayClient(OWNER, **options) as client:
            assert exchange_type(client) is SessionExchange
    async with aiohttp.ClientSession() as session, RelayClient(OWNER, session=session) as client:
        assert exchange_type(client) is SessionExchange


@pytest.mark.parametrize(
    ("options", "name"),
    [({"direct": 1}, "direct"), ({"tls_buffer": 0}, "tls_buffer")],
    ids=["direct", "tls_buffer"],
)
def test_invalid_options_are_rejected(options, name):
    """They are rejected before anything is opened, and the error names them."""
    with pytest.raises(ConfigurationError, match=name):
        RelayClient(OWNER, **options)


@BOTH_EXCHANGES
async def test_all_relay_operations_work_with_both_exchanges(direct):
    """Tokens, a report and a PDF are returned as Plaid sent them, compressed or not."""
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


async def request_head(*, direct: bool) -> list[bytes]:
    heads = []

    async def listen(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        await reader.read(65_536)
        writer.write(OK)
        await reader.read()

    async with serving(listen) as (url, _), RelayClient(OWNER, base_url=url, direct=direct) as client:
        await client.relay.create(["t"], "p")
        return heads[0].replace(url.rpartition(":")[2].encode(), b"PORT").split(b"\r\n")


async def test_both_exchanges_send_the_same_head():
    """The heads have the same lines, in any order."""
    direct, by_session = await request_head(direct=True), await request_head(direct=False)
    assert direct[0] == by_session[0] == b"POST /credit/relay/create HTTP/1.1"
    assert sorted(direct) == sorted(by_session)


async def test_a_header_with_a_line_break_is_rejected():
    """A line break in a header would inject another header."""
    async with aiohttp.TCPConnector() as connector:
        exchange = DirectExchange(connector, asyncio.get_running_loop())
        with pytest.raises(ValueError, match="line break"):
            exchange.prepare("http://127.0.0.1", {"User-Agent": "a\r\nPLAID-SECRET: b"})


@BOTH_EXCHANGES
async def test_interim_responses_are_skipped(direct):
    """A 1xx response precedes the final response."""

    async def send_hints(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK)
        await reader.read()

    async with serving(send_hints) as (url, _), RelayClient(OWNER, base_url=url, direct=direct) as client:
        assert (await client.relay.create(["t"], "p")).relay_token == "T-1"


@BOTH_EXCHANGES
async def test_switching_protocols_is_not_a_response(direct):
    """After a 101 the outcome is unknown, and the connection isn't reused."""

    async def switch_protocols(reader, writer):
        await read_request(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        await reader.read()

    async with (
        serving(switch_protocols) as (url, seen),
        RelayClient(OWNER, base_url=url, direct=direct) as client,
    ):
        for _ in range(2):
            with pytest.raises(OutcomeUnknownError):
                await client.relay.create(["t"], "p")
        assert len(seen) == 2


async def test_a_connection_with_an_unsent_part_of_the_request_is_not_reused():
    """A server that responds before it has read the whole body leaves a rest that would precede the next request."""

    async def respond_early(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(10)

    async with serving(respond_early) as (url, seen), aiohttp.TCPConnector() as connector:
        exchange = DirectExchange(connector, asyncio.get_running_loop())
        prepared = exchange.prepare(url, {})
        for _ in range(2):
            response = await exchange.post(prepared, RequestBody(b" " * 50_000_000, lambda: None))
            assert await response.content.read() == TOKEN
        assert len(seen) == 2


class FakeProtocol:
    """The part of a connection's protocol that a request body checks before it is sent."""

    should_close = False

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


async def test_nothing_is_sent_on_a_connection_with_unread_bytes():
    """Bytes that arrive between two iterations of the event loop are detected."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, writer = await asyncio.open_connection(*server.getsockname())
        theirs, _ = server.accept()
        with theirs:
            protocol = FakeProtocol(writer.transport)
            assert RequestBody(b"{}", lambda: None).begin_send(protocol)
            theirs.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
            select.select([writer.get_extra_info("socket")], [], [], 10)
            body = RequestBody(b"{}", lambda: None)
            with pytest.raises(aiohttp.ClientConnectionError):
                body.begin_send(protocol)
            assert not body.sent
            writer.close()


async def test_nothing_is_sent_on_a_connection_that_is_being_closed():
    """A TLS alert may close a new connection before aiohttp knows it: its transport has no socket any more."""
    server_tls, client_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority = trustme.CA()
    authority.configure_trust(client_tls)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    async with echoing(server_tls) as (url, *_):
        port = int(url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls)
        writer.transport.abort()
        while writer.get_extra_info("socket") is not None:
            await asyncio.sleep(0)
        body = RequestBody(b"{}", lambda: None)
        assert not body.begin_send(FakeProtocol(writer.transport))
        assert not body.sent


@pytest.mark.may_block
async def test_unread_bytes_of_a_new_connection_do_not_prevent_its_first_request():
    """A session reads them first, because they are probably the end of a TLS handshake."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        async def send_first_bytes(*_: object) -> None:
            accepted.append(server.accept()[0])
            accepted[0].sendall(OK[:9])  # the client's loop can't read before this function returns

        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(send_first_bytes)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        async with (
            aiohttp.ClientSession(trace_configs=[trace]) as session,
            RelayClient(OWNER, base_url=url, session=session, retry=QUICK) as client,
        ):
            creation = asyncio.create_task(client.relay.create(["t"], "p"))
            while not (accepted or creation.done()):
                await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection(sock=accepted[0])
            await read_request(reader)
            writer.write(OK[9:])
            assert (await creation).relay_token == "T-1"
            writer.close()


async def test_an_unsupported_release_of_aiohttp_is_detected():
    """If its methods have other parameters, the session is used instead."""

    class Connector:
        async def connect(self, req, traces): ...

    class Handler:
        def set_response_params(self, *, read_until_eof): ...

    assert DirectExchange.is_supported()
    assert not DirectExchange.is_supported(connector=Connector)
    assert not DirectExchange.is_supported(handler=Handler)


async def test_a_small_tls_buffer_is_enough():
    """A call succeeds with any buffer size; it only takes more reads."""
    authority = trustme.CA()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    default = sslproto.SSLProtocol.max_size
    try:
        async with echoing(theirs) as (url, _, _):
            async with RelayClient(OWNER, base_url=url, ssl=ours, tls_buffer=64, retry=QUICK) as client:
                assert sslproto.SSLProtocol.max_size == 64
                assert (await client.relay.remove("t")).removed
    finally:
        sslproto.SSLProtocol.max_size = default
