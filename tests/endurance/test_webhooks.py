"""Webhooks from the simulator to receivers that are killed, with faults of all parts; none may be missing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import socket
import sqlite3
from collections import Counter, defaultdict
from contextlib import aclosing
from pathlib import Path

import aiohttp
import pytest
from attrs import define, evolve, field
from canaries import CREDENTIALS, SECRET, assert_no_canary
from journal_support import KEY
from webhook_service import SAME, Service, Settings, always_fails, running_service

from plaid_relay_async import RelayClient
from plaid_relay_async.inbox import SQLInbox
from plaid_relay_async.simulator import Fault, Simulator, WebhookFault
from plaid_relay_async.webhooks import WebhookState

pytestmark = [pytest.mark.may_block, pytest.mark.timeout(3600), pytest.mark.slow]
LOOKUP = "/webhook_verification_key/get"
WAVE_SECONDS = 240  # of the simulator's time: 40 waves take less than 3 hours
LATER_SECONDS = 20 * 3600  # with the waves, less than the 24 hours of Plaid's retries
FAULTS = (
    WebhookFault(attempt=1, lose=True, rate=0.1),
    WebhookFault(ignore_response=True, rate=0.1),
    WebhookFault(duplicates=2, rate=0.1),
    WebhookFault(attempt=1, delay=90, rate=0.1),
    WebhookFault(delay=20, duplicates=1, stale=True, rate=0.1),
    WebhookFault(stale=True, rate=0.2),
)


def payload_of(number):
    """Return the content of a webhook; each sixth one has the same content as others."""
    personal = {"number": number, "owner": f"canary-person-{number}"}
    match number % 6:
        case 0:
            return {"webhook_type": "ITEM", "webhook_code": "LOGIN_REPAIRED", "item_id": "canary-item"}
        case 1:
            kind = {"webhook_type": "ASSETS", "webhook_code": "ERROR"}
            error = {"error_type": "ASSET_REPORT_ERROR", "error_code": "DATA_UNAVAILABLE"}
            return {**kind, "asset_report_id": f"canary-report-{number}", "error": error, **personal}
        case 2:
            kind = {"webhook_type": "CREDIT_RELAY", "webhook_code": "REPORT_RETRIEVED"}
            return {**kind, "amount": 1.0, "text": "é\x00\ud800", **personal}
        case 3:
            return {"webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY", **personal}  # undocumented
        case _:
            kind = {"webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY"}
            return {**kind, "asset_report_id": f"canary-report-{number}", "report_type": "FULL", **personal}


@define(eq=False)
class Chain:
    """A simulator, a receiver in another process, and its inbox."""

    plaid: Simulator
    service: Service
    inbox: SQLInbox
    client: RelayClient
    url: str
    sent: int = 0
    forged: Counter = field(factory=Counter)
    disturbed: bool = True
    random: random.Random = field(factory=lambda: random.Random(5))

    def send(self, count):
        """Send the next webhooks; each third one has a pair in its URL."""
        for number in range(self.sent, self.sent + count):
            pair = self.random.randbytes(16).hex() if number % 3 == 2 else ""
            self.plaid.world.webhooks.send("owner", f"{self.url}{pair}", payload_of(number))
        self.sent += count

    async def recover(self):
        return await self.client.webhooks.recover(self.inbox, url_prefix=self.url)

    async def stored(self, state=None):
        async with aclosing(self.inbox.webhooks(state)) as webhooks:
            return [each async for each in webhooks]

    async def wait_until_processed(self):
        async with asyncio.timeout(300):
            while await self.stored(WebhookState.PENDING):
                await asyncio.sleep(0.3)

    def records(self):
        """Return what the handlers and the inbox have recorded."""
        return [json.loads(line) for line in Path(self.service.settings.records).read_text().splitlines()]

    # Disturbances

    async def disturb_while(self, work):
        """Kill the receiver repeatedly, and send forgeries, until some work is done; the receiver runs then."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.kill_repeatedly())
            group.create_task(self.forge_repeatedly())
            await work
            self.disturbed = False

    async def kill_repeatedly(self):
        while self.disturbed:
            await asyncio.sleep(self.random.uniform(1.0, 4.0))
            await self.service.kill()
            await asyncio.sleep(self.random.uniform(0.0, 0.5))
            await self.service.start()

    async def forge_repeatedly(self):
        """Send forged webhooks: the token of another body, or the key ID of no key."""
        body = json.dumps({**payload_of(5), "owner": "canary-forger"}).encode()
        header = (
            base64.urlsafe_b64encode(b'{"alg":"ES256","kid":"unknown","typ":"JWT"}').rstrip(b"=").decode()
        )
        async with aiohttp.ClientSession() as session:
            while self.disturbed:
                headers = self.plaid.sign_webhook(b"{}")
                if self.random.random() < 0.5:
                    token = self.plaid.sign_webhook(body)["Plaid-Verification"]
                    headers["Plaid-Verification"] = f"{header}.{token.partition('.')[2]}"
                with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                    async with session.post(self.url, data=body, headers=headers) as response:
                        self.forged[response.status] += 1
                await asyncio.sleep(0.05)

    async def run_waves(self, waves, count, disturb):
        """Send webhooks in waves, while the other parts fail."""
        for wave in range(waves):
            self.send(count)
            if wave % 5 == 2:
                old = self.plaid.world.webhook_keys.current_id
                self.plaid.rotate_webhook_key()
                self.plaid.expire_webhook_key(old)
            if wave % 10 == 4:
                self.plaid.fail(Fault(path=LOOKUP, status=503, times=8))
            if wave % 10 == 7:
                await disturb()
            if wave == waves // 2:
                await self.recover()
            # In steps, so that the receiver is up for some of the attempts.
            for _ in range(8):
                await self.plaid.advance(WAVE_SECONDS / 8)
                await asyncio.sleep(0.1)


def unassigned_port():
    """Return a free port that the kernel assigns to no other socket while the service restarts."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port


@contextlib.asynccontextmanager
async def running_chain(kind, address, folder):
    port = unassigned_port()
    names = {name: str(folder / name) for name in ("records", "reasons", "log")}
    async with Simulator(clients={"owner": SECRET}) as plaid:
        plaid.fail(*FAULTS)
        async with (
            running_service(Settings(kind, port, plaid.url, address, **names)) as service,
            RelayClient(CREDENTIALS, base_url=plaid.url) as client,
            SQLInbox(address) as inbox,
        ):
            yield Chain(plaid, service, inbox, client, f"http://127.0.0.1:{port}/plaid/")


async def check_acknowledged(chain):
    """Check that the inbox has each webhook that the receiver has responded to with 200; return their number."""
    contents = {(each.pair or "", canonical(json.loads(each.body))) for each in await chain.stored()}
    acknowledged = [each for each in chain.plaid.sent_webhooks if each["delivery_status"] == "DELIVERED"]
    for each in acknowledged:
        pair = each["destination_url"].rpartition("/")[2]
        assert (pair, canonical(each["payload"])) in contents
    return len(acknowledged)


def canonical(payload):
    return json.dumps(payload, sort_keys=True)


async def check_inbox(chain):
    """Check that the inbox has each sent webhook once, and in the right state; return the dead letters."""
    stored = await chain.stored()
    sent = {each["webhook_message_id"]: each for each in chain.plaid.sent_webhooks}
    assert len(sent) == chain.sent
    assert Counter(each.message_id for each in stored) == Counter(sent.keys())
    for each in stored:
        event = sent[each.message_id]
        assert json.loads(each.body) == event["payload"]
        assert event["destination_url"].endswith(f"/plaid/{each.pair or ''}")
        dead = always_fails(event["payload"].get("number"))
        assert each.state is (WebhookState.DEAD if dead else WebhookState.DONE)
    return [each for each in stored if each.state is WebhookState.DEAD]


async def check_handlers(chain):
    """Check that the handler ran for each webhook, always with the same key, and that each was done once."""
    keys, done = defaultdict(set), Counter()
    for record in chain.records():
        if "done" in record:
            done[record["done"]] += 1
        else:
            keys[record["label"]].add(record["key"])
    expected = defaultdict(set)
    for each in await chain.stored():
        expected[json.loads(each.body).get("number", SAME)].add(each.id)
    assert keys == expected
    assert set(done.values()) == {1}


@pytest.fixture(params=["aiohttp, SQLite", "FastAPI, PostgreSQL"])
async def case(request, tmp_path):
    """The kind of the service, the address of its inbox, and a function that makes the inbox fail for a while."""
    if request.param == "aiohttp, SQLite":
        return "aiohttp", str(tmp_path / "inbox.db"), lambda: lock_file(tmp_path / "inbox.db")
    postgres = request.getfixturevalue("postgres")
    await postgres.reset()
    return "fastapi", postgres.url, lambda: restart(postgres)


async def lock_file(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA busy_timeout = 5000")
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(4)
        other.execute("ROLLBACK")


async def restart(postgres):
    await postgres.kill()
    await asyncio.sleep(1)
    await postgres.start()


async def test_no_webhook_is_missing(size, case, tmp_path, monkeypatch):
    """Each webhook is done once or a dead letter, although all parts fail now and then."""
    monkeypatch.setenv("PLAID_RELAY_KEY", KEY)
    kind, address, disturb = case
    async with running_chain(kind, address, tmp_path) as chain:
        await chain.disturb_while(chain.run_waves(size(10, 40), size(16, 50), disturb))
        acknowledged = await check_acknowledged(chain)
        recovered = await chain.recover()
        await chain.wait_until_processed()
        dead = await check_inbox(chain)
        await check_handlers(chain)
        # What Plaid still sends is a duplicate of what was recovered.
        await chain.plaid.advance(LATER_SECONDS)
        assert (await chain.recover()).added == 0
        assert [each.id for each in await check_inbox(chain)] == [each.id for each in dead]

        await chain.service.kill()
        chain.service.settings = evolve(chain.service.settings, failing=False)
        await chain.service.start()
        for each in dead:
            assert await chain.inbox.redeliver(each.id)
        await chain.wait_until_processed()
        await check_handlers(chain)
        assert {each.state for each in await chain.stored()} == {WebhookState.DONE}
    assert set(chain.forged) <= {400, 503}
    for name in ("log", "reasons", "records"):
        assert_no_canary((tmp_path / name).read_text(errors="replace"))
    attempts = sum(each["attempt_count"] for each in chain.plaid.sent_webhooks)
    print(  # noqa: T201  # with -s, the size of the proof
        f"{chain.sent:,} webhooks, {attempts:,} attempts, {acknowledged:,} acknowledged, "
        f"{chain.service.starts} starts, {len(dead)} dead letters, "
        f"{recovered.added} of {recovered.read} recovered at last, forged: {dict(chain.forged)}"
    )
