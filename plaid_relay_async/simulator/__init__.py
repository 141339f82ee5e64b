"""A Plaid of one's own: a real server on 127.0.0.1 that holds state, validates, and fails as told."""

from plaid_relay_async.simulator.faults import Fault
from plaid_relay_async.simulator.limits import Limit
from plaid_relay_async.simulator.samples import report_bytes
from plaid_relay_async.simulator.server import Simulator

__all__ = ["Fault", "Limit", "Simulator", "report_bytes"]
