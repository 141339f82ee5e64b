"""Lets `python -m plaid_relay_async.cli` do what `plaid-relay` does."""

import sys

from plaid_relay_async.cli import main

sys.exit(main())
