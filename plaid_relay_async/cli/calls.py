"""Creates the client of a command, and makes a single call with it."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from attrs import frozen
from cyclopts import Parameter

from plaid_relay_async.cli.arguments import ProxyOption, read_token, read_value
from plaid_relay_async.cli.logs import configure_logs
from plaid_relay_async.cli.messages import UsageError, max_connections
from plaid_relay_async.cli.options import BaseURL, LogFormat, Timeout, Verbose
from plaid_relay_async.cli.rows import NEEDS_JOURNAL
from plaid_relay_async.cli.serving import variable_names
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.client import RelayClient
from plaid_relay_async.config import Timeouts, __version__
from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.models import RelayCreateRequest
from plaid_relay_async.outcomes import Failed, Refreshed, Removed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plaid_relay_async.outcomes import LateOutcome


@Parameter(name="*")
@frozen
class ClientOptions:
    """The options of commands that call Plaid.

    Attributes:
        base_url: the base URL, in place of those in the environment.
        proxy: the URL of a proxy, or the file with it.
        timeout: seconds for one call with all its attempts.
        verbose: whether to log each attempt, retry and outcome.
        log_format: the format of the lines on standard error.
    """

    base_url: BaseURL = None
    proxy: ProxyOption = None
    timeout: Timeout = None
    verbose: Verbose = False
    log_format: LogFormat = "text"

    def build_client(
        self, concurrency: int = 1, *, late_outcomes: list[LateOutcome] | None = None, **settings: Any
    ) -> RelayClient:
        """Configure the log, and return the client of a command, which is not open yet.

        Args:
            concurrency: the option `--concurrency`.
            late_outcomes: the list to which the client appends the outcome of an interrupted call.
            **settings: further arguments of `RelayClient`.

        Raises:
            UsageError: an option is invalid, or the credentials are missing.
            ConfigurationError: a setting of the client is invalid.
        """
        configure_logs(self.log_format, verbose=self.verbose)
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UsageError("--timeout: must be a number of seconds greater than 0")
        if concurrency < 1:
            raise UsageError("--concurrency: must be an integer of at least 1")
        if (limit := max_connections()) is not None and concurrency > limit:
            raise UsageError(f"--concurrency: this shell allows at most {limit} connections; raise ulimit -n")
        # The client's own error advises to pass credentials as an argument, and the command has no option for
        # them.
        missing = [name for name in variable_names("default") if not os.environ.get(name)]
        if missing:
            names = " and ".join(missing)
            raise UsageError(f"no credentials: set {names} (see https://dashboard.plaid.com/developers/keys)")
        return RelayClient(
            base_url=self.base_url,
            timeouts=Timeouts() if self.timeout is None else Timeouts(total=self.timeout),
            connections=max(100, concurrency),
            proxy=None if self.proxy is None else read_value(self.proxy, "--proxy"),
            trust_env=True,
            application=("plaid-relay", __version__),
            on_late_outcome=None if late_outcomes is None else late_outcomes.append,
            **settings,
        )


def read_report_token(value: str) -> str:
    """Return the value of `--report-token`, which may be in a file.

    Raises:
        UsageError: the token can't be read, or is invalid.
    """
    # The record checks the token; the partner is a placeholder.
    return build_request(read_token(value, "--report-token"), "any-partner", None).report_tokens[0]


def build_request(report_token: str, partner: str, webhook: str | None) -> RelayCreateRequest:
    """Return the request that the options of a command describe.

    Raises:
        UsageError: an option is invalid; the message names it.
    """
    try:
        return RelayCreateRequest((report_token,), partner, webhook)
    except RequestValidationError as error:
        field, problem = error.field, error.problem
    # Raised after the `except` block: the original error, whose traceback refers to the token, is not its
    # context.
    option = {"secondary_client_id": "--partner", "webhook": "--webhook"}.get(field, "--report-token")
    raise UsageError(f"{option}: {problem}")


def check_webhook(webhook: str | None, *, recorded: bool) -> None:
    """Raise `UsageError` unless the option `--webhook` is valid; `{pair}` in it requires a journal."""
    # The token and the partner are placeholders.
    if build_request("any-token", "any-partner", webhook).needs_pair_id and not recorded:
        raise UsageError(f"--webhook: {NEEDS_JOURNAL}")


def run_call(client: RelayClient, operation: Callable[[], Awaitable[Any]]) -> Any:
    """Open the client, make a call, close the client, and return the response.

    Raises:
        PlaidRelayError: the call failed.
        KeyboardInterrupt: a signal was received.
    """

    async def call() -> Any:
        async with client:
            return await operation()

    return signals.run(call())


def run_write_call(
    client: RelayClient, operation: Callable[[], Awaitable[Any]], late_outcomes: list[LateOutcome]
) -> Any:
    """Make a call that isn't read-only, and return its response even if a signal interrupts it.

    The client waits for the response of an interrupted call, and reports it as a late outcome.

    Args:
        client: the client, which is not open yet.
        operation: makes the call.
        late_outcomes: the list to which the client appends the outcome of an interrupted call.

    Returns:
        The response; `None` if a signal was received, and the outcome is unknown.

    Raises:
        PlaidRelayError: the call failed.
        KeyboardInterrupt: a signal was received, and nothing was sent.
    """
    try:
        return run_call(client, operation)
    except KeyboardInterrupt:
        match late_outcomes:
            case [Refreshed() | Removed() as outcome]:
                return outcome.response
            case [Failed(error=error)]:
                raise error from None
            case [] if not _may_have_sent(client):
                raise
    return None


def _may_have_sent(client: RelayClient) -> bool:
    """Return whether an interrupted call without a late outcome may have sent a request."""
    # A cancelled attempt that was sent has a late outcome. But a second signal isn't a cancellation: it may
    # end the coroutine, or the wait for the response, at any point.
    return signals.stop_count > 1 or not client.statistics().attempts.keys() <= {"not_sent", "cancelled"}
