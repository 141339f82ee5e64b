"""What several test modules share."""

from __future__ import annotations

from plaid_relay_async import Credentials, RetryPolicy

OWNER = Credentials("owner", "secret-of-the-owner")
PARTNER = Credentials("partner", "secret-of-the-partner")
QUICK = RetryPolicy(backoff=0.001, max_backoff=0.002)


def most_in_a_window(moments, per):
    """The most moments that a half-open window of this length holds, wherever it begins."""
    return max(sum(start <= moment < start + per for moment in moments) for start in moments)
