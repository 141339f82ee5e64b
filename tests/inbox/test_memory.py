"""The inbox in memory."""

from __future__ import annotations

from inbox_support import incoming, lease_one, stored

from plaid_relay_async.webhooks import MemoryInbox, WebhookState


async def test_only_webhooks_that_are_done_are_dropped():
    """Beyond the limit, those that were done first are dropped, and the others are kept."""
    inbox = MemoryInbox(max_webhooks=2)
    assert not inbox.durable
    for content in "abcd":
        assert await inbox.add(incoming(content))
    assert len(await stored(inbox)) == 4
    leases = await inbox.lease(4)
    for lease in leases[:3]:
        assert await inbox.complete(lease)
    assert [each.state for each in await stored(inbox)] == [WebhookState.DONE, WebhookState.PENDING]
    assert await inbox.add(incoming("e"))
    assert {each.state for each in await stored(inbox)} == {WebhookState.PENDING}
    assert not await inbox.complete(leases[0])
    assert (await lease_one(inbox)).webhook.body == incoming("e").body
