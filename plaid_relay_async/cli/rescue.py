"""Where outcomes go that the output can't take: a private file that is created only when it is needed."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from platformdirs import user_state_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType


class Rescue:
    """Stores rows on disk, each before `store` returns.

    The file is created exclusively and with mode 0600. When a folder, or the file in it, takes no more, the
    next folder is tried: beside the output, the user's state directory, the directory for temporary files.

    Args:
        beside: the output, if that is a regular file.
    """

    def __init__(self, beside: Path | None = None) -> None:
        self._folders = _folders(beside)
        self._file: io.FileIO | None = None
        self._path = Path()
        self._full: list[Path] = []
        self._size = 0

    @property
    def paths(self) -> list[Path]:
        """The files that hold rows: one, unless a disk became full on the way."""
        return [*self._full, self._path] if self._size else list(self._full)

    def store(self, row: bytes) -> bool:
        """Return whether the row is on disk; if not, no folder takes it."""
        while self._file is not None or self._open_next():
            try:
                self._append(row)
            except OSError:
                self.close()
            else:
                return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and delete it if it holds nothing."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None
        if self._size:
            self._full.append(self._path)
            self._size = 0
        else:
            self._path.unlink(missing_ok=True)

    def _open_next(self) -> bool:
        for folder in self._folders:
            now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
            self._path = folder / f"plaid-relay-rescued-{now}-{secrets.token_hex(4)}.jsonl"
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = io.FileIO(self._path, "x", opener=_private)
            except OSError:
                continue
            return True
        return False

    def _append(self, row: bytes) -> None:
        assert self._file is not None  # noqa: S101  # `store` has opened it
        rest = memoryview(row)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(row)


def _folders(beside: Path | None) -> Iterator[Path]:
    # Each is determined only when the one before takes no more: that may fail as well.
    if beside is not None:
        yield beside.absolute().parent
    yield user_state_path("plaid_relay_async", appauthor=False)
    with contextlib.suppress(OSError):
        yield Path(tempfile.gettempdir())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND, 0o600)
