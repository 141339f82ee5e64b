"""The options of a batch are checked when it is created, before anything is sent."""

from __future__ import annotations

import pytest

from plaid_relay_async import ConfigurationError, RequestValidationError


@pytest.mark.parametrize("concurrency", [0, -1, 2.0, True, "5"])
async def test_an_invalid_concurrency_is_rejected(client, concurrency):
    """It is rejected when the batch is created, before anything is sent."""
    with pytest.raises(ConfigurationError, match="concurrency must be a whole number of 1 or more"):
        client.relay.create_many([], concurrency=concurrency)


async def test_an_unknown_option_is_rejected(client):
    """A misspelled argument is rejected with its name, and not ignored."""
    with pytest.raises(ConfigurationError, match="no option 'concurency'"):
        client.relay.create_many([], concurency=5)


async def test_async_callbacks_are_rejected(client):
    """They would never be awaited."""

    async def later(_: object) -> None:
        raise AssertionError

    for name in ("on_outcome", "on_progress"):
        with pytest.raises(ConfigurationError, match="plain functions"):
            client.relay.create_many([], **{name: later})


async def test_settings_for_all_tokens_are_checked_immediately(client):
    """They are checked before the first token, which may come late, and not under that token's name."""
    with pytest.raises(RequestValidationError, match="include_insights must be True or False"):
        client.relay.get_many([], include_insights=1)
    with pytest.raises(RequestValidationError, match="webhook must be an http"):
        client.relay.refresh_many([], webhook="nowhere")
    with pytest.raises(ConfigurationError, match="concurrency"):
        client.relay.remove_many([], concurrency=0)
    with pytest.raises(ConfigurationError, match="must be a finite number of seconds"):
        client.relay.get_pdf_many([], timeout=-1)
