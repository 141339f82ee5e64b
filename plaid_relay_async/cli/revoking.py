"""Revokes the tokens that a run created."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

from attrs import define, field

from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.messages import ExitStatus
from plaid_relay_async.cli.output import outcome_fields
from plaid_relay_async.errors import JournalError, RequestValidationError
from plaid_relay_async.models import RelayRemoveRequest
from plaid_relay_async.outcomes import Failed

if TYPE_CHECKING:
    from plaid_relay_async.batch import Batch, BatchResult
    from plaid_relay_async.cli.progress import OutcomeCounts
    from plaid_relay_async.journal import Journal


@define(eq=False, repr=False)
class TokensToRevoke:
    """The tokens that a run created and that are still valid.

    Attributes:
        partners: the partner of each token, by the request that removes it.
        malformed: the output lines of tokens that can't be sent, for example because they contain
            whitespace.
        forgotten: the number of tokens that were deleted from the journal.
        unknown: the number of pairs whose outcome is unknown.
        maybe_queued: the number of pairs without an outcome, for which a task queue may have calls.
    """

    partners: dict[RelayRemoveRequest, str] = field(factory=dict)
    malformed: list[dict[str, Any]] = field(factory=list)
    forgotten: int = 0
    unknown: int = 0
    maybe_queued: int = 0

    @classmethod
    async def read(cls, journal: Journal, run: str, partner: str | None) -> Self:
        """Read the tokens that a run created; tokens that it reused from other runs are excluded.

        Args:
            journal: the open journal.
            run: the name of the run.
            partner: the partner to read the tokens of; `None` reads those of all partners.

        Raises:
            JournalError: the run doesn't exist or is in progress, or the journal can't be read.
        """
        tokens = cls()
        async for record in journal.records(run, partner=partner):
            # Another process may still create tokens for this run, which would then not be revoked.
            if record.outcome == "in_flight":
                raise JournalError(
                    f"the run {run!r} is in progress",
                    advice="Wait until it has ended, or end its process. On a task queue, cancel the run, "
                    "and wait until the calls that workers have begun have ended.",
                )
            if not record.own:
                continue
            match record.outcome, record.relay_token:
                case "created", None:
                    tokens.forgotten += 1
                case "created", str(token):
                    tokens._add(token, record.secondary_client_id)
                case "unknown", _:
                    tokens.unknown += 1
                case "not_attempted", _:
                    tokens.maybe_queued += journal.path is None  # a task queue requires PostgreSQL
        return tokens

    def warning(self) -> tuple[str, str]:
        """Return the lines of a message about tokens that may be created later."""
        return (
            f"pairs without an outcome, which may still get a token: {self.maybe_queued:,}",
            "if the run was on a task queue, cancel it, and repeat this command with --task-queue",
        )

    def _add(self, token: str, partner: str) -> None:
        try:
            self.partners[RelayRemoveRequest(token)] = partner
        except RequestValidationError as error:
            # Reported as an outcome of the run, without stopping the removal of the other tokens.
            outcome = Failed(request=None, error=error, attempts=0, elapsed=0.0, request_id=None)
            self.malformed.append(outcome_fields(outcome, partner))


@define(eq=False)
class RevokeRunner(BatchRunner):
    """Sends a batch of removals, and then looks for tokens that were created meanwhile.

    Attributes:
        tokens: the tokens of the run.
        read_again: reads the tokens of the run again.
    """

    outcome_kinds: ClassVar[tuple[str, ...]] = ("removed", "failed", "unknown", "not_attempted")

    tokens: TokensToRevoke = field(kw_only=True)
    read_again: Callable[[], Awaitable[TokensToRevoke]] = field(kw_only=True)
    _later_count: int | None = field(default=None, init=False)

    def _create_batch(self, arguments: dict[str, Any]) -> Batch[Any, Any]:
        return self.client.relay.remove_many(
            self._iter_requests(), concurrency=self.concurrency, on_outcome=self._on_outcome, **arguments
        )

    def _output_fields(self, outcome: Any) -> dict[str, Any]:
        return outcome_fields(outcome, self.tokens.partners[getattr(outcome, "request", outcome)])

    async def _send_all(self, batch: Batch[Any, Any]) -> None:
        await super()._send_all(batch)
        later = await self.read_again()
        new_tokens = later.partners.keys() - self.tokens.partners.keys()
        self._later_count = len(new_tokens) + len(later.malformed) - len(self.tokens.malformed)
        self.tokens.unknown = later.unknown

    async def _write_remaining(self, result: BatchResult[Any, Any]) -> None:
        await super()._write_remaining(result)
        for line in self.tokens.malformed:
            self._write_line(line)
            await self.output.drain()

    def _print_explanations(self, result: BatchResult[Any, Any]) -> None:
        super()._print_explanations(result)
        if self.tokens.malformed:
            malformed = len(self.tokens.malformed)
            self.display.print_message(
                f"malformed tokens, which only a direct call of Plaid's API can remove: {malformed:,}"
            )
        if self.tokens.forgotten:
            self.display.print_message(f"forgotten tokens, which stay valid: {self.tokens.forgotten:,}")
        if self.tokens.unknown:
            self.display.print_message(
                f"unknown outcomes, each of which may have left a valid token: {self.tokens.unknown:,}"
            )
        if self._later_count:
            self.display.print_message(
                f"tokens that were created meanwhile, and stay valid: {self._later_count:,}",
                "repeat the command to revoke them",
            )
        if self.tokens.maybe_queued:
            self.display.print_message(*self.tokens.warning())

    def exit_status(self, counts: OutcomeCounts) -> ExitStatus:
        """Return the exit status, which also reflects tokens that can't be revoked."""
        # Tokens that may be valid after this command: UNKNOWN outweighs FAILED.
        unrevoked = (
            ExitStatus.UNKNOWN
            if self.tokens.unknown
            else ExitStatus.FAILED
            if self.tokens.forgotten or self._later_count != 0
            else ExitStatus.DONE
        )
        return max(super().exit_status(counts), unrevoked)
