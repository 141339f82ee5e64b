"""Runs the command `plaid-relay` as `python -m plaid_relay_async.cli`."""

import sys

from plaid_relay_async.cli import main

sys.exit(main())
