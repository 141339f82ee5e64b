"""A durable inbox and one in memory, compared after any sequence of calls."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path

import pytest
from attrs import define, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inbox_support import PAIR, incoming, open_memory_inbox, open_sql_inbox, stored

from plaid_relay_async.webhooks import IncomingWebhook, WebhookState
from plaid_relay_async.webhooks.inbox import DEDUPLICATION_SECONDS

pytestmark = pytest.mark.may_block

# Times differ by more than the calls take.
LEASE_SECONDS = 1_000.0
WEBHOOKS = st.builds(
    incoming,
    st.sampled_from("ab"),
    st.sampled_from([0.0, 5.0, DEDUPLICATION_SECONDS, DEDUPLICATION_SECONDS + 5, 3 * DEDUPLICATION_SECONDS]),
    pair=st.sampled_from([None, PAIR]),
    message_id=st.sampled_from([None, None, "m1", "m2"]),
)
NUMBERS = st.integers(0, 5)
CALLS = st.one_of(
    st.tuples(st.just("add"), WEBHOOKS),
    st.tuples(st.just("lease"), st.none()),
    st.tuples(st.sampled_from(["renew", "complete", "bury", "redeliver"]), NUMBERS),
    st.tuples(st.just("retry"), st.tuples(NUMBERS, st.sampled_from([0.0, 300.0, 900.0]))),
    st.tuples(st.just("advance"), st.sampled_from([400.0, 1_500.0])),
)


@define
class Player:
    """Applies calls to one inbox.

    Attributes:
        tested: the inbox.
        leases: all leases, in the order of their webhooks and times.
    """

    tested: object
    leases: list = field(factory=list)

    async def play(self, name, argument):
        """Apply a call, and return its result without IDs."""
        inbox = self.tested.inbox
        if name == "advance":
            return await self.tested.advance(argument)
        if name == "add":
            return await inbox.add(argument)
        if name == "lease":
            leases = sorted(await inbox.lease(100), key=lambda each: each.webhook.received_at)
            self.leases += leases
            return [(each.webhook.body, each.webhook.attempts, each.fencing_token) for each in leases]
        number, *delay = argument if isinstance(argument, tuple) else (argument,)
        if number >= len(self.leases):
            return None
        lease = self.leases[-1 - number]
        if name == "redeliver":
            return await inbox.redeliver(lease.webhook.id)
        if name == "retry":
            return await inbox.retry(lease, delay=delay[0], error="E")
        return await (inbox.bury(lease, error="F") if name == "bury" else getattr(inbox, name)(lease))

    async def state(self):
        """Return all that is stored, without IDs and times of arrival."""
        return [
            (each.body, each.sent_at, each.pair, each.message_id, each.state, each.attempts, each.error)
            for each in await stored(self.tested.inbox)
        ]


def check_states(states):
    """Check that no webhook has left the state DONE, and that no message ID has changed."""
    for before, after in itertools.pairwise(states):
        for one, other in zip(before, after, strict=False):
            assert one[:3] == other[:3]
            assert one[3] in {None, other[3]}
            assert one[4] is not WebhookState.DONE or other == (*one[:3], other[3], *one[4:])
    message_ids = [each[3] for each in states[-1] if each[3] is not None]
    assert len(message_ids) == len({*message_ids})


async def compare(calls):
    with tempfile.TemporaryDirectory() as folder:
        async with (
            open_memory_inbox(lease_seconds=LEASE_SECONDS) as memory,
            open_sql_inbox(Path(folder) / "relay.db", lease_seconds=LEASE_SECONDS) as durable,
        ):
            players, states = [Player(memory), Player(durable)], []
            for call in calls:
                first, second = [await player.play(*call) for player in players]
                assert (call, first) == (call, second)
                states.append(await players[0].state())
                assert states[-1] == await players[1].state()
            check_states(states)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CALLS, min_size=5, max_size=40))
def test_both_inboxes_behave_alike(calls):
    """After any calls, both inboxes have the same webhooks in the same states, and return the same."""
    asyncio.run(compare(calls))


@settings(max_examples=200, deadline=None)
@given(st.lists(WEBHOOKS, max_size=8))
def test_which_webhooks_are_new(webhooks):
    """A webhook is new exactly if none that is stored is the same one by the documented rule."""

    async def add():
        async with open_memory_inbox() as memory:
            for webhook in webhooks:
                before = await stored(memory.inbox)
                same = [each for each in before if is_same(webhook, each)]
                assert await memory.inbox.add(webhook) is (not same)

    def is_same(webhook: IncomingWebhook, other) -> bool:
        if webhook.message_id is not None and other.message_id is not None:
            return webhook.message_id == other.message_id
        is_equal = (webhook.body, webhook.pair) == (other.body, other.pair)
        return is_equal and abs(webhook.sent_at - other.sent_at) <= DEDUPLICATION_SECONDS

    asyncio.run(add())
