"""A reverse proxy that adds Plaid's credentials to the calls of those who hold a key of its own."""

from plaid_relay_async.gateway.keys import KNOWN, RELAY, Key, KeyFile, new_key
from plaid_relay_async.gateway.server import Gateway

__all__ = ["KNOWN", "RELAY", "Gateway", "Key", "KeyFile", "new_key"]
