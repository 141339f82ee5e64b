"""One test that uses the simulator: what its markers say, its environment, and the checks at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, fields_dict

from plaid_relay_async import Credentials, RelayClient, RetryPolicy
from plaid_relay_async.simulator import Fault, Simulator, WebhookFault
from plaid_relay_async.testing.claims import Claims
from plaid_relay_async.testing.interception import is_session_patched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

CLIENT_ID = "testing-client-id"
SECRET = "testing-secret-7e577e577e57"  # noqa: S105  # it protects nothing
# A client that is created before the simulator has started can't connect: this is the port of the discard
# protocol.
_UNREACHABLE_URL = "http://127.0.0.1:9"
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
        allow_unclaimed: whether the test may end with tokens that no client has returned.
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
            ValueError: a marker has an unknown or a positional argument.
        """
        options: dict[str, Any] = {}
        for marker in markers:
            unknown = sorted(marker.kwargs.keys() - fields_dict(cls).keys())
            if marker.args or unknown:
                problem = f"unknown argument {unknown[0]}" if unknown else "positional arguments"
                allowed = ", ".join(fields_dict(cls))
                raise ValueError(f"@pytest.mark.plaid: {problem}; use keyword arguments, any of: {allowed}")
            options = {**marker.kwargs, **options}
        return cls(**options)


@define(eq=False, repr=False)
class Scenario:
    """One test that uses the simulator.

    Attributes:
        options: the options of the test.
        claims: the tokens that clients have returned.
        simulators: the simulators that the test uses.
        passed: whether the test function has run and raised nothing.
        bypassed_patch: whether a request arrived while aiohttp's `ClientSession` was patched.
    """

    options: Options
    claims: Claims = field(factory=Claims)
    simulators: list[Simulator] = field(factory=list)
    passed: bool = False
    bypassed_patch: bool = False

    @property
    def environment(self) -> Mapping[str, str | None]:
        """The environment variables of the test; None for those that it must not have."""
        return {
            "PLAID_CLIENT_ID": CLIENT_ID,
            "PLAID_SECRET": SECRET,
            "PLAID_ENV": None,
            "PLAID_BASE_URL": self.simulators[-1].url if self.simulators else _UNREACHABLE_URL,
        }

    @property
    def state(self) -> dict[str, Any]:
        """The arguments of `Simulator`, and of its `reset`."""
        return {
            "reports": self.options.reports,
            "faults": self.options.faults,
            "latency": self._latency_of_request,
        }

    def _latency_of_request(self) -> float:
        """Return the latency of a request, and note whether it has bypassed a patch of `ClientSession`."""
        self.bypassed_patch |= is_session_patched()
        latency = self.options.latency
        return latency() if callable(latency) else latency

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the end of a test that passed."""
        for simulator in self.simulators:
            for fault in simulator.unused_faults:
                yield f"a scripted fault was never met: {fault!r}"
            unclaimed = [entry for entry in simulator.ledger if self._is_unclaimed(entry)]
            if unclaimed and not self.options.allow_unclaimed:
                yield _describe_unclaimed(unclaimed)

    def _is_unclaimed(self, entry: Mapping[str, object]) -> bool:
        return not entry["removed"] and entry["relay_token"] not in self.claims


def _describe_unclaimed(entries: Sequence[Mapping[str, object]]) -> str:
    """Return a text without tokens."""
    partners = [f"{entry['secondary_client_id']} ({entry['request_id']})" for entry in entries[:_MAX_LISTED]]
    more = f" and {len(entries) - _MAX_LISTED} others" if len(entries) > _MAX_LISTED else ""
    return (
        f"relay tokens were issued that no client has returned, for {', '.join(partners)}{more}. The test "
        "may lose them with @pytest.mark.plaid(allow_unclaimed=True)"
    )


@contextlib.asynccontextmanager
async def open_client(simulator: Simulator) -> AsyncIterator[RelayClient]:
    """Open a client of a simulator, with short pauses between attempts."""
    async with RelayClient(Credentials(CLIENT_ID, SECRET), base_url=simulator.url, retry=_RETRY) as client:
        yield client
