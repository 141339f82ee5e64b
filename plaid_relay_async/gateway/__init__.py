"""A reverse proxy that adds Plaid's credentials to the calls of callers with a gateway key.

It needs no extra, except `gateway` for Prometheus metrics.
"""

from plaid_relay_async.gateway.key_file import KeyFile
from plaid_relay_async.gateway.keys import ALL_OPERATIONS, RELAY_OPERATIONS, Key, new_key
from plaid_relay_async.gateway.server import Gateway

__all__ = ["ALL_OPERATIONS", "RELAY_OPERATIONS", "Gateway", "Key", "KeyFile", "new_key"]
