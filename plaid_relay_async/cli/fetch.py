"""Stores what was shared with a partner: a file for each relay token."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field

from plaid_relay_async.cli.bulk import Run
from plaid_relay_async.cli.output import write_new
from plaid_relay_async.cli.status import Exit
from plaid_relay_async.errors import DuplicateRequestError, ResponseDecodeError, reason_of
from plaid_relay_async.models import PdfResponse, RelayGetRequest, RelayPdfGetRequest
from plaid_relay_async.outcomes import Failed, Fetched, Unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from plaid_relay_async.batch import Batch
    from plaid_relay_async.cli.board import Tally
    from plaid_relay_async.models import AssetReportGetResponse
    from plaid_relay_async.outcomes import BatchResult

COLUMNS = (
    "outcome",
    "row",
    "file",
    "asset_report_id",
    "request_id",
    "error_code",
    "attempts",
    "decode_error",
)
_DIGITS = 24  # of 64: two of a billion tokens share a name once in 10^11 times


def reading(kind: str, *, insights: bool) -> Callable[[str], RelayGetRequest | RelayPdfGetRequest]:
    """Give what turns a relay token into a request for `"json"` or `"pdf"`."""
    return RelayPdfGetRequest if kind == "pdf" else partial(RelayGetRequest, include_insights=insights)


def report_in(error: ResponseDecodeError) -> bytes | None:
    """Return the response if it contains a report of which only a part differs from Plaid's specification."""
    return None if error.body is None or error.path in {"$", "$.report"} else error.body.reveal()


@define(eq=False)
class Store:
    """A folder of reports, one file for each relay token, by a name that says nothing of the token.

    Attributes:
        folder: where they lie.
        kind: `json`, `insights.json` or `pdf`, which is how their names end.
        trouble: why it takes no more.
    """

    folder: Path
    kind: str
    trouble: OSError | None = None
    _met: set[str] = field(factory=set, init=False)

    def prepare(self) -> None:
        """Make the folder, if it isn't there, and make sure that a file can be made in it.

        Raises:
            OSError: one of them can't be done.
        """
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(mode=0o700)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise OSError(error.errno, f"{self.folder}: {error.strerror}") from None

    def path(self, relay_token: str) -> str:
        """Give the file of a relay token."""
        return str(self.folder / f"{_digest(relay_token)}.{self.kind}")

    def met(self, relay_token: str) -> bool:
        """Tell whether the token was asked for before."""
        digest = _digest(relay_token)
        if digest in self._met:
            return True
        self._met.add(digest)
        return False

    def holds(self, relay_token: str) -> bool:
        """Tell whether that file is there; it is so as a whole only."""
        return os.path.lexists(self.path(relay_token))


def _digest(relay_token: str) -> str:
    return hashlib.sha256(relay_token.encode()).hexdigest()[:_DIGITS]


@define(eq=False)
class Fetch(Run):
    """A batch of reads; each report is in its file before its outcome is told."""

    kinds: ClassVar[tuple[str, ...]] = ("fetched", "already_there", "failed", "not_attempted")

    store: Store = field(kw_only=True)
    strict: bool = field(default=False, kw_only=True)  # store nothing that can't be decoded
    _undecoded: int = field(default=0, init=False)
    _lines: dict[int, int | str] = field(factory=dict, init=False)  # by the id of a request that is alive

    def _batch(self) -> Batch[Any]:
        many = self.client.relay.get_pdf_many if self.store.kind == "pdf" else self.client.relay.get_many
        # Tokens that come twice are told apart below, whether or not the first one has its file already.
        return many(
            self._requests(), concurrency=self.concurrency, on_outcome=self._write, allow_duplicates=True
        )

    async def _requests(self) -> AsyncIterator[Any]:
        """Pass over what was fetched before, which has its outcome at once."""
        async for row in self._rows_left():
            request = row.request
            self._lines[id(request)] = row.line
            if self.store.met(request.relay_token):
                self._put(self._told("failed", request, error_code=DuplicateRequestError.__name__))
            elif self.store.holds(request.relay_token):
                self._put(self._told("already_there", request, file=self.store.path(request.relay_token)))
            else:
                yield request
                continue
            await self.output.settle()
            await asyncio.sleep(0)  # many of them in a row must not hold the loop

    def _line(self, outcome: Any) -> dict[str, Any]:
        match outcome:
            case Fetched():
                return self._stored(
                    outcome, _content(outcome.response), asset_report_id=_id_of(outcome.response)
                )
            case Failed(error=ResponseDecodeError() as error):
                return self._undecodable(outcome, error)
            case Failed() | Unknown():
                code = reason_of(outcome.error)
                return self._told("failed", outcome.request, outcome, error_code=code)
            case request:
                return self._told("not_attempted", request)

    def _undecodable(self, outcome: Failed, error: ResponseDecodeError) -> dict[str, Any]:
        facts = {"error_code": reason_of(error), "decode_error": error.path}
        content = None if self.strict else report_in(error)
        if content is None:
            return self._told("failed", outcome.request, outcome, **facts)
        line = self._stored(outcome, content, **facts)
        self._undecoded += line["outcome"] == "fetched"
        return line

    def _stored(self, outcome: Fetched[Any] | Failed, content: bytes, **facts: Any) -> dict[str, Any]:
        path = self.store.path(outcome.request.relay_token)
        told: Callable[..., dict[str, Any]] = partial(
            self._told, request=outcome.request, outcome=outcome, **facts
        )
        try:
            write_new(path, content)
        except FileExistsError:  # of another run
            return told("already_there", file=path)
        except OSError as error:
            self.store.trouble = error
            return told("failed", error_code=type(error).__name__)
        return told("fetched", file=path)

    def _told(self, kind: str, request: object, outcome: Any = None, **facts: Any) -> dict[str, Any]:
        line = dict.fromkeys(COLUMNS) | {"outcome": kind, "row": self._lines.pop(id(request)), "attempts": 0}
        if outcome is not None:
            line |= {"request_id": outcome.request_id, "attempts": outcome.attempts}
        return line | facts

    def _broken(self) -> str | None:
        trouble = self.store.trouble
        if trouble is None:
            return super()._broken()
        return f"{self.store.folder} takes no more: {trouble.strerror}"

    def _explain(self, result: BatchResult[Any]) -> None:
        super()._explain(result)
        if self._undecoded:
            self.board.say(
                "stored as Plaid sent them, because they differ from its specification: "
                f"{self._undecoded}; please report the path in decode_error to the project"
            )

    def status(self, tally: Tally) -> Exit:
        """Return the exit status, which isn't 0 if a report was stored that can't be decoded."""
        status = super().status(tally)
        return Exit.FAILED if self._undecoded and status is Exit.DONE else status


def _id_of(response: AssetReportGetResponse | PdfResponse) -> str | None:
    return None if isinstance(response, PdfResponse) else response.report.asset_report_id


def _content(response: AssetReportGetResponse | PdfResponse) -> bytes:
    if isinstance(response, PdfResponse):
        return response.content
    assert response.raw is not None  # noqa: S101  # it was read from Plaid
    # Plaid's very bytes: nothing is lost, and there is nothing to hold up the loop with.
    return response.raw.reveal()
