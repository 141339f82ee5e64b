"""The router: which function handles which event."""

from __future__ import annotations

from functools import partial

import pytest

from plaid_relay_async import ConfigurationError
from plaid_relay_async.webhooks import (
    AssetsErrorWebhook,
    AssetsProductReadyWebhook,
    ItemErrorWebhook,
    UnknownWebhook,
    WebhookRouter,
    parse,
)

READY = parse(b'{"webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY", "asset_report_id": "1"}')
SYNC = parse(b'{"webhook_type": "TRANSACTIONS", "webhook_code": "SYNC_UPDATES_AVAILABLE"}')
OTHER = parse(b'{"webhook_type": 1}')
# As the receiver reads one that isn't as Plaid documents it.
UNDOCUMENTED = UnknownWebhook(
    additional_properties={"webhook_type": "ASSETS", "webhook_code": "PRODUCT_READY", "asset_report_id": 1}
)


async def first(delivery): ...


async def second(delivery): ...


def test_dispatch_by_record():
    """A record selects its handler, and no other event does."""
    router = WebhookRouter()
    assert router.on(AssetsProductReadyWebhook)(first) is first
    assert router.find_handler(READY) is first
    assert router.find_handler(SYNC) is None
    assert router.find_handler(OTHER) is None


def test_dispatch_by_type_and_code():
    """A type and a code select their handler, whether the event has a record of its own or not."""
    router = WebhookRouter()
    router.on("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE")(first)
    router.on("ASSETS", "PRODUCT_READY")(second)
    assert router.find_handler(SYNC) is first
    assert router.find_handler(READY) is second
    assert router.find_handler(UNDOCUMENTED) is second


def test_the_default():
    """The default handles what has no handler; `UnknownWebhook` comes first."""
    router = WebhookRouter()
    assert router.default(first) is first
    assert router.find_handler(READY) is first
    router.on(UnknownWebhook)(second)
    assert router.find_handler(READY) is first
    assert router.find_handler(SYNC) is second
    assert router.find_handler(OTHER) is second


def test_the_handler_of_a_record_gets_only_that_record():
    """An event of another form isn't passed to the handler of its documented record."""
    router = WebhookRouter()
    router.on(AssetsProductReadyWebhook)(first)
    assert router.find_handler(UNDOCUMENTED) is None
    router.on(UnknownWebhook)(second)
    assert router.find_handler(UNDOCUMENTED) is second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((AssetsProductReadyWebhook,), (AssetsProductReadyWebhook,)),
        ((AssetsProductReadyWebhook,), ("ASSETS", "PRODUCT_READY")),
        (("ITEM", "ERROR"), (ItemErrorWebhook,)),
        (("A", "B"), ("A", "B")),
        ((UnknownWebhook,), (UnknownWebhook,)),
    ],
)
def test_a_second_handler_of_an_event_is_an_error(one, other):
    """An event has one handler, however it is registered."""
    router = WebhookRouter()
    router.on(*one)(first)
    with pytest.raises(ConfigurationError, match=r"there is a handler of .* already"):
        router.on(*other)(second)


def test_a_second_default_is_an_error():
    """There is one default."""
    router = WebhookRouter()
    router.default(first)
    with pytest.raises(ConfigurationError, match="default handler already"):
        router.default(second)


@pytest.mark.parametrize("handler", [lambda delivery: None, print, None, "first", partial(print)])
def test_a_handler_must_be_async(handler):
    """A function that isn't async is rejected when it is registered, not when the first webhook arrives."""
    router = WebhookRouter()
    with pytest.raises(ConfigurationError, match="must be an async function"):
        router.on(AssetsErrorWebhook)(handler)
    with pytest.raises(ConfigurationError, match="must be an async function"):
        router.default(handler)


def test_other_async_handlers():
    """A partial function, a method and an object with an async `__call__` are handlers."""

    class Service:
        async def handle(self, delivery): ...

        async def __call__(self, delivery): ...

    router, service = WebhookRouter(), Service()
    router.on("A", "1")(partial(first, delivery=None))
    router.on("A", "2")(service.handle)
    router.on("A", "3")(service)
    assert router.find_handler(parse(b'{"webhook_type": "A", "webhook_code": "3"}')) is service


@pytest.mark.parametrize("event", [("ASSETS",), (dict,), ("ASSETS", ""), (None,), (READY,)])
def test_what_is_no_event(event):
    """What is neither a record nor a type with a code is rejected."""
    with pytest.raises(ConfigurationError, match="needs the record of a webhook"):
        WebhookRouter().on(*event)
