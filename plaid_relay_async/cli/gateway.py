"""The commands of `plaid-relay gateway`, their options and their help."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from cyclopts import App, Parameter
from platformdirs import user_config_path
from rich.console import Console
from rich.table import Table

from plaid_relay_async.cli.output import put, standard_output
from plaid_relay_async.cli.serving import (
    AuditFile,
    Certificate,
    audit_log,
    credentials_in_the_environment,
    serve,
)
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.cli.status import Exit, UsageError, most_connections, say, shown
from plaid_relay_async.cli.words import Proxy, read_word
from plaid_relay_async.config import Environment, check_base_url, is_loopback, normal_host
from plaid_relay_async.errors import ConfigurationError, displayed
from plaid_relay_async.gateway import KNOWN, RELAY, Gateway, Key, KeyFile
from plaid_relay_async.limits import RateLimit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HELP = (
    "Run a reverse proxy that adds Plaid credentials: each caller has a key of its own.\n\n"
    "Plaid's credentials come from the environment: PLAID_CLIENT_ID and PLAID_SECRET are the set `default`; "
    "the set `acme-bank` is PLAID_CLIENT_ID_ACME_BANK and PLAID_SECRET_ACME_BANK.\n\n"
    "The first SIGINT or SIGTERM lets the calls in flight end, a second one cuts them off. SIGHUP reloads "
    "the certificate and the keys, and reopens the audit file."
)

gateway = App(name="gateway", help=_HELP)
keys = App(name="keys", help="Manage caller keys; changes apply within a second.")
gateway.command(keys)

KeysFile: TypeAlias = Annotated[
    Path | None,
    Parameter(
        name="--keys", help="The file of keys; gateway-keys.json in your configuration folder by default."
    ),
]
Operations: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--operation",
        negative="",
        json_list=False,
        help="A path such as /credit/relay/create, or all; the relay's five by default. May be repeated.",
    ),
]


@gateway.default
def run(
    *,
    port: Annotated[int, Parameter(help="Port to listen on; 0 picks a free port.")] = 0,
    upstream: Annotated[
        str | None, Parameter(help="Address of Plaid, in place of the environment's.")
    ] = None,
    environment: Annotated[
        Literal["sandbox", "production"], Parameter(help="Plaid's environment; PLAID_ENV isn't used.")
    ] = "sandbox",
    listen: Annotated[str, Parameter(help="The address to listen on.")] = "127.0.0.1",
    proxy: Proxy = None,
    name: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            json_list=False,
            help="Host name by which callers reach the gateway. May be repeated.",
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, Parameter(help="PEM file of the certificate, with its chain.")
    ] = None,
    tls_key: Annotated[Path | None, Parameter(help="PEM file of the certificate's key.")] = None,
    plain_http: Annotated[
        bool,
        Parameter(negative="", help="Allow plain http on other addresses: behind a TLS-terminating proxy."),
    ] = False,
    operation: Operations = None,
    keys: KeysFile = None,
    audit: Annotated[
        Path | None, Parameter(help="A file to append a line to for each call; standard error by default.")
    ] = None,
    metrics_port: Annotated[
        int | None, Parameter(help="Port on 127.0.0.1 for Prometheus; 0 picks a free port.")
    ] = None,
    no_console: Annotated[
        bool, Parameter(negative="", help="Leave out the page on which operations can be tried.")
    ] = False,
    connections: Annotated[int, Parameter(help="Maximum number of concurrent connections of callers.")] = 500,
    drain: Annotated[
        float, Parameter(help="Seconds to wait for calls in flight when the gateway stops.")
    ] = 30.0,
) -> Exit:
    """Forward calls to Plaid, and add its credentials, until SIGINT or SIGTERM; SIGHUP reloads."""
    signals.reload_on_hang_up()
    if not 0 <= drain < math.inf:
        raise UsageError("--drain: must be a number of seconds from 0")
    certificate = _certificate(tls_certificate, tls_key)
    if certificate is None and not plain_http and not is_loopback(listen):
        raise UsageError(
            f"--listen: keys and reports would go over plain http on {listen}; use --tls-certificate and "
            "--tls-key, or --plain-http behind a TLS-terminating proxy"
        )
    key_file = KeyFile(keys or _usual_file())
    with _plainly():
        running = Gateway(
            key_file,
            upstream=_upstream(upstream, Environment(environment)),
            credentials=credentials_in_the_environment(_sets_of(key_file.read())),
            operations=_operations(operation),
            host=listen,
            port=port,
            names=[_host(each) for each in name or ()],
            ssl=None if certificate is None else certificate.context,
            plain_http=plain_http,
            console=not no_console,
            metrics_port=metrics_port,
            connections=_connections(connections),
            upstream_proxy=None if proxy is None else read_word(proxy, "--proxy"),
            trust_env=True,
            drain=drain,
        )

    def greeting() -> str:
        metrics = running.metrics_url
        return f"listening on {running.url}\n" + ("" if metrics is None else f"metrics on {metrics}\n")

    file = None if audit is None else AuditFile(audit)
    with audit_log(file):
        reloaded = [each for each in (certificate, file) if each is not None]
        return signals.run(serve(running, signals, greeting, reloaded))


@keys.command
def add(
    name: Annotated[str, Parameter(help="Of the caller, for the audit log.")],
    /,
    *,
    credentials: Annotated[str, Parameter(help="The set of Plaid's credentials that it stands for.")] = (
        "default"
    ),
    operation: Operations = None,
    partner: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            json_list=False,
            help="A secondary_client_id that its creations may name; all by default. May be repeated.",
        ),
    ] = None,
    rate: Annotated[str | None, Parameter(help="COUNT/SECONDS; so many calls, at most.")] = None,
    keys: KeysFile = None,
) -> Exit:
    """Create a key; it is shown only once."""
    if shown(name) != name:
        raise UsageError(
            "NAME: is a name for the caller, which the audit log shows; it must not be a token or a key"
        )
    output, file = standard_output(), KeyFile(keys or _usual_file())
    try:
        with _plainly():
            file.add(
                name,
                credentials=credentials,
                operations=_operations(operation),
                partners=partner,
                rate=None if rate is None else _rate(rate),
                hand_over=lambda key: put(output, f"{key}\n".encode()),
            )
    except OSError as error:
        say(f"plaid-relay: the key can't be written ({error.strerror}), so there is none")
        return Exit.FAILED
    say("This is the only time that the key is shown.")
    return Exit.DONE


@keys.command(name="list")
def show(*, keys: KeysFile = None) -> Exit:
    """List who has a key, and what for."""
    rows = Table(box=None, pad_edge=False)
    for title in ("name", "credentials", "operations", "partners", "rate", "created"):
        rows.add_column(title, overflow="fold")
    with _plainly():
        for key in KeyFile(keys or _usual_file()).read():
            rows.add_row(*map(displayed, _row(key)))  # a list of partners is printed in full
    Console(file=sys.stdout, highlight=False, markup=False, emoji=False).print(rows)
    return Exit.DONE


@keys.command
def revoke(name: Annotated[str, Parameter(help="As it was added.")], /, *, keys: KeysFile = None) -> Exit:
    """Take a key away."""
    with _plainly():
        KeyFile(keys or _usual_file()).revoke(name)
    return Exit.DONE


# --------------------------------------------------------------------------------------- from words to values


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Say what is wrong as of a command line, and not as of a call to Plaid."""
    try:
        yield
    except ConfigurationError as error:
        problem = error.args[0]
    else:
        return
    raise UsageError(problem)


def _usual_file() -> Path:
    return user_config_path("plaid_relay_async", appauthor=False) / "gateway-keys.json"


def _sets_of(callers: Sequence[Key]) -> set[str]:
    if not callers:
        say("plaid-relay: nobody has a key yet: plaid-relay gateway keys add NAME")
    return {caller.credentials for caller in callers} or {"default"}


def _upstream(url: str | None, environment: Environment) -> str:
    if url is None:
        return environment.base_url
    address = check_base_url(url, name="--upstream")
    named = Environment.at(address)
    if named not in {None, environment}:
        raise UsageError(f"--upstream: is Plaid's {named}: say --environment {named} if that is meant")
    return address


def _certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise UsageError("--tls-certificate and --tls-key go together")
    return Certificate(chain, key)


def _host(name: str) -> str:
    try:
        return normal_host(name)
    except ValueError:
        problem = "--name: must be a host's name, without scheme and port"
    raise UsageError(problem)


def _operations(paths: Sequence[str] | None) -> Sequence[str]:
    if paths is None:
        return RELAY
    if "all" in paths:
        return KNOWN
    if not set(paths) <= set(KNOWN):
        raise UsageError(f"--operation: must be all, or a path of Plaid's such as {RELAY[0]}")
    return paths


def _connections(count: int) -> int:
    if count < 1:
        raise UsageError("--connections: must be a whole number from 1")
    # Connections to Plaid need descriptors as well, and so do new connections until old ones are closed.
    if (most := most_connections()) is not None and count > (most := most - 250):
        raise UsageError(f"--connections: this shell allows {max(0, most)} at most; raise ulimit -n")
    return count


def _rate(word: str) -> RateLimit:
    count, _, seconds = word.partition("/")
    try:
        return RateLimit(int(count), float(seconds))
    except (ConfigurationError, ValueError):
        problem = "--rate: must be of the form COUNT/SECONDS, such as 100/60"
    raise UsageError(problem)


def _row(key: Key) -> tuple[str, ...]:
    operations = {frozenset(RELAY): "relay", frozenset(KNOWN): "all"}.get(key.operations)
    return (
        key.name,
        key.credentials,
        operations or " ".join(path for path in KNOWN if path in key.operations),
        "all" if key.partners is None else " ".join(sorted(key.partners)),
        "" if key.rate is None else f"{key.rate.count}/{key.rate.per:g}",
        f"{key.created:%Y-%m-%d}",
    )
