"""The store of the commands `plaid-relay webhooks`: its options, and the inbox that they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from attrs import frozen
from cyclopts import Parameter

from plaid_relay_async.cli.arguments import read_value
from plaid_relay_async.cli.journal_options import KeyFileOption, run_query
from plaid_relay_async.cli.messages import UsageError, naming_extra

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from plaid_relay_async.inbox import SQLInbox

DAY_SECONDS: Final = 86_400.0

_STORE = Parameter(
    help="Store of webhooks: the path of an SQLite file, or a PostgreSQL URL. @FILE reads it from a file, "
    "for a URL with a password."
)
StoreURL: TypeAlias = Annotated[str, _STORE]
OptionalStoreURL: TypeAlias = Annotated[str | None, _STORE]


def build_inbox(url: str, key_file: Path | None, **settings: Any) -> SQLInbox:
    """Return the inbox of a store, which is not open yet; a store that doesn't exist is created.

    Args:
        url: the option `--store`.
        key_file: the option `--key-file`.
        **settings: further arguments of `SQLInbox`.

    Raises:
        UsageError: the option can't be read, or an extra isn't installed.
        ConfigurationError: an option is invalid.
    """
    with naming_extra():
        from plaid_relay_async.inbox import SQLInbox
    return SQLInbox(read_value(url, "--store"), key=key_file, **settings)


@Parameter(name="*")
@frozen
class ExistingStore:
    """The options of commands that need an existing store.

    Attributes:
        store: the path or URL of the store.
        key_file: the file with the keys.
    """

    store: StoreURL
    key_file: KeyFileOption = None

    def run_query(self, query: Callable[[SQLInbox], Awaitable[Any]]) -> Any:
        """Open the inbox, run a query, and return its result.

        Raises:
            UsageError: the file doesn't exist, or an extra isn't installed.
            ConfigurationError: an option is invalid.
            InboxError: the store can't be read or written.
        """
        inbox = build_inbox(self.store, self.key_file)
        if inbox.path is not None and not inbox.path.exists():
            raise UsageError("--store: the file doesn't exist")
        return run_query(inbox, query)
