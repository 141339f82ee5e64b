"""The server itself: where it listens, what it notes, how it ends, and its own two paths."""

import asyncio
import json
import logging
import time

import aiohttp
import pytest
from processes import wait_until_async

from plaid_relay_async import simulator
from plaid_relay_async.simulator import Fault, Simulator

CREATE = "/credit/relay/create"
GOOD = {"report_tokens": ["ready"], "secondary_client_id": "partner"}


def port_of(plaid):
    return int(plaid.url.rpartition(":")[2])


async def half_a_request(plaid):
    """A connection on which the body is still to come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(plaid))
    head = f"POST {CREATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    writer.write(head.encode() + b"{")
    await writer.drain()
    return reader, writer


def test_exports():
    """Four names, and no more."""
    assert simulator.__all__ == ["Fault", "Limit", "Simulator", "report_bytes"]


async def test_start_and_close_by_hand(asking):
    """It can be started, closed, and started again on the same state."""
    plaid = Simulator(reports=["ready"])
    await plaid.close()
    with pytest.raises(RuntimeError, match="not started"):
        _ = plaid.url
    await plaid.start()
    assert plaid.url.startswith("http://127.0.0.1:")
    with pytest.raises(RuntimeError, match="already"):
        await plaid.start()
    body = GOOD | {"client_id": "a", "secret": "b"}
    assert (await asking(plaid)(CREATE, body, client=None)).status == 200
    await plaid.close()
    await plaid.close()
    await plaid.start()
    assert (await asking(plaid)(CREATE, body, client=None)).status == 200
    assert len(plaid.ledger) == 2
    await plaid.close()


async def test_port_is_taken_and_freed():
    """A port that somebody listens on is an OSError; after close it is free."""
    async with Simulator() as first:
        port = port_of(first)
        second = Simulator(port=port)
        with pytest.raises(OSError, match="address already in use"):
            await second.start()
    async with second:
        assert port_of(second) == port


async def test_close_ends_what_is_stalled(plaid, ask, arrived):
    """A stall, a latency, an idle connection and a half-sent request don't hold it up, and no task is left."""
    await ask("/nowhere")
    plaid.fail(Fault(stall=1e6, times=1), Fault(latency=1e6))
    waiting = [asyncio.create_task(ask(CREATE, GOOD)) for _ in range(2)]
    reader, writer = await half_a_request(plaid)
    await arrived(3)
    began = time.monotonic()
    await plaid.close()
    assert time.monotonic() - began < 20
    for ended in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(ended, aiohttp.ServerDisconnectedError)
    assert not plaid.ledger
    assert await reader.read() == b""
    writer.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_close_is_prompt_for_a_stall(asking):
    """With nothing but a stall in flight, closing waits for nothing; the quickest of three shows it."""
    durations = []
    for _ in range(3):
        async with Simulator() as plaid:
            plaid.fail(Fault(stall=1e6))
            stalled = asyncio.create_task(asking(plaid)(CREATE, GOOD))
            await wait_until_async(lambda: plaid.requests)
            began = time.monotonic()
            await plaid.close()
            durations.append(time.monotonic() - began)
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await stalled
    assert min(durations) < 0.3


async def test_a_client_that_hangs_up_is_no_error(plaid, ask, caplog):
    """Half a request, or a ledger read in part: nothing is logged, and the next is served."""
    for _ in range(2000):
        plaid._world.create_relay("owner", "ready", "p" * 10_000, "r")  # quicker than over HTTP
    with caplog.at_level(logging.DEBUG, "aiohttp"):
        _, writer = await half_a_request(plaid)
        await asyncio.sleep(0.01)
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(plaid))
        writer.write(b"GET /_simulator/ledger HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        writer.transport.abort()
        await asyncio.sleep(0.05)
        assert (await ask(CREATE, GOOD)).status == 200
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")]
    assert plaid.counts[CREATE] == 1


async def test_requests_are_noted_in_order(plaid, ask):
    """Path, caller, partner, headers, and how it ended."""
    await ask(CREATE, GOOD, headers={"X-Trace": "7"})
    await ask("/nowhere", client=None, data=b"[")
    await ask("/credit/relay/get", {"secondary_client_id": 5})
    first, second, third = plaid.requests
    assert (first.path, first.client_id, first.secondary_client_id) == (CREATE, "owner", "partner")
    assert (first.executed, first.status, first.headers["x-trace"]) == (True, 200, "7")
    assert first.request_id == plaid.ledger[0]["request_id"]
    assert (second.path, second.client_id, second.secondary_client_id) == ("/nowhere", None, None)
    assert (second.executed, second.status) == (False, 404)
    assert (third.secondary_client_id, third.executed, third.status) == (None, False, 400)
    assert plaid.counts == {CREATE: 1, "/nowhere": 1, "/credit/relay/get": 1}


async def test_no_secret_in_a_repr(plaid, ask):
    """Neither what was received nor the state shows a secret or a token."""
    await ask.report()
    relay_token = await ask.relay_token("ready")
    shown = repr(
        [
            plaid,
            plaid.requests,
            plaid.ledger,
            plaid._world._relay_tokens,
            list(plaid._world._reports.values()),
        ]
    )
    assert relay_token not in shown
    assert "owner-secret" not in shown
    assert "-sandbox-" not in shown


async def test_only_the_last_requests_are_kept(plaid, ask):
    """The counts know of all, the notes of the last ten thousand."""
    await ask("/nowhere")
    plaid._request_numbers = iter(range(9_999, 10_001))  # as if so many had come between
    await ask(CREATE, GOOD)
    assert len(plaid.requests) == 2
    await ask(CREATE, GOOD)
    assert [received.path for received in plaid.requests] == [CREATE, CREATE]
    assert plaid.counts.total() == 3


async def test_a_note_that_was_dropped_meanwhile(plaid, ask, arrived):
    """A request that ends after ten thousand others is no longer noted, and is answered all the same."""
    plaid.fail(Fault(latency=0.03, times=1))
    answering = asyncio.create_task(ask(CREATE, GOOD))
    await arrived(1)
    plaid._received.clear()
    assert (await answering).status == 200
    assert plaid.requests == ()


# Its own two paths


async def test_ledger_as_json_lines(plaid, ask):
    """A line for each relay token ever minted, with the five keys and no more; no credentials are needed."""
    tokens = [await ask.relay_token("ready", partner=f"p{n}") for n in range(3)]
    await ask("/credit/relay/remove", {"relay_token": tokens[1]})
    answer = await ask("/_simulator/ledger", method="GET", client=None)
    assert answer.headers["Content-Type"] == "application/jsonl"
    lines = [json.loads(line) for line in answer.raw.splitlines()]
    assert lines == list(plaid.ledger)
    assert [(line["relay_token"], line["removed"]) for line in lines] == list(
        zip(tokens, [False, True, False], strict=True)
    )
    assert set(lines[0]) == {"relay_token", "client_id", "secondary_client_id", "request_id", "removed"}


async def test_ledger_of_many(plaid, ask):
    """More than a thousand come in more than one piece, and none is lost."""
    for number in range(2500):
        plaid._world.create_relay("owner", "ready", str(number), "r")  # quicker than over HTTP
    lines = (await ask("/_simulator/ledger", method="GET")).raw.splitlines()
    assert [json.loads(line)["secondary_client_id"] for line in lines] == [
        str(number) for number in range(2500)
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/_simulator/ledger"), ("GET", "/_simulator/faults"), ("GET", "/_simulator/else")],
)
async def test_no_others_of_its_own(plaid, ask, method, path):
    """Other paths and methods say which two there are; they are none of Plaid's, and aren't counted."""
    answer = await ask(path, method=method)
    assert answer.status == 404
    assert "GET /_simulator/ledger" in answer.json["error"]
    assert not plaid.counts


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "10.0.0.1", "127.0.0.1.evil.example", "[::1", ""]
)
@pytest.mark.parametrize("path", ["/_simulator/faults", CREATE])
async def test_foreign_host(plaid, ask, host, path):
    """A page whose name was bound to this machine can't use it."""
    answer = await ask(path, GOOD, headers={"Host": host})
    assert answer.status == 403
    assert "Host" in answer.json["error"]
    assert not plaid.ledger


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "127.1.2.3", "[::1]:8080"])
async def test_own_host(ask, host):
    """Every name of this machine's own is fine."""
    assert (await ask(CREATE, GOOD, headers={"Host": host})).status == 200
