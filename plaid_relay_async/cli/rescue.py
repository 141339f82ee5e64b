"""Stores outcomes that can't be written to the output, in a private file that is created on demand."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from platformdirs import user_state_path

from plaid_relay_async import private_files

if TYPE_CHECKING:
    import io
    from types import TracebackType


class Rescue:
    """A store for rows, in the first folder that can store them.

    The folders are that of the output, the user's state directory, and the one for temporary files.

    Args:
        output_path: the path of the output, if that is a regular file.
    """

    def __init__(self, output_path: Path | None = None) -> None:
        self._output_path = output_path

    @cached_property
    def _files(self) -> list[_RescueFile]:
        # Created on first use, because `tempfile.gettempdir` writes a file to find out which folder is
        # writable.
        folders = [] if self._output_path is None else [self._output_path.absolute().parent]
        folders.append(user_state_path("plaid_relay_async", appauthor=False))
        with contextlib.suppress(OSError):
            folders.append(Path(tempfile.gettempdir()))
        return [_RescueFile(folder) for folder in folders]

    @property
    def paths(self) -> list[Path]:
        """The files that hold rows: more than one only if a folder could not store all of them."""
        return [file.path for file in self._files if file.size]

    def store(self, row: bytes) -> bool:
        """Store a row in the first folder that can, and return whether it is on disk."""
        return any(file.store(row) for file in self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, cls: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if "_files" in vars(self):
            for file in self._files:
                file.close()


class _RescueFile:
    """A file in one folder: created exclusively, with mode 0600, for the first row, and never left empty."""

    def __init__(self, folder: Path) -> None:
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        self.path = folder / f"plaid-relay-rescued-{now}-{secrets.token_hex(4)}.jsonl"
        self.size = 0
        self._file: io.FileIO | None = None

    def store(self, row: bytes) -> bool:
        """Write a row, and return whether all of it is on disk."""
        try:
            if self._file is None:
                private_files.create_folder(self.path.parent)
                self._file = private_files.create_for_append(self.path)
            self._append(self._file, row)
        except OSError:
            self._shrink()
            return False
        self.size += len(row)
        return True

    def _append(self, file: io.FileIO, row: bytes) -> None:
        rest = memoryview(row)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())

    def _shrink(self) -> None:
        """Remove a row that was written in part, and the file if it holds no other row."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._file.truncate(self.size)
        if not self.size:
            self.close()
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; more than once is harmless."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
