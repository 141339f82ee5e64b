"""The commands of `plaid-relay webhooks`, their options and their help."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from plaid_relay_async.cli.arguments import confirm
from plaid_relay_async.cli.calls import ClientOptions
from plaid_relay_async.cli.journal_options import (
    ExistingJournal,
    KeyFileOption,
    OptionalJournalURL,
    SkipConfirmation,
)
from plaid_relay_async.cli.logs import print_message
from plaid_relay_async.cli.messages import ExitStatus, UsageError, naming_extra
from plaid_relay_async.cli.options import Port  # noqa: TC001  # cyclopts reads it at run time
from plaid_relay_async.cli.output import open_stdout
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.cli.webhook_options import (
    DAY_SECONDS,
    ExistingStore,
    OptionalStoreURL,
    StoreURL,
    build_inbox,
)
from plaid_relay_async.cli.webhook_output import LineWriter, complete_last_line, format_time, to_line
from plaid_relay_async.cli.webhook_samples import check_receiver, read_body, send_webhook
from plaid_relay_async.codec import to_json
from plaid_relay_async.errors import RequestValidationError
from plaid_relay_async.hosts import is_loopback

if TYPE_CHECKING:
    from plaid_relay_async.client import RelayClient
    from plaid_relay_async.client.webhook_events import SentWebhooks
    from plaid_relay_async.inbox import SQLInbox
    from plaid_relay_async.webhooks import Recovery, StoredWebhook

# After listen was killed, the next one waits so long before it prints the line that was being printed.
_LEASE_SECONDS = 10.0

_LISTEN_HELP = (
    "Receive webhooks on any path, and print each verified one as a line of JSON, until interrupted.\n\n"
    "With --store, a webhook is stored before Plaid gets the response, and printed at least once, even if "
    "the command is killed meanwhile. Without it, webhooks that aren't printed at the end are lost.\n\n"
    "With --journal, the retrievals of reports are recorded, and each line has the run and the partner.\n\n"
    "The reason for which a webhook is refused is printed on standard error."
)
_LIST_IS_BETA = "The list is in beta at Plaid, and has no webhooks of the type TRANSACTIONS."
_RECOVER_HELP = (
    "Read the list of the webhooks that Plaid has sent in the last 7 days, and store those that the store "
    "doesn't have.\n\n"
    "They are printed by `plaid-relay webhooks listen` with the same store, which may be running. The next "
    "recovery reads what Plaid has sent since.\n\n"
    f"{_LIST_IS_BETA}"
)
_LIST_HELP = (
    "Print the webhooks that Plaid has sent in the last 7 days, oldest first, each as a line of JSON.\n\n"
    f"{_LIST_IS_BETA}"
)
_NO_DEAD_LETTER = "ID: isn't that of a dead letter; list them with plaid-relay webhooks stored --state dead"

webhooks = App(name="webhooks", help="Receive, send, recover and list webhooks.")


@webhooks.command(help=_LISTEN_HELP)
def listen(
    *,
    port: Port = 0,
    listen: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    plain_http: Annotated[
        bool,
        Parameter(
            negative="",
            help="Allow plain http on an address other than loopback, behind a TLS-terminating proxy.",
        ),
    ] = False,
    store: OptionalStoreURL = None,
    retention: Annotated[
        float | None,
        Parameter(
            help="Days for which the store keeps the payload of a webhook after it was printed. Default: 30."
        ),
    ] = None,
    journal: OptionalJournalURL = None,
    key_file: KeyFileOption = None,
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Receive webhooks, and print each verified one as a line of JSON, until interrupted."""
    if not plain_http and not is_loopback(listen):
        raise UsageError(
            f"--listen: webhooks would be received over plain http on {listen}; use --plain-http behind a "
            "TLS-terminating proxy"
        )
    if store is None and retention is not None:
        raise UsageError("--store: is required by --retention")
    if store is None and journal is None and key_file is not None:
        raise UsageError("--key-file: requires --store or --journal")
    if retention is not None and not 0 <= retention < math.inf:
        raise UsageError("--retention: must be a number of days, 0 or more")
    client = client_options.build_client()
    settings = {"lease_seconds": _LEASE_SECONDS}
    if retention is not None:
        settings["retention"] = retention * DAY_SECONDS
    inbox = None if store is None else build_inbox(store, key_file, **settings)
    existing_journal = None if journal is None else ExistingJournal(journal, key_file).build_journal()
    with naming_extra():
        from plaid_relay_async.cli import webhook_listener
    file = open_stdout()
    complete_last_line(file)
    return signals.run(
        webhook_listener.listen(client, inbox, existing_journal, (listen, port), file=file, signals=signals)
    )


@webhooks.command(help=_RECOVER_HELP)
def recover(
    *,
    store: StoreURL,
    key_file: KeyFileOption = None,
    url_prefix: Annotated[
        str, Parameter(help="Store only webhooks that were sent to a URL with this beginning. Default: all.")
    ] = "",
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Store the webhooks of the last 7 days that the store doesn't have."""
    client, inbox = client_options.build_client(), build_inbox(store, key_file)

    async def run() -> Recovery:
        async with client, inbox:
            return await client.webhooks.recover(inbox, url_prefix=url_prefix)

    recovery = signals.run(run())
    print_message(f"read: {recovery.read:,}", f"stored: {recovery.added:,}")
    if recovery.cursor_expired:
        print_message(
            "the last recovery was too long ago: webhooks that Plaid doesn't list any more aren't recovered"
        )
        return ExitStatus.FAILED
    return ExitStatus.DONE


@webhooks.command(name="list", help=_LIST_HELP)
def list_sent(
    *,
    webhook_type: Annotated[
        list[str] | None,
        Parameter(
            name="--type",
            negative="",
            json_list=False,
            help="Only this type, such as ASSETS. May be repeated.",
        ),
    ] = None,
    code: Annotated[
        list[str] | None,
        Parameter(
            negative="", json_list=False, help="Only this code, such as PRODUCT_READY. May be repeated."
        ),
    ] = None,
    status: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            json_list=False,
            help="Only this status of the delivery: PENDING, DELIVERED or FAILED. May be repeated.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        Parameter(
            help="Only webhooks sent at this time or later, such as 2026-11-30 or 2026-11-30T09:45+01:00. "
            "Without an offset, it is in UTC. Default: 7 days ago."
        ),
    ] = None,
    client_options: ClientOptions = ClientOptions(),  # noqa: B008  # frozen
) -> ExitStatus:
    """Print the webhooks that Plaid has sent in the last 7 days."""
    client = client_options.build_client()
    sent = _sent_webhooks(client, webhook_type, code, status, since)
    writer = LineWriter(open_stdout())

    async def run() -> None:
        async with client:
            async for webhook in sent:
                await writer.write(to_json(webhook) + b"\n")

    signals.run(run())
    return ExitStatus.DONE


@webhooks.command
def send(
    url: Annotated[
        str, Parameter(help="URL of a receiver on this machine, such as http://127.0.0.1:8080/relay.")
    ],
    /,
    *,
    sample: Annotated[
        str | None,
        Parameter(
            help="TYPE/CODE of the webhook, such as ITEM/LOGIN_REPAIRED. Default: ASSETS/PRODUCT_READY."
        ),
    ] = None,
    body: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="Body to send in place of a sample: JSON, @FILE, or - for standard input.",
        ),
    ] = None,
    age: Annotated[float, Parameter(help="Sign the webhook as if it was sent this many seconds ago.")] = 0.0,
) -> ExitStatus:
    """Send a webhook to a receiver on this machine, signed with a simulator's key, and print the status.

    A receiver accepts it if its base URL is that of a simulator; Plaid doesn't have that key.
    """
    check_receiver(url)
    if not math.isfinite(age):
        raise UsageError("--age: must be a number of seconds")
    content = read_body(sample, body)
    with naming_extra():
        return signals.run(send_webhook(url, content, age))


@webhooks.command
def stored(
    *,
    existing_store: ExistingStore,
    state: Annotated[
        Literal["pending", "done", "dead"] | None,
        Parameter(help="Only webhooks in this state. A dead letter has failed too often. Default: all."),
    ] = None,
) -> ExitStatus:
    """Print the webhooks of a store, oldest first, each as a line of JSON."""
    writer = LineWriter(open_stdout())

    async def query(inbox: SQLInbox) -> None:
        from plaid_relay_async.webhooks import WebhookState

        async for webhook in inbox.webhooks(None if state is None else WebhookState(state)):
            await writer.write(_stored_line(webhook))

    existing_store.run_query(query)
    return ExitStatus.DONE


@webhooks.command
def redeliver(
    webhook_id: Annotated[str, Parameter(name="ID", help="ID of a dead letter, as printed by stored.")],
    /,
    *,
    existing_store: ExistingStore,
) -> ExitStatus:
    """Make a dead letter pending, so that it is handled again."""
    if not existing_store.run_query(lambda inbox: inbox.redeliver(webhook_id)):
        raise UsageError(_NO_DEAD_LETTER)
    return ExitStatus.DONE


@webhooks.command
def discard(
    webhook_id: Annotated[str, Parameter(name="ID", help="ID of a dead letter, as printed by stored.")],
    /,
    *,
    existing_store: ExistingStore,
    yes: SkipConfirmation = False,
) -> ExitStatus:
    """Mark a dead letter as done without handling it, and delete its payload."""
    if not confirm("Delete the payload of the dead letter?", yes=yes):
        return ExitStatus.FAILED
    if not existing_store.run_query(lambda inbox: inbox.discard(webhook_id)):
        raise UsageError(_NO_DEAD_LETTER)
    return ExitStatus.DONE


@webhooks.command(name="rotate")
def rotate_keys(*, existing_store: ExistingStore) -> ExitStatus:
    """Re-encrypt a store with the first of its keys; the others can then be removed."""
    print_message(f"re-encrypted: {existing_store.run_query(lambda inbox: inbox.rotate()):,}")
    return ExitStatus.DONE


def _sent_webhooks(
    client: RelayClient,
    webhook_types: list[str] | None,
    codes: list[str] | None,
    statuses: list[str] | None,
    since: str | None,
) -> SentWebhooks:
    """Return the list of sent webhooks, of which nothing is requested yet."""
    try:
        return client.webhook_events.list(
            webhook_types=webhook_types,
            webhook_codes=codes,
            delivery_statuses=statuses,
            start_time=None if since is None else _parse_time(since),
        )
    except RequestValidationError as error:
        field, problem = error.field, error.problem
    option = {"webhook_types": "--type", "webhook_codes": "--code"}.get(field.partition("[")[0], "--status")
    raise UsageError(f"{option}: {problem}")


def _parse_time(value: str) -> datetime:
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        problem = "--since: must be a date or a time, such as 2026-11-30 or 2026-11-30T09:45+01:00"
    else:
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    raise UsageError(problem)


def _stored_line(webhook: StoredWebhook) -> bytes:
    from plaid_relay_async.webhooks.parsing import parse_leniently

    event = None if webhook.body is None else parse_leniently(webhook.body).event
    fields = {
        "id": webhook.id,
        "state": webhook.state,
        "webhook_type": None if event is None else event.webhook_type,
        "webhook_code": None if event is None else event.webhook_code,
        "pair": webhook.pair,
        "sent_at": format_time(webhook.sent_at),
        "received_at": format_time(webhook.received_at),
        "message_id": webhook.message_id,
        "attempts": webhook.attempts,
        "error": webhook.error,
    }
    return to_line(fields, webhook.body)
