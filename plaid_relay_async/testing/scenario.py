"""One test that uses a simulator: its options, its environment, and the checks at its end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from attrs import define, fields_dict

from plaid_relay_async import Credentials, RelayClient, RetryPolicy, watching
from plaid_relay_async.simulator import Fault, WebhookFault
from plaid_relay_async.testing.client_watcher import ClientWatcher
from plaid_relay_async.testing.interception import is_session_patched
from plaid_relay_async.testing.simulator_thread import SimulatorThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from plaid_relay_async.simulator import Simulator

CLIENT_ID = "testing-client-id"
SECRET = "testing-secret-7e577e577e57"  # noqa: S105  # it protects nothing
# PLAID_SECRET is one of them, and so are the variables of a gateway's further credentials, PLAID_SECRET_NAME.
_CREDENTIALS = ("PLAID_CLIENT_ID", "PLAID_SECRET")
# A test shouldn't wait half a second for each retry.
_RETRY = RetryPolicy(backoff=0.001, max_backoff=0.01)
_MAX_LISTED = 10


@define(kw_only=True, eq=False, repr=False)
class Options:
    """The arguments of the marker `plaid`.

    Attributes:
        reports: tokens of reports that are ready from the start.
        faults: the fault script.
        latency: seconds before each request is handled, or a function that returns them.
        allow_unclaimed: whether the test may end with tokens that its program hasn't received.
    """

    reports: Sequence[str] = ()
    faults: Sequence[Fault | WebhookFault] = ()
    latency: Callable[[], float] | float = 0.0
    allow_unclaimed: bool = False

    @classmethod
    def from_markers(cls, markers: Iterable[pytest.Mark]) -> Options:
        """Return the options of a test; for each option, the marker that is closest to the test decides.

        Args:
            markers: the markers, the closest one first.

        Raises:
            ValueError: a marker has an invalid argument.
        """
        options: dict[str, Any] = {}
        for marker in markers:
            if marker.args:
                raise _marker_error("it takes no positional arguments")
            if unknown := sorted(marker.kwargs.keys() - fields_dict(cls).keys()):
                raise _marker_error(f"there is no argument {unknown[0]}")
            options = {**marker.kwargs, **options}
        _check_list(options, "reports", str, "tokens")
        _check_list(options, "faults", (Fault, WebhookFault), "Fault(...) and WebhookFault(...)")
        latency = options.get("latency", 0.0)
        if not callable(latency) and not (isinstance(latency, int | float) and latency >= 0):
            raise _marker_error("latency must be seconds, or a function that returns them")
        return cls(**options)


def _check_list(options: Mapping[str, Any], name: str, kind: Any, description: str) -> None:
    value = options.get(name, ())
    if not isinstance(value, list | tuple) or not all(isinstance(element, kind) for element in value):
        raise _marker_error(f"{name} must be a list of {description}")


def _marker_error(problem: str) -> ValueError:
    allowed = ", ".join(f"{name}=" for name in fields_dict(Options))
    return ValueError(f"@pytest.mark.plaid: {problem}; its arguments are {allowed}")


class Scenario:
    """One test that uses a simulator.

    Args:
        options: the options of the test.
        server: the simulator of the session, if the test uses it; otherwise the test has its own simulator.

    Attributes:
        simulator: the simulator of the test.
        bypassed_patch: whether a request arrived while aiohttp's `ClientSession` was patched.
    """

    def __init__(self, options: Options, server: SimulatorThread | None) -> None:
        self.bypassed_patch = False
        self._options = options
        self._watcher = ClientWatcher()
        self._end = contextlib.ExitStack()
        state: dict[str, Any] = {
            "reports": options.reports,
            "faults": options.faults,
            "latency": self._latency_of_request,
        }
        if server is None:
            self.simulator = self._end.enter_context(SimulatorThread(**state))
        else:
            self.simulator = server
            server.run(server.reset(**state))
        patch = self._end.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(watching, "watcher", self._watcher)
        for name in [*os.environ]:
            if name.startswith(_CREDENTIALS) or name == "PLAID_ENV":
                patch.delenv(name)
        patch.setenv("PLAID_CLIENT_ID", CLIENT_ID)
        patch.setenv("PLAID_SECRET", SECRET)
        patch.setenv("PLAID_BASE_URL", self.simulator.url)

    def end(self) -> None:
        """Restore the environment, and stop the simulator unless it is the session's."""
        self._end.close()

    def _latency_of_request(self) -> float:
        """Return the latency of a request, and note whether it has bypassed a patch of `ClientSession`."""
        self.bypassed_patch |= is_session_patched()
        latency = self._options.latency
        return latency() if callable(latency) else latency

    def problems(self) -> Iterable[str]:
        """Yield the problems at the end of a test that passed."""
        for fault in self.simulator.unused_faults:
            yield f"a scripted fault never applied: {fault!r}"
        if self._options.allow_unclaimed:
            return
        received = self._watcher.received_tokens
        entries = [entry for entry in self.simulator.ledger if not entry["removed"]]
        if lost := [entry for entry in entries if entry["relay_token"] not in received]:
            yield _describe_lost_tokens(lost)


def _describe_lost_tokens(entries: Sequence[Mapping[str, object]]) -> str:
    """Return a message about the tokens that doesn't contain them."""
    listed = entries[:_MAX_LISTED]
    calls = ", ".join(f"{entry['secondary_client_id']} ({entry['request_id']})" for entry in listed)
    more = f" and {len(entries) - _MAX_LISTED} others" if len(entries) > _MAX_LISTED else ""
    return (
        f"relay tokens were lost: no client of this process has returned the tokens for {calls}{more}; see "
        "'Lost tokens' in docs/testing.md. If the test loses them on purpose, or if its clients are in "
        "another process, mark it with @pytest.mark.plaid(allow_unclaimed=True)"
    )


@contextlib.asynccontextmanager
async def open_client(simulator: Simulator) -> AsyncIterator[RelayClient]:
    """Open a client of a simulator, with short pauses between attempts."""
    async with RelayClient(Credentials(CLIENT_ID, SECRET), base_url=simulator.url, retry=_RETRY) as client:
        yield client
