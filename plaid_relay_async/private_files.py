"""Files that only their owner can access: they have mode 0600 from the moment at which they exist."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from plaid_relay_async.redaction import Hidden

MODE: Final = 0o600
"""The mode of a private file."""
_OTHERS = 0o077  # the permissions of the group and of all other users
# The errors of file systems without hard links, such as exFAT and some network file systems.
_NO_HARD_LINK_ERRORS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def _open(path: str, flags: int) -> int:
    # The `opener` of a FileIO, which by itself would create a file that others can read.
    return os.open(path, flags, MODE)


def create_empty(path: Path) -> None:
    """Create an empty file.

    Raises:
        FileExistsError: the path exists.
        OSError: the file can't be created.
    """
    io.FileIO(path, "x", opener=_open).close()


def create_folder(path: Path, *, parents: bool = True) -> None:
    """Create a folder with mode 0700, unless it exists.

    Args:
        path: the folder.
        parents: whether to create missing parents as well, with the usual mode.

    Raises:
        OSError: the folder can't be created.
    """
    path.mkdir(mode=0o700, parents=parents, exist_ok=True)


def is_open_to_others(status: os.stat_result) -> bool:
    """Return whether users other than the owner may access a file; modes mean nothing outside of POSIX."""
    return os.name == "posix" and bool(status.st_mode & _OTHERS)


# ------------------------------------------------------------------------------------- reading and appending


def read(path: Path) -> bytes:
    """Return the content of a file of this user.

    Raises:
        PermissionError: other users may access the file, or it belongs to another user.
        OSError: it can't be read, or isn't a regular file.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    with io.FileIO(path, opener=lambda name, flags: _open(name, flags | nonblocking)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it isn't a regular file")
        if os.name == "posix" and status.st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, "it must belong to the user who runs this program")
        _check_permissions(status)
        return file.readall()


def create_for_append(path: str | Path) -> io.FileIO:
    """Create a file, and return it open for appending.

    Raises:
        FileExistsError: the path exists.
        OSError: the file can't be created.
    """
    return io.FileIO(path, "x", opener=lambda name, flags: _open(name, flags | os.O_APPEND))


def open_for_append(path: str | Path, *, readable: bool = False) -> io.FileIO:
    """Open a file for appending, and create it if it doesn't exist; for a named pipe, wait for its reader.

    Args:
        path: the path of a file, a pipe or a device.
        readable: whether the file is opened for reading, too.

    Raises:
        PermissionError: other users may access the file.
        OSError: it can't be opened.
    """
    file = io.FileIO(path, "a+" if readable else "a", opener=_open)
    try:
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            _check_permissions(status)
    except BaseException:
        file.close()
        raise
    return file


def _check_permissions(status: os.stat_result) -> None:
    if is_open_to_others(status):
        raise PermissionError(errno.EACCES, "file permissions are too open; run chmod 600 first")


def lock(file: io.FileIO, *, wait: bool) -> None:
    """Lock an open file until it is closed.

    Args:
        file: the file.
        wait: whether to wait until no other process holds the lock.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # pragma: no cover  # Windows has no such locks
        return
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the lock of a file that contains nothing, and is created if it doesn't exist.

    Raises:
        OSError: the file can't be opened or locked.
    """
    with io.FileIO(path, "a", opener=_open) as file:
        lock(file, wait=True)
        yield


# --------------------------------------------------------------------------------------------- complete files


def write_new(path: Path, content: Hidden[bytes]) -> None:
    """Create a file that either doesn't exist or is complete.

    Raises:
        FileExistsError: the path exists.
        OSError: the file can't be written.
    """
    _write(PartFile(path), content)


def replace(path: Path, content: Hidden[bytes]) -> None:
    """Write a file that, also after a crash, has either its complete old content or the complete new one.

    Raises:
        OSError: the file can't be written.
    """
    _write(PartFile(path, replaces=True), content)


def _write(part: PartFile, content: Hidden[bytes]) -> None:
    try:
        part.open()
        part.write(content)
        part.publish()
    finally:
        part.discard()


class PartFile:
    """A file that is being written under a temporary name, in the folder of its final name. Thread-safe.

    Args:
        path: the final path.
        replaces: whether the file replaces an existing one, and is on disk when it is published; otherwise an
            existing file is an error.
        link: creates a hard link, as `os.link` does.

    Attributes:
        size: the number of bytes that were written since the last `restart`.
    """

    def __init__(
        self, path: Path, *, replaces: bool = False, link: Callable[[Path, Path], object] = os.link
    ) -> None:
        self.size = 0
        self._path = path
        # In the same folder, because renaming is atomic only within a file system.
        self._part = path.with_name(f".{secrets.token_hex(8)}.part")
        self._replaces = replaces
        self._link = link
        self._lock = threading.Lock()
        self._file: io.FileIO | None = None
        self._discarded = False

    def open(self) -> None:
        """Create the file under its temporary name.

        Raises:
            FileExistsError: the final name exists.
            OSError: the file can't be created.
        """
        with self._lock:
            if self._discarded:
                return
            with contextlib.suppress(FileNotFoundError):
                self._path.lstat()  # raises also if no file can have that name
                if not self._replaces:
                    raise FileExistsError(errno.EEXIST, "already exists", str(self._path))
            self._file = io.FileIO(self._part, "x", opener=_open)

    def restart(self) -> None:
        """Truncate the file, to write it again from the start.

        Raises:
            OSError: it can't be truncated.
        """
        with self._lock:
            self.size = 0
            if self._file is not None:
                self._file.truncate(self._file.seek(0))

    def write(self, chunk: Hidden[bytes]) -> None:
        """Write the next chunk.

        Raises:
            OSError: it can't be written.
        """
        with self._lock:
            remaining = memoryview(chunk.reveal())
            self.size += len(remaining)
            while remaining and self._file is not None:
                remaining = remaining[self._file.write(remaining) :]

    def publish(self) -> None:
        """Close the file, and publish it under its final name.

        Raises:
            FileExistsError: another file with that name was created in the meantime.
            OSError: the file can't be closed, which may report an earlier write error, or can't be renamed.
        """
        with self._lock:
            if self._file is None or self._discarded:
                return
            if self._replaces:
                os.fsync(self._file.fileno())
            self._file.close()
            if self._replaces:
                self._part.replace(self._path)
                _sync_folder(self._path.parent)
            else:
                self._publish_new()

    def _publish_new(self) -> None:
        # Creating a link, unlike renaming, never replaces another file.
        try:
            self._link(self._part, self._path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINK_ERRORS:
                raise
            # Renaming would replace an existing file, so the final name is reserved by an empty file first.
            create_empty(self._path)
            try:
                self._part.replace(self._path)
            except BaseException:
                self._path.unlink(missing_ok=True)
                raise

    def discard(self) -> None:
        """Close the file, and delete its temporary name. A published file stays."""
        with self._lock:
            self._discarded = True
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Write the renaming of a file to disk."""
    if os.name != "posix":  # pragma: no cover  # other systems can't open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
