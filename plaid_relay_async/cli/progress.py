"""Shows the progress of a batch, as a bar on a terminal and otherwise as lines, and its totals as a table."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import IO, TYPE_CHECKING, cast

from attrs import frozen
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from plaid_relay_async.cli.logs import LogHandler, message_lines, writes_json
from plaid_relay_async.cli.messages import StderrWriter, sanitize

if TYPE_CHECKING:
    from collections.abc import Callable

    from plaid_relay_async.batch import Progress

_BAR_SECONDS = 0.1
_LINE_SECONDS = 2.0
_COLOURS = {"created": "green", "fetched": "green", "failed": "red", "unknown": "yellow"}


@frozen
class OutcomeCounts:
    """The number of outcomes of each kind, in the order of the table, and of each error code."""

    by_outcome: Counter[str]
    by_error_code: Counter[str]


def format_rate(progress: Progress) -> str:
    """Return the outcomes per second as text."""
    return f"{progress.done / progress.elapsed:,.0f}/s" if progress.elapsed else "0/s"


class ProgressDisplay:
    """Writes progress and messages to standard error.

    Args:
        total: the number of expected outcomes; `None` if it is unknown, as for a pipe.
        bar: whether to show a bar if standard error is a terminal, and has no lines of JSON.
    """

    def __init__(self, total: int | None, *, bar: bool = True) -> None:
        self._total = total
        self._console = Console(file=cast("IO[str]", StderrWriter()))
        self._has_bar = bar and self._console.is_terminal and not writes_json()

    async def show_progress(self, progress: Callable[[], Progress]) -> None:
        """Show the progress of a batch until cancelled."""
        if self._has_bar:
            await self._show_bar(progress)
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            self.print_message(self._progress_line(progress()))

    async def _show_bar(self, progress: Callable[[], Progress]) -> None:
        counts = "{task.completed} done, {task.fields[failed]} failed, {task.fields[unknown]} unknown"
        columns = (BarColumn(), TextColumn(counts + "  {task.fields[rate]}"), TimeRemainingColumn())
        bar = Bar(
            *columns,
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with LogHandler.writing_with(self._write_lines), bar:
            bar.add_task("", total=self._total, failed=0, unknown=0, rate="")
            try:
                while True:
                    self._update_bar(bar, progress())
                    await asyncio.sleep(_BAR_SECONDS)
            finally:  # the last update shows the state at the end
                self._update_bar(bar, progress())

    def _update_bar(self, bar: Bar, progress: Progress) -> None:
        bar.update(
            bar.task_ids[0],
            completed=progress.done,
            failed=progress.failed,
            unknown=progress.unknown,
            rate=format_rate(progress),
            refresh=True,
        )

    def _progress_line(self, progress: Progress) -> str:
        total = "" if self._total is None else f" of {self._total}"
        counts = f"{progress.done}{total} done, {progress.failed} failed, {progress.unknown} unknown"
        return f"{counts}, {format_rate(progress)}"

    def print_message(self, *lines: str) -> None:
        """Write a message to standard error, above the bar if there is one."""
        self._write_lines(*message_lines(*lines))

    def _write_lines(self, *lines: str) -> None:
        # In a string, rich would replace markup and emoji names, such as `:100:` in a line number.
        self._console.print(*map(Text, lines), sep="\n", soft_wrap=True)

    def show_totals(self, counts: OutcomeCounts) -> None:
        """Print the closing table; as JSON, a message with the same numbers."""
        if writes_json():
            totals = {**counts.by_outcome, **counts.by_error_code}
            self.print_message(", ".join(f"{sanitize(name)}: {count}" for name, count in totals.items()))
        else:
            self._console.print(totals_table(counts))


def totals_table(counts: OutcomeCounts) -> Table:
    """Return the closing table: a row for each outcome, then one for each error code."""
    # Cells are `Text`, because rich would read markup in a string.
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True, overflow="ignore")
    rows.add_column(justify="right", no_wrap=True)
    for name, count in counts.by_outcome.items():
        rows.add_row(Text(sanitize(name)), str(count), style=_COLOURS.get(name, "") if count else "")
    for code, count in counts.by_error_code.most_common():
        rows.add_row(Text(sanitize(code)), str(count), style="dim")
    return rows
