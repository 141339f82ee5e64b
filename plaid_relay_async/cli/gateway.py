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

from plaid_relay_async.cli.arguments import ProxyOption, read_value
from plaid_relay_async.cli.logs import configure_logs, print_message
from plaid_relay_async.cli.messages import ExitStatus, UsageError, max_connections, sanitize
from plaid_relay_async.cli.options import LogFormat, Port, check_port
from plaid_relay_async.cli.output import open_stdout, write_all
from plaid_relay_async.cli.serving import (
    AuditFile,
    Certificate,
    audit_log,
    credentials_from_environment,
    serve_gateway,
)
from plaid_relay_async.cli.signals import signals
from plaid_relay_async.config import Environment, check_base_url
from plaid_relay_async.display import escape_unprintable
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.gateway import ALL_OPERATIONS, RELAY_OPERATIONS, Gateway, Key, KeyFile
from plaid_relay_async.hosts import is_loopback, normalize_host
from plaid_relay_async.limits import RateLimit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GATEWAY_HELP = (
    "Run a reverse proxy that adds Plaid credentials. Each caller has its own key.\n\n"
    "Plaid credentials are read from the environment: PLAID_CLIENT_ID and PLAID_SECRET are the set "
    "`default`; PLAID_CLIENT_ID_ACME_BANK and PLAID_SECRET_ACME_BANK are the set `acme-bank`.\n\n"
    "The first SIGINT or SIGTERM waits for the calls in flight; a second one cuts them off. SIGHUP reloads "
    "the certificate and the keys, and reopens the audit file."
)

gateway = App(
    name="gateway",
    help=_GATEWAY_HELP,
    # By default, it would say that a command is required.
    usage="Usage: plaid-relay gateway [OPTIONS] | plaid-relay gateway keys COMMAND",
)
keys = App(name="keys", help="Manage caller keys; changes apply within a second.")
gateway.command(keys)

KeysFileOption: TypeAlias = Annotated[
    Path | None,
    Parameter(
        name="--keys", help="File with the keys. Default: gateway-keys.json in your configuration directory."
    ),
]
OperationsOption: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--operation",
        negative="",
        json_list=False,
        help="Path to allow, such as /credit/relay/create, or all. Default: the relay operations. "
        "May be repeated.",
    ),
]


@gateway.default
def run_gateway(
    *,
    port: Port = 0,
    upstream: Annotated[
        str | None, Parameter(help="Base URL of Plaid, in place of that of --environment.")
    ] = None,
    environment: Annotated[
        Literal["sandbox", "production"], Parameter(help="Plaid environment; PLAID_ENV is ignored.")
    ] = "sandbox",
    listen: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    proxy: ProxyOption = None,
    name: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            json_list=False,
            help="Host name of the gateway for its callers, in addition to its address. May be repeated.",
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, Parameter(help="PEM file with the certificate and its chain.")
    ] = None,
    tls_key: Annotated[
        Path | None, Parameter(help="PEM file with the private key of the certificate.")
    ] = None,
    plain_http: Annotated[
        bool,
        Parameter(
            negative="",
            help="Allow plain http on an address other than loopback, behind a TLS-terminating proxy.",
        ),
    ] = False,
    operation: OperationsOption = None,
    keys: KeysFileOption = None,
    audit: Annotated[
        Path | None, Parameter(help="File to append one line per call to. Default: standard error.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        Parameter(
            validator=check_port, help="Port on 127.0.0.1 for Prometheus metrics; 0 picks a free port."
        ),
    ] = None,
    log_format: LogFormat = "text",
    no_console: Annotated[bool, Parameter(negative="", help="Don't serve the web console.")] = False,
    connections: Annotated[
        int, Parameter(help="Maximum number of concurrent connections from callers.")
    ] = 500,
    drain: Annotated[
        float, Parameter(help="Seconds to wait for the calls in flight when the gateway stops.")
    ] = 30.0,
) -> ExitStatus:
    """Forward calls to Plaid and add its credentials, until SIGINT or SIGTERM; SIGHUP reloads."""
    signals.reload_on_sighup()
    configure_logs(log_format)
    if not 0 <= drain < math.inf:
        raise UsageError("--drain: must be a number of seconds, 0 or more")
    certificate = _load_certificate(tls_certificate, tls_key)
    # Plain http is allowed on loopback only, because callers send their keys in each request.
    if certificate is None and not plain_http and not is_loopback(listen):
        raise UsageError(
            f"--listen: keys and reports would be sent over plain http on {listen}; use --tls-certificate "
            "and --tls-key, or --plain-http behind a TLS-terminating proxy"
        )
    key_file = KeyFile(keys or _default_keys_file())
    with _as_usage_error():
        running = Gateway(
            key_file,
            upstream=_upstream_url(upstream, Environment(environment)),
            credentials=credentials_from_environment(_credential_sets(key_file.read())),
            operations=_parse_operations(operation),
            host=listen,
            port=port,
            allowed_hosts=[_parse_host(each) for each in name or ()],
            ssl=None if certificate is None else certificate.context,
            plain_http=plain_http,
            console=not no_console,
            metrics_port=metrics_port,
            connections=_check_connections(connections),
            upstream_proxy=None if proxy is None else read_value(proxy, "--proxy"),
            trust_env=True,
            drain=drain,
        )

    def greeting() -> str:
        metrics = running.metrics_url
        return f"listening on {running.url}\n" + ("" if metrics is None else f"metrics on {metrics}\n")

    file = None if audit is None else AuditFile(audit)
    with audit_log(file):
        reloadables = [each for each in (certificate, file) if each is not None]
        return signals.run(serve_gateway(running, signals, greeting, reloadables))


@keys.command(name="add")
def add_key(
    name: Annotated[str, Parameter(help="Name of the caller, used in the audit log.")],
    /,
    *,
    credentials: Annotated[str, Parameter(help="Set of Plaid credentials that the key uses.")] = "default",
    operation: OperationsOption = None,
    partner: Annotated[
        list[str] | None,
        Parameter(
            negative="",
            json_list=False,
            help="secondary_client_id that the key may share reports with. Default: all. May be repeated.",
        ),
    ] = None,
    rate: Annotated[
        str | None, Parameter(help="Rate limit of the key as COUNT/SECONDS, such as 100/60.")
    ] = None,
    keys: KeysFileOption = None,
) -> ExitStatus:
    """Create a key; it is shown only once."""
    # A key that was pasted as the name would be stored and logged in plain text.
    if sanitize(name) != name:
        raise UsageError(
            "NAME: must be the name of the caller, which the audit log shows, not a token or a key"
        )
    output, file = open_stdout(), KeyFile(keys or _default_keys_file())
    try:
        with _as_usage_error():
            file.add(
                name,
                credentials=credentials,
                operations=_parse_operations(operation),
                partners=partner,
                rate=None if rate is None else _parse_rate_limit(rate),
                show_key=lambda key: write_all(output, f"{key}\n".encode()),
            )
    except OSError as error:
        print_message(f"plaid-relay: the key can't be written ({error.strerror}), so it was not created")
        return ExitStatus.FAILED
    print_message("The key is shown only once: store it now.")
    return ExitStatus.DONE


@keys.command(name="list")
def list_keys(*, keys: KeysFileOption = None) -> ExitStatus:
    """List the keys, without their values, and what each one allows."""
    rows = Table(box=None, pad_edge=False)
    for title in ("name", "credentials", "operations", "partners", "rate", "created"):
        rows.add_column(title, overflow="fold")
    with _as_usage_error():
        for key in KeyFile(keys or _default_keys_file()).read():
            # `sanitize` would truncate a long list of partners.
            rows.add_row(*map(escape_unprintable, _key_row(key)))
    Console(file=sys.stdout, highlight=False, markup=False, emoji=False).print(rows)
    return ExitStatus.DONE


@keys.command(name="revoke")
def revoke_key(
    name: Annotated[str, Parameter(help="Name of the caller.")], /, *, keys: KeysFileOption = None
) -> ExitStatus:
    """Revoke a key."""
    with _as_usage_error():
        KeyFile(keys or _default_keys_file()).revoke(name)
    return ExitStatus.DONE


# --------------------------------------------------------------------------------------- parsing of options


@contextlib.contextmanager
def _as_usage_error() -> Iterator[None]:
    """Raise a `ConfigurationError` as a `UsageError`, without its advice for callers of the API."""
    try:
        yield
    except ConfigurationError as error:
        problem = error.args[0]
    else:
        return
    raise UsageError(problem)


def _default_keys_file() -> Path:
    return user_config_path("plaid_relay_async", appauthor=False) / "gateway-keys.json"


def _credential_sets(callers: Sequence[Key]) -> set[str]:
    if not callers:
        print_message(
            "plaid-relay: no caller has a key yet; to create one: plaid-relay gateway keys add NAME"
        )
    return {caller.credentials for caller in callers} or {"default"}


def _upstream_url(url: str | None, environment: Environment) -> str:
    if url is None:
        return environment.base_url
    address = check_base_url(url, name="--upstream")
    # Production must be selected explicitly: the default environment is the sandbox.
    actual = Environment.from_url(address)
    if actual not in {None, environment}:
        raise UsageError(f"--upstream: is Plaid's {actual} environment; confirm with --environment {actual}")
    return address


def _load_certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise UsageError("--tls-certificate and --tls-key must be used together")
    return Certificate(chain, key)


def _parse_host(name: str) -> str:
    try:
        return normalize_host(name)
    except ValueError:
        problem = "--name: must be a host name, without scheme and port"
    raise UsageError(problem)


def _parse_operations(paths: Sequence[str] | None) -> Sequence[str]:
    if paths is None:
        return RELAY_OPERATIONS
    if "all" in paths:
        return ALL_OPERATIONS
    if not set(paths) <= set(ALL_OPERATIONS):
        raise UsageError(f"--operation: must be all, or a path of Plaid's API such as {RELAY_OPERATIONS[0]}")
    return paths


def _check_connections(count: int) -> int:
    if count < 1:
        raise UsageError("--connections: must be an integer of at least 1")
    # Connections to Plaid need file descriptors too, and so do new connections until old ones are closed.
    if (limit := max_connections()) is not None and count > (limit := limit - 250):
        raise UsageError(f"--connections: this shell allows at most {max(0, limit)}; raise ulimit -n")
    return count


def _parse_rate_limit(value: str) -> RateLimit:
    count, _, seconds = value.partition("/")
    try:
        return RateLimit(int(count), float(seconds))
    except (ConfigurationError, ValueError):
        problem = (
            "--rate: must be COUNT/SECONDS, such as 100/60: a whole number of at least 1, and a number of "
            "seconds above 0"
        )
    raise UsageError(problem)


def _key_row(key: Key) -> tuple[str, ...]:
    operations = {frozenset(RELAY_OPERATIONS): "relay", frozenset(ALL_OPERATIONS): "all"}.get(key.operations)
    return (
        key.name,
        key.credentials,
        operations or " ".join(path for path in ALL_OPERATIONS if path in key.operations),
        "all" if key.partners is None else " ".join(sorted(key.partners)),
        "" if key.rate is None else f"{key.rate.count}/{key.rate.per:g}",
        f"{key.created:%Y-%m-%d}",
    )
