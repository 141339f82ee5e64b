"""A simulator of Plaid's API: an HTTP server on 127.0.0.1 with state, validation and scripted faults."""

from plaid_relay_async.simulator.faults import Fault, WebhookFault
from plaid_relay_async.simulator.limits import Limit
from plaid_relay_async.simulator.samples import report_bytes
from plaid_relay_async.simulator.server import Simulator
from plaid_relay_async.simulator.webhooks import sign_webhook

__all__ = ["Fault", "Limit", "Simulator", "WebhookFault", "report_bytes", "sign_webhook"]
