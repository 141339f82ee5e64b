"""The names that tests import, and the modules of the pytest plugin; see `docs/testing.md`.

The plugin itself is the module `_plaid_relay_async_pytest`. It is outside of the package, so that pytest can
load it in each run without importing the package.
"""

from plaid_relay_async.simulator import Fault, WebhookFault, sign_webhook
from plaid_relay_async.testing.interception import PatchedSessionWarning
from plaid_relay_async.testing.logs import assert_no_secrets
from plaid_relay_async.testing.simulator_thread import SimulatorThread

__all__ = [
    "Fault",
    "PatchedSessionWarning",
    "SimulatorThread",
    "WebhookFault",
    "assert_no_secrets",
    "sign_webhook",
]
