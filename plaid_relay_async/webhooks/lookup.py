"""The look-up of keys: cached, shared, and bounded whatever an attacker sends.

The ID of a key is the sender's choice, so each forged webhook could cost a request to Plaid. Three bounds
prevent that:

- Concurrent look-ups of one ID share a request. A cancelled waiter doesn't cancel it.
- The result is cached: a key for an hour, after which its expiry is read again; that there is no such key,
  for five minutes.
- Look-ups have a budget, and a look-up that finds a key costs nothing. When the budget is used up, an unknown
  ID isn't refused, because it may be Plaid's next key: the look-up fails, as if Plaid couldn't be reached,
  and Plaid sends the webhook again later. IDs that are known as a key's have a budget of their own, so that
  forged ones can't use it up.

The budgets bound the memory as well, because each cached ID has cost a look-up.

Nothing distinguishes the ID of a real key before its look-up: an attacker can send IDs of the same form, with
claims that look recent. So while more forged IDs arrive than the budget permits, a webhook that names a real
ID has about the same chance of a look-up as a forged one. One look-up is enough, because the key stays known.
So the budget is as large as it can be without harm: at 300 look-ups a minute, it is a third of the 1,000
reports a minute that Plaid lets a client read (https://plaid.com/docs/errors/rate-limit-exceeded/). If Plaid
permits fewer look-ups, it responds with 429, and the transport slows down for this operation.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import define, frozen

from plaid_relay_async.errors import InvalidRequestError, PlaidRelayError
from plaid_relay_async.webhooks.errors import RefusalReason, WebhookKeyLookupError, WebhookRefusedError
from plaid_relay_async.webhooks.keys import VerificationKey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plaid_relay_async.models import JWKPublicKey

# All are our choice: Plaid publishes neither a limit for look-ups, nor how often its keys change.
KEY_SECONDS: Final = 3600.0
REFUSAL_SECONDS: Final = 300.0
BUDGET: Final = 20
BUDGET_PER_SECOND: Final = 5.0

_UNKNOWN_KEY_CODE: Final = "INVALID_WEBHOOK_VERIFICATION_KEY_ID"
_KeyOrReason: TypeAlias = VerificationKey | RefusalReason


@frozen
class _CacheEntry:
    """A key, or the reason for which there is none, and the time until which this is cached."""

    result: _KeyOrReason
    expires_at: float


@define
class _Budget:
    """Permits look-ups: `BUDGET` immediately, and then `BUDGET_PER_SECOND`."""

    left: float
    updated_at: float

    def take(self, now: float) -> bool:
        """Return whether a look-up is permitted, and count it."""
        self.left = min(BUDGET, self.left + (now - self.updated_at) * BUDGET_PER_SECOND)
        self.updated_at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def refund(self) -> None:
        """Don't count a look-up that has found a key."""
        self.left += 1


class KeyCache:
    """The keys of one environment, which are looked up when a webhook names them.

    Args:
        fetch: looks up the key with an ID.
        clock: returns monotonic time in seconds.
    """

    def __init__(
        self, fetch: Callable[[str], Awaitable[JWKPublicKey]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._entries: dict[str, _CacheEntry] = {}
        self._lookups: dict[str, asyncio.Task[_KeyOrReason | PlaidRelayError]] = {}
        self._budget, self._budget_of_known_keys = _Budget(BUDGET, clock()), _Budget(BUDGET, clock())

    def __len__(self) -> int:
        """Return the number of IDs in memory."""
        return len(self._entries.keys() | self._lookups.keys())

    async def get(self, key_id: str) -> VerificationKey:
        """Return the key with an ID. It may have expired.

        Raises:
            WebhookRefusedError: there is no such key, or it is unsuitable.
            WebhookKeyLookupError: this couldn't be found out; the `__cause__` says why, if it was tried.
        """
        entry = self._entries.get(key_id)
        if entry is not None and self._clock() < entry.expires_at:
            result: _KeyOrReason | PlaidRelayError = entry.result
        else:
            # A task of its own, and a shield, so that the request outlives the first of its waiters.
            result = await asyncio.shield(self._lookups.get(key_id) or self._start_lookup(key_id, entry))
        if isinstance(result, PlaidRelayError):
            raise WebhookKeyLookupError("the look-up of a webhook's key failed", sent=result.sent) from result
        if isinstance(result, RefusalReason):
            raise WebhookRefusedError.of(result)
        return result

    def _start_lookup(
        self, key_id: str, entry: _CacheEntry | None
    ) -> asyncio.Task[_KeyOrReason | PlaidRelayError]:
        known = entry is not None and isinstance(entry.result, VerificationKey)
        budget = self._budget_of_known_keys if known else self._budget
        if not budget.take(self._clock()):
            raise WebhookKeyLookupError("too many look-ups have found no key, so this one wasn't looked up")
        task = asyncio.create_task(self._look_up(key_id, budget))
        self._lookups[key_id] = task
        task.add_done_callback(lambda _: self._lookups.pop(key_id))
        return task

    async def _look_up(self, key_id: str, budget: _Budget) -> _KeyOrReason | PlaidRelayError:
        """Return the key, a reason to refuse it, or the error of the look-up, which isn't cached."""
        try:
            result: _KeyOrReason = _to_key(await self._fetch(key_id), key_id)
        except WebhookRefusedError as error:
            result = error.reason
        except PlaidRelayError as error:
            if not isinstance(error, InvalidRequestError) or error.error_code != _UNKNOWN_KEY_CODE:
                return error
            result = RefusalReason.UNKNOWN_KEY
        if isinstance(result, VerificationKey):
            budget.refund()
        self._store(key_id, result)
        return result

    def _store(self, key_id: str, result: _KeyOrReason) -> None:
        now = self._clock()
        # Refusals are dropped when they are stale. Keys are kept, so that they stay known.
        self._entries = {
            each: entry
            for each, entry in self._entries.items()
            if isinstance(entry.result, VerificationKey) or now < entry.expires_at
        }
        seconds = KEY_SECONDS if isinstance(result, VerificationKey) else REFUSAL_SECONDS
        self._entries[key_id] = _CacheEntry(result, now + seconds)


def _to_key(jwk: JWKPublicKey, key_id: str) -> VerificationKey:
    key = VerificationKey.from_jwk(jwk)
    if key.key_id != key_id:
        raise WebhookRefusedError.of(RefusalReason.UNSUITABLE_KEY)
    return key
