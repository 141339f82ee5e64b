"""Fetches the reports that were shared with a partner, and stores each in a file."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field

from plaid_relay_async import private_files
from plaid_relay_async.cli.bulk import BatchRunner
from plaid_relay_async.cli.messages import ExitStatus
from plaid_relay_async.errors import DuplicateRequestError, ResponseDecodeError, reason_of
from plaid_relay_async.models import PdfResponse, RelayGetRequest, RelayPdfGetRequest
from plaid_relay_async.outcomes import Failed, Fetched, Unknown
from plaid_relay_async.redaction import Hidden

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from plaid_relay_async.batch import Batch, BatchResult
    from plaid_relay_async.cli.progress import OutcomeCounts
    from plaid_relay_async.models import AssetReportGetResponse

FETCH_COLUMNS = (
    "outcome",
    "row",
    "file",
    "asset_report_id",
    "request_id",
    "error_code",
    "attempts",
    "decode_error",
)
# A name has this number of a digest's 64 hexadecimal digits. The chance that any two of a billion tokens have
# the same name is 10^-11.
_NAME_DIGITS = 24


def request_factory(kind: str, *, insights: bool) -> Callable[[str], RelayGetRequest | RelayPdfGetRequest]:
    """Return a function that builds the request for a relay token.

    Args:
        kind: `"json"` or `"pdf"`.
        insights: whether to request categories and merchants.
    """
    return RelayPdfGetRequest if kind == "pdf" else partial(RelayGetRequest, include_insights=insights)


def undecoded_report(error: ResponseDecodeError) -> bytes | None:
    """Return the body of a response whose report can't be decoded, or `None` if it contains no report."""
    return None if error.body is None or error.path in {"$", "$.report"} else error.body.reveal()


@define(eq=False)
class ReportStore:
    """A folder of reports with one file for each relay token, named after a digest of the token.

    Attributes:
        folder: the folder.
        suffix: the suffix of the files: `json`, `insights.json` or `pdf`.
        error: the error because of which nothing more can be stored.
    """

    folder: Path
    suffix: str
    error: OSError | None = None
    _seen_digests: set[str] = field(factory=set, init=False)

    def prepare(self) -> None:
        """Create the folder if it doesn't exist, and check that files can be created in it.

        Raises:
            OSError: the folder or a file in it can't be created.
        """
        try:
            private_files.create_folder(self.folder, parents=False)
            tempfile.TemporaryFile(dir=self.folder).close()  # fails if the folder isn't writable
        except OSError as error:
            raise OSError(error.errno, f"{self.folder}: {error.strerror}") from None

    def path_of(self, relay_token: str) -> str:
        """Return the path of the file of a relay token."""
        return str(self.folder / f"{_token_digest(relay_token)}.{self.suffix}")

    def check_duplicate(self, relay_token: str) -> bool:
        """Return whether the token was checked before, and remember it."""
        digest = _token_digest(relay_token)
        if digest in self._seen_digests:
            return True
        self._seen_digests.add(digest)
        return False

    def contains(self, relay_token: str) -> bool:
        """Return whether the report of a token is stored; a file that exists is complete."""
        return os.path.lexists(self.path_of(relay_token))


def _token_digest(relay_token: str) -> str:
    return hashlib.sha256(relay_token.encode()).hexdigest()[:_NAME_DIGITS]


@define(eq=False)
class FetchRunner(BatchRunner):
    """Sends a batch of reads; each report is stored before its outcome is written."""

    outcome_kinds: ClassVar[tuple[str, ...]] = ("fetched", "already_there", "failed", "not_attempted")

    store: ReportStore = field(kw_only=True)
    # Whether a report that can't be decoded is an error, and isn't stored.
    strict: bool = field(default=False, kw_only=True)
    _undecoded_count: int = field(default=0, init=False)
    # By the `id` of a request. An entry is removed with the outcome, and the batch references the request
    # until then.
    _line_by_request: dict[int, int | str] = field(factory=dict, init=False)

    def _create_batch(self, arguments: dict[str, Any]) -> Batch[Any, Any]:
        many: Callable[..., Batch[Any, Any]] = self.client.relay.get_many
        if self.store.suffix == "pdf":
            many = self.client.relay.get_pdf_many
        # `_iter_requests` detects duplicates instead, because it also knows the tokens that needed no
        # request.
        return many(
            self._iter_requests(),
            concurrency=self.concurrency,
            on_outcome=self._on_outcome,
            allow_duplicates=True,
            **arguments,
        )

    async def _iter_requests(self) -> AsyncIterator[Any]:
        """Yield the requests of reports that aren't stored yet; write the outcome of the other rows."""
        async for row in self._remaining_rows():
            request = row.request
            self._line_by_request[id(request)] = row.line
            if self.store.check_duplicate(request.relay_token):
                self._write_line(
                    self._fetch_fields("failed", request, error_code=DuplicateRequestError.__name__)
                )
            elif self.store.contains(request.relay_token):
                self._write_line(
                    self._fetch_fields("already_there", request, file=self.store.path_of(request.relay_token))
                )
            else:
                yield request
                continue
            await self.output.drain()
            await asyncio.sleep(0)  # a long sequence of such rows must not block the event loop

    def _output_fields(self, outcome: Any) -> dict[str, Any]:
        match outcome:
            case Fetched():
                return self._store_report(
                    outcome, _report_content(outcome.response), asset_report_id=_report_id(outcome.response)
                )
            case Failed(error=ResponseDecodeError() as error):
                return self._store_undecoded(outcome, error)
            case Failed() | Unknown():
                code = reason_of(outcome.error)
                return self._fetch_fields("failed", outcome.request, outcome, error_code=code)
            case request:
                return self._fetch_fields("not_attempted", request)

    def _store_undecoded(self, outcome: Failed, error: ResponseDecodeError) -> dict[str, Any]:
        facts = {"error_code": reason_of(error), "decode_error": error.path}
        content = None if self.strict else undecoded_report(error)
        if content is None:
            return self._fetch_fields("failed", outcome.request, outcome, **facts)
        line = self._store_report(outcome, content, **facts)
        self._undecoded_count += line["outcome"] == "fetched"
        return line

    def _store_report(self, outcome: Fetched[Any] | Failed, content: bytes, **facts: Any) -> dict[str, Any]:
        path = self.store.path_of(outcome.request.relay_token)
        fields: Callable[..., dict[str, Any]] = partial(
            self._fetch_fields, request=outcome.request, outcome=outcome, **facts
        )
        # The report is stored before its outcome is written, so that `fetched` always means a complete file.
        try:
            private_files.write_new(Path(path), Hidden(content))
        except FileExistsError:  # another process has stored it meanwhile
            return fields("already_there", file=path)
        except OSError as error:
            self.store.error = error
            return fields("failed", error_code=type(error).__name__)
        return fields("fetched", file=path)

    def _fetch_fields(self, kind: str, request: object, outcome: Any = None, **facts: Any) -> dict[str, Any]:
        line = dict.fromkeys(FETCH_COLUMNS) | {
            "outcome": kind,
            "row": self._line_by_request.pop(id(request)),
            "attempts": 0,
        }
        if outcome is not None:
            line |= {"request_id": outcome.request_id, "attempts": outcome.attempts}
        return line | facts

    def _output_problem(self) -> str | None:
        error = self.store.error
        if error is None:
            return super()._output_problem()
        return f"reports can't be written to {self.store.folder}: {error.strerror}"

    def _print_explanations(self, result: BatchResult[Any, Any]) -> None:
        super()._print_explanations(result)
        if self._undecoded_count:
            self.display.print_message(
                "stored as Plaid sent them, because they differ from its specification: "
                f"{self._undecoded_count}; please report the path in decode_error to the project"
            )

    def exit_status(self, counts: OutcomeCounts) -> ExitStatus:
        """Return the exit status, which is not 0 if a report was stored that can't be decoded."""
        status = super().exit_status(counts)
        return ExitStatus.FAILED if self._undecoded_count and status is ExitStatus.DONE else status


def _report_id(response: AssetReportGetResponse | PdfResponse) -> str | None:
    return None if isinstance(response, PdfResponse) else response.report.asset_report_id


def _report_content(response: AssetReportGetResponse | PdfResponse) -> bytes:
    if isinstance(response, PdfResponse):
        return response.content
    assert response.raw is not None  # noqa: S101  # every response that the client decoded has it
    # The bytes as Plaid sent them: unknown fields are kept, and encoding a large report would block the event
    # loop.
    return response.raw.reveal()
