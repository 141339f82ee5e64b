"""The options of commands that use a Temporal server, and the connection that they describe."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from attrs import asdict, evolve, frozen
from cyclopts import Parameter

from plaid_relay_async import private_files
from plaid_relay_async.cli.logs import print_message
from plaid_relay_async.cli.messages import UsageError, naming_extra
from plaid_relay_async.errors import NotSentError
from plaid_relay_async.hosts import is_host, is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from temporalio.client import Client
    from temporalio.converter import DataConverter  # noqa: TC004  # requires an extra
    from temporalio.envconfig import ClientConfigProfile  # noqa: TC004  # requires an extra

    from plaid_relay_async.cli.calls import ClientOptions
    from plaid_relay_async.journal import Journal

_ADDRESS: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/]+):(\d{1,5})")
_API_KEY: Final = re.compile("[!-~]+")
_CONNECT_SECONDS: Final = 10.0
_CERTIFICATE: Final = rb"-----BEGIN CERTIFICATE-----", "a certificate"
_PEM: Final = {
    "ca": _CERTIFICATE,
    "cert": _CERTIFICATE,
    "key": (rb"-----BEGIN (EC |RSA )?PRIVATE KEY-----", "an unencrypted private key"),
}
# Temporal's core formats errors as Rust does. `_REASONS` has texts for some of them; of the others, the last
# string in quotation marks is a text for users.
_QUOTED: Final = re.compile(r'(?:\(|message: |error: )"([^"]+)"')
_REASONS: Final = {
    r"InvalidCertificate\(UnknownIssuer": "the server's certificate isn't trusted: its authority is unknown; "
    "to trust that authority, use --temporal-tls-ca",
    r"InvalidCertificate\(NotValidForName": "the server's certificate is for another name; if it is your "
    "server's, use --temporal-tls-server-name",
    r"InvalidCertificate\(Expired": "the server's certificate isn't trusted: it has expired",
    r"InvalidCertificate\(NotValidYet": "the server's certificate isn't trusted: it isn't valid yet, or this "
    "machine's clock is wrong",
    r"InvalidCertificate\((?:\w+\()*(\w+)": "the server's certificate isn't trusted: {}",
    r"(?:AlertReceived\(|received fatal alert: )(\w+)": "the server has ended TLS: {}; if it requires a "
    "client certificate, use --temporal-tls-cert",
    r"InvalidMessage\(": "the server doesn't use TLS at this port",
    r"H2NotNegotiated": "the server doesn't use HTTP/2 at this port",
    r"KeyMismatch": "--temporal-tls-key isn't the key of --temporal-tls-cert",
    r"hyper::Error\(": "the server has ended the connection; if it requires TLS, use --temporal-tls; if it "
    "requires a client certificate, use --temporal-tls-cert",
}


@Parameter(name="*")
@frozen
class TemporalOptions:
    """The options of a run on Temporal; without `task_queue`, the command itself calls Plaid.

    A setting without an option comes from the environment or from the profile in Temporal's configuration
    file, as for Temporal's own command line.

    Attributes:
        task_queue: the name of the task queue that the workers poll.
        temporal: the server, as `HOST:PORT`.
        temporal_namespace: the namespace at the server.
        temporal_api_key_file: the file with the API key.
        temporal_tls: whether the connection uses TLS even if nothing else requires it.
        temporal_tls_cert: the PEM file of the client's certificate.
        temporal_tls_key: the PEM file of its key.
        temporal_tls_ca: the PEM file of the authorities that the server's certificate is checked against.
        temporal_tls_server_name: the name in the server's certificate, if it isn't the host.
        temporal_plaintext: whether a connection without TLS may leave this machine.
    """

    task_queue: Annotated[
        str | None,
        Parameter(help="Task queue at a Temporal server, whose workers make the calls."),
    ] = None
    temporal: Annotated[
        str | None,
        Parameter(help="HOST:PORT of the Temporal server, in place of TEMPORAL_ADDRESS."),
    ] = None
    temporal_namespace: Annotated[
        str | None,
        Parameter(
            help="Namespace at the server, in place of TEMPORAL_NAMESPACE.", show_default=lambda _: "default"
        ),
    ] = None
    temporal_api_key_file: Annotated[
        Path | None, Parameter(help="File (mode 0600) with the API key, in place of TEMPORAL_API_KEY.")
    ] = None
    temporal_tls: Annotated[
        bool,
        Parameter(
            negative="", help="Use TLS; implied by an API key and by the other --temporal-tls options."
        ),
    ] = False
    temporal_tls_cert: Annotated[
        Path | None, Parameter(help="PEM file with the client certificate, for mTLS.")
    ] = None
    temporal_tls_key: Annotated[
        Path | None,
        Parameter(help="PEM file (mode 0600) with the unencrypted key of the client certificate."),
    ] = None
    temporal_tls_ca: Annotated[
        Path | None, Parameter(help="PEM file with the authorities to trust. Default: those of the system.")
    ] = None
    temporal_tls_server_name: Annotated[
        str | None, Parameter(help="Name in the server's certificate, if it isn't HOST.")
    ] = None
    temporal_plaintext: Annotated[
        bool,
        Parameter(
            negative="", help="Allow a connection without TLS to another machine, within a private network."
        ),
    ] = False

    def connection_for(
        self, journal: Journal | None, key_file: Path | None, client_options: ClientOptions
    ) -> TemporalConnection | None:
        """Return the connection of a run on Temporal, or `None` if the command itself calls Plaid.

        Args:
            journal: the journal of the run.
            key_file: the option `--key-file`.
            client_options: the options of the client.

        Raises:
            UsageError: an option is missing, invalid or without effect, or an extra isn't installed.
            ConfigurationError: the key of the journal is missing or invalid.
        """
        if self.task_queue is None:
            # An option without effect is an error: a user who passes --temporal expects that workers make
            # the calls. Temporal's environment variables alone have no effect.
            for name, value in asdict(self).items():
                if value:
                    raise UsageError(f"--{name.replace('_', '-')}: requires --task-queue")
            return None
        if client_options.timeout is not None or client_options.proxy is not None:
            raise UsageError("--timeout and --proxy: pass them to the workers, which make the calls")
        if journal is None:
            raise UsageError("--task-queue: requires --journal and --run")
        return self.connection(journal, key_file)

    def connection(self, journal: Journal, key_file: Path | None) -> TemporalConnection:
        """Return the connection, which is checked and not open yet; see `connection_for`."""
        if journal.path is not None:
            raise UsageError("--journal: a run on Temporal requires a PostgreSQL journal")
        connection = self.connection_without_payloads()
        from plaid_relay_async.temporal import data_converter

        return evolve(connection, data_converter=data_converter(key_file))

    def connection_without_payloads(self) -> TemporalConnection:
        """Return the checked connection of a command that reads and writes no payloads, and needs no key."""
        with naming_extra():
            import plaid_relay_async.temporal  # noqa: F401  # its error names the extra
        from temporalio.converter import DataConverter

        if not self.task_queue:
            raise UsageError("--task-queue: must name the task queue that the workers poll")
        profile = self._profile()
        self._check_address_and_tls(profile)
        return TemporalConnection(self.task_queue, profile, DataConverter.default)

    def _profile(self) -> ClientConfigProfile:
        """Return Temporal's own settings; options replace them, and files are read."""
        from temporalio.envconfig import ClientConfigProfile, ClientConfigTLS

        try:
            profile = ClientConfigProfile.load()
        except RuntimeError as error:
            # The further lines quote the file, which may contain an API key.
            raise UsageError(f"Temporal's settings: {str(error).splitlines()[0]}") from None
        tls = profile.tls or ClientConfigTLS()
        files = self.temporal_tls_ca, self.temporal_tls_cert, self.temporal_tls_key
        is_tls_requested = any([self.temporal_tls, self.temporal_tls_server_name, *files])
        tls = replace(
            tls,
            disabled=False if is_tls_requested else tls.disabled,
            server_name=self.temporal_tls_server_name or tls.server_name,
            server_root_ca_cert=_read_pem("ca", self.temporal_tls_ca or tls.server_root_ca_cert),
            client_cert=_read_pem("cert", self.temporal_tls_cert or tls.client_cert),
            client_private_key=_read_pem("key", self.temporal_tls_key or tls.client_private_key),
        )
        if tls.server_name is not None and not is_host(tls.server_name):
            raise UsageError("--temporal-tls-server-name: must be a host name")
        if (tls.client_cert is None) != (tls.client_private_key is None):
            raise UsageError("--temporal-tls-cert and --temporal-tls-key must be used together")
        return replace(
            profile,
            address=self.temporal or profile.address,
            namespace=self.temporal_namespace or profile.namespace,
            api_key=_read_api_key(self.temporal_api_key_file or profile.api_key or None),
            tls=None if tls == ClientConfigTLS() else tls,
        )

    def _check_address_and_tls(self, profile: ClientConfigProfile) -> None:
        """Raise `UsageError` if the address is invalid, or if the connection requires TLS and has none."""
        match = _ADDRESS.fullmatch(profile.address or "")
        if match is None or not is_host(match[1].strip("[]")):
            raise UsageError("--temporal: must be HOST:PORT of a Temporal server, such as 127.0.0.1:7233")
        # As in `to_client_connect_config`.
        encrypted = profile.api_key is not None if profile.tls is None else not profile.tls.disabled
        if encrypted and self.temporal_plaintext:
            raise UsageError("--temporal-plaintext: can't be used with an API key or another setting of TLS")
        if profile.api_key is not None and not encrypted:
            raise UsageError("--temporal-api-key-file: an API key requires TLS, which TEMPORAL_TLS disables")
        if not encrypted and "authorization" in map(str.lower, profile.grpc_meta):
            raise UsageError(
                "TEMPORAL_GRPC_META_AUTHORIZATION: a credential requires TLS; use --temporal-tls"
            )
        if not encrypted and not self.temporal_plaintext and not is_loopback(match[1].strip("[]")):
            raise UsageError(
                "--temporal: a connection to another machine requires TLS; use --temporal-tls, or "
                "--temporal-plaintext within a private network"
            )


@Parameter(name="*")
@frozen
class SubmissionOptions(TemporalOptions):
    """The options of `bulk` for a run on Temporal.

    Attributes:
        detach: whether to leave the run to the workers.
        rate: the new rate limit of the task queue, in calls a second.
    """

    detach: Annotated[
        bool,
        Parameter(
            negative="",
            help="Add all calls to the task queue, and exit without outcomes. To follow the run, repeat the "
            "command without this option, --retry-failed and --retry-unknown, on any machine.",
        ),
    ] = False

    rate: Annotated[
        float | None,
        Parameter(
            help="Rate limit of the task queue in calls a second, over all workers; see rate. Default: "
            "unchanged."
        ),
    ] = None

    def new_rate(self) -> float | None:
        """Return the option `--rate`.

        Raises:
            UsageError: it isn't a rate.
        """
        return None if self.rate is None else parse_rate("--rate", self.rate)

    def check_detach(self, output: str, *, stream: bool) -> None:
        """Raise `UsageError` if `--detach` is used with an option that it would leave without effect."""
        if self.detach and (output != "-" or stream):
            raise UsageError("--detach: can't be used with --output or --stream")


def parse_rate(name: str, value: str | float) -> float:
    """Return a rate in calls a second.

    Raises:
        UsageError: it isn't a number above 0.
    """
    with contextlib.suppress(ValueError):
        if 0 < (rate := float(value)) < math.inf:
            return rate
    raise UsageError(f"{name}: must be a number of calls a second above 0")


def _read_api_key(source: Path | str | None) -> str | None:
    """Return the API key in a file or in a setting.

    Raises:
        UsageError: it can't be read, is empty, or has a character that isn't visible ASCII, such as a space.
            Temporal's core would ignore such a key.
    """
    option = "--temporal-api-key-file"
    if isinstance(source, Path):
        source = _read(option, source, private_files.read).decode("latin-1")
    if source is not None and not _API_KEY.fullmatch(source := source.strip()):
        raise UsageError(f"{option}: must contain an API key")
    return source


def _read_pem(kind: str, source: Path | str | bytes | None) -> bytes | None:
    """Return the content of a PEM file, or of a setting that contains it.

    Raises:
        UsageError: it can't be read, lacks a certificate or key, or is a key that other users may read.
    """
    option = f"--temporal-tls-{kind}"
    if isinstance(source, Path):
        source = _read(option, source, private_files.read if kind == "key" else Path.read_bytes)
    content = source.encode() if isinstance(source, str) else source
    label, expected = _PEM[kind]
    if content is not None and not re.search(label, content):
        raise UsageError(f"{option}: must be a PEM file with {expected}")
    return content


def _read(option: str, path: Path, read: Callable[[Path], bytes]) -> bytes:
    try:
        return read(path)
    except OSError as error:
        raise UsageError(f"{option}: {path}: {error.strerror}") from None


@frozen(eq=False, repr=False)
class TemporalConnection:
    """A checked connection to a Temporal server.

    Attributes:
        task_queue: the name of the task queue.
        profile: the settings, with secrets.
        data_converter: encrypts payloads.
    """

    task_queue: str
    profile: ClientConfigProfile
    data_converter: DataConverter

    @property
    def address(self) -> str:
        """The server, as `HOST:PORT`."""
        return str(self.profile.address)

    @contextlib.contextmanager
    def naming_server(self) -> Iterator[None]:
        """Raise `NotSentError` for an error of a request to the server."""
        from temporalio.service import RPCError

        try:
            yield
        except RPCError as error:
            problem = f"has rejected a request: {error.message}"
        except TimeoutError:
            problem = "hasn't kept a setting; another program may change it at the same time"
        else:
            return
        raise NotSentError(f"Temporal at {self.address} {problem}")

    async def open(self) -> Client:
        """Connect, and return the client.

        Raises:
            NotSentError: the server can't be reached, refuses this client, or doesn't have the namespace.
        """
        from temporalio.client import Client
        from temporalio.service import RPCError

        settings = self.profile.to_client_connect_config()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                client = await Client.connect(**settings, data_converter=self.data_converter)
                await check_namespace(client)
                return client
        except TimeoutError:
            problem = f"no response within {_CONNECT_SECONDS:.0f} seconds"
        except RPCError as error:
            problem = error.message
        except (RuntimeError, ValueError) as error:
            problem = reason_of(error)
        raise NotSentError(f"can't use Temporal at {self.address}: {problem}")

    async def has_search_attribute(self, client: Client) -> bool:
        """Return whether the server has the search attribute for run names; if not, print how to add it."""
        from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
        from temporalio.service import RPCError

        from plaid_relay_async.temporal import RUN_ATTRIBUTE

        try:
            response = await client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace=client.namespace)
            )
        except RPCError:  # the client may not be allowed to list them
            return False
        if RUN_ATTRIBUTE.name in response.custom_attributes:
            return True
        print_message(
            f"Temporal's own tools can't list the calls of a run, because the server has no search attribute "
            f"{RUN_ATTRIBUTE.name}: temporal operator search-attribute create --name {RUN_ATTRIBUTE.name} "
            "--type Keyword"
        )
        return False


def reason_of(error: Exception) -> str:
    """Return the part of an error of Temporal's core that a user can understand."""
    text = str(error)
    for pattern, reason in _REASONS.items():
        if match := re.search(pattern, text):
            return reason.format(*match.groups())
    # For example: ConnectError("tcp connect error", 127.0.0.1:1, Os { ..., message: "Connection refused" })
    reasons: list[str] = _QUOTED.findall(text)
    return reasons[-1] if reasons else text


async def check_namespace(client: Client) -> None:
    """Raise `RPCError` if the server doesn't have the namespace, which `Client.connect` doesn't check."""
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
    from temporalio.service import RPCError, RPCStatusCode

    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    except RPCError as error:
        # A client may be allowed to use a namespace and not to describe it.
        if error.status != RPCStatusCode.PERMISSION_DENIED:
            raise
