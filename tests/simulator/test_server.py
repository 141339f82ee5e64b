"""The server: its address, the requests that it records, its end, and its own two paths."""

import asyncio
import gc
import json
import logging
import time

import aiohttp
import pytest
from processes import wait_until_async

from plaid_relay_async import simulator
from plaid_relay_async.simulator import Fault, Simulator
from plaid_relay_async.simulator.requests import ReceivedRequest, RequestLog
from plaid_relay_async.simulator.world import RelayToken, Report

CREATE = "/credit/relay/create"
VALID_BODY = {"report_tokens": ["ready"], "secondary_client_id": "partner"}


def port_of(plaid):
    return int(plaid.url.rpartition(":")[2])


async def send_partial_request(plaid):
    """Open a connection, and send a request without the rest of its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(plaid))
    head = f"POST {CREATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    writer.write(head.encode() + b"{")
    await writer.drain()
    return reader, writer


def test_exports():
    """The package exports six names."""
    names = ["Fault", "Limit", "Simulator", "WebhookFault", "report_bytes", "sign_webhook"]
    assert simulator.__all__ == names


async def test_start_and_close(api_for):
    """A simulator can be started, closed, and started again with the same state."""
    plaid = Simulator(reports=["ready"])
    await plaid.close()
    with pytest.raises(RuntimeError, match="not started"):
        _ = plaid.url
    await plaid.start()
    assert plaid.url.startswith("http://127.0.0.1:")
    with pytest.raises(RuntimeError, match="already"):
        await plaid.start()
    body = VALID_BODY | {"client_id": "a", "secret": "b"}
    assert (await api_for(plaid)(CREATE, body, client=None)).status == 200
    await plaid.close()
    await plaid.close()
    await plaid.start()
    assert (await api_for(plaid)(CREATE, body, client=None)).status == 200
    assert len(plaid.ledger) == 2
    await plaid.close()


async def test_reset(plaid, api, wait_for_requests):
    """A reset replaces the state, and keeps the address and the other settings; waiting requests end."""
    url = plaid.url
    await api(CREATE, VALID_BODY)
    plaid.fail(Fault(latency=1_000.0))
    waiting = asyncio.create_task(api(CREATE, VALID_BODY))
    await wait_for_requests(2)
    await plaid.reset(reports=["another"], faults=[Fault(status=500, times=1)], latency=0.001)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await waiting
    assert plaid.url == url
    assert not plaid.requests
    assert not plaid.ledger
    another = VALID_BODY | {"report_tokens": ["another"]}
    statuses = [(await api(CREATE, body)).status for body in (another, another, VALID_BODY)]
    assert statuses == [500, 200, 400]
    assert (await api(CREATE, another, headers={"PLAID-SECRET": "wrong"})).error[2] == "INVALID_API_KEYS"
    assert len(plaid.ledger) == 1


async def test_reset_before_the_start(api_for):
    """A simulator that isn't started can be reset as well."""
    plaid = Simulator()
    await plaid.reset(reports=["ready"])
    async with plaid:
        body = VALID_BODY | {"client_id": "a", "secret": "b"}
        assert (await api_for(plaid)(CREATE, body, client=None)).status == 200


async def test_port_in_use():
    """A port that is in use is an OSError; after close it is free."""
    async with Simulator() as first:
        port = port_of(first)
        second = Simulator(port=port)
        with pytest.raises(OSError, match="address already in use"):
            await second.start()
    async with second:
        assert port_of(second) == port


async def test_close_ends_what_is_stalled(plaid, api, wait_for_requests):
    """Stalled, delayed and incomplete requests and idle connections don't delay it, and no task remains."""
    await api("/nowhere")
    plaid.fail(Fault(stall=1e6, times=1), Fault(latency=1e6))
    waiting = [asyncio.create_task(api(CREATE, VALID_BODY)) for _ in range(2)]
    reader, writer = await send_partial_request(plaid)
    await wait_for_requests(3)
    started_at = time.monotonic()
    await plaid.close()
    assert time.monotonic() - started_at < 20
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, aiohttp.ServerDisconnectedError)
    assert not plaid.ledger
    assert await reader.read() == b""
    writer.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_close_is_prompt_for_a_stall(api_for):
    """Closing takes no time if the only request in flight is stalled; the fastest of three tries counts."""
    durations = []
    for _ in range(3):
        async with Simulator() as plaid:
            plaid.fail(Fault(stall=1e6))
            stalled = asyncio.create_task(api_for(plaid)(CREATE, VALID_BODY))
            await wait_until_async(lambda: plaid.requests)
            started_at = time.monotonic()
            await plaid.close()
            durations.append(time.monotonic() - started_at)
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await stalled
    assert min(durations) < 0.3


async def test_a_client_that_hangs_up_is_no_error(plaid, api, caplog):
    """A partial request, or a ledger that is read partially: nothing is logged, and the server goes on."""
    for _ in range(2000):
        plaid.world.create_relay("owner", "ready", "p" * 10_000, "r")  # faster than over HTTP
    with caplog.at_level(logging.DEBUG, "aiohttp"):
        _, writer = await send_partial_request(plaid)
        await asyncio.sleep(0.01)
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(plaid))
        writer.write(b"GET /_simulator/ledger HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readline()
        writer.transport.abort()
        await asyncio.sleep(0.05)
        assert (await api(CREATE, VALID_BODY)).status == 200
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")]
    assert plaid.counts[CREATE] == 1


async def test_requests_are_recorded_in_order(plaid, api):
    """The record of a request has its path, caller, partner, headers and result."""
    await api(CREATE, VALID_BODY, headers={"X-Trace": "7"})
    await api("/nowhere", client=None, data=b"[")
    await api("/credit/relay/get", {"secondary_client_id": 5})
    first, second, third = plaid.requests
    assert (first.path, first.client_id, first.secondary_client_id) == (CREATE, "owner", "partner")
    assert (first.executed, first.status, first.headers["x-trace"]) == (True, 200, "7")
    assert first.request_id == plaid.ledger[0]["request_id"]
    assert (second.path, second.client_id, second.secondary_client_id) == ("/nowhere", None, None)
    assert (second.executed, second.status) == (False, 404)
    assert (third.secondary_client_id, third.executed, third.status) == (None, False, 400)
    assert plaid.counts == {CREATE: 1, "/nowhere": 1, "/credit/relay/get": 1}


async def test_no_secret_in_a_repr(plaid, api):
    """Neither the recorded requests nor the state show a secret or a token."""
    await api.report()
    relay_token = await api.relay_token("ready")
    shown = repr(
        [
            plaid,
            plaid.requests,
            plaid.ledger,
            [each for each in gc.get_objects() if isinstance(each, RelayToken | Report)],
        ]
    )
    assert relay_token not in shown
    assert "owner-secret" not in shown
    assert "-sandbox-" not in shown


def test_only_the_last_requests_are_recorded():
    """The oldest record is removed, and a request that ends after that is no longer recorded."""
    log = RequestLog(2)
    for number in range(3):
        log.add(ReceivedRequest(CREATE, "owner", None, str(number)))
    log.update("0", status=200)
    log.update("1", status=200)
    assert [(each.request_id, each.status) for each in log.records] == [("1", 200), ("2", None)]


# Its own two paths


async def test_ledger_as_json_lines(plaid, api):
    """The ledger has one line of five keys for each relay token ever issued, and needs no credentials."""
    tokens = [await api.relay_token("ready", partner=f"p{n}") for n in range(3)]
    await api("/credit/relay/remove", {"relay_token": tokens[1]})
    response = await api("/_simulator/ledger", method="GET", client=None)
    assert response.headers["Content-Type"] == "application/jsonl"
    lines = [json.loads(line) for line in response.raw.splitlines()]
    assert lines == list(plaid.ledger)
    assert [(line["relay_token"], line["removed"]) for line in lines] == list(
        zip(tokens, [False, True, False], strict=True)
    )
    assert set(lines[0]) == {"relay_token", "client_id", "secondary_client_id", "request_id", "removed"}


async def test_ledger_of_many(plaid, api):
    """A ledger of more than a thousand tokens is sent in several pieces, and is complete."""
    for number in range(2500):
        plaid.world.create_relay("owner", "ready", str(number), "r")  # faster than over HTTP
    lines = (await api("/_simulator/ledger", method="GET")).raw.splitlines()
    assert [json.loads(line)["secondary_client_id"] for line in lines] == [
        str(number) for number in range(2500)
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/_simulator/ledger"), ("GET", "/_simulator/faults"), ("GET", "/_simulator/else")],
)
async def test_unknown_control_paths(plaid, api, method, path):
    """The response names the two paths that exist; the request isn't counted as one of Plaid's."""
    response = await api(path, method=method)
    assert response.status == 404
    assert "GET /_simulator/ledger" in response.json["error"]
    assert not plaid.counts


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "10.0.0.1", "127.0.0.1.evil.example", "[::1", ""]
)
@pytest.mark.parametrize("path", ["/_simulator/faults", CREATE])
async def test_foreign_host(plaid, api, host, path):
    """A web page can't use the simulator by DNS rebinding."""
    response = await api(path, VALID_BODY, headers={"Host": host})
    assert response.status == 403
    assert "Host" in response.json["error"]
    assert not plaid.ledger


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "127.1.2.3", "[::1]:8080"])
async def test_own_host(api, host):
    """Every name of the local machine is accepted."""
    assert (await api(CREATE, VALID_BODY, headers={"Host": host})).status == 200
