"""Private files: their mode, and what is left of them after an error."""

from __future__ import annotations

import errno
import os
import stat
import threading
import traceback
from pathlib import Path

import pytest

from plaid_relay_async import private_files
from plaid_relay_async.private_files import PartFile
from plaid_relay_async.redaction import Hidden


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "report.pdf"


def descriptor_of(folder: Path) -> int:
    """Return the descriptor with which this process has the only file of a folder open."""
    [file] = folder.iterdir()
    descriptors = [int(path.name) for path in Path("/dev/fd").iterdir() if path.exists()]
    [descriptor] = [number for number in descriptors if os.path.samestat(os.fstat(number), file.stat())]
    return descriptor


@pytest.mark.parametrize(
    "create",
    [
        private_files.create_empty,
        lambda path: private_files.create_for_append(path).close(),
        lambda path: private_files.open_for_append(path).close(),
        lambda path: private_files.open_for_append(path, readable=True).close(),
        lambda path: private_files.write_new(path, Hidden(b"x")),
        lambda path: private_files.replace(path, Hidden(b"x")),
    ],
)
@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_new_file_is_private(target, create, umask):
    """A file has mode 0600 whatever the umask allows, and no other file is left."""
    before = os.umask(umask)
    try:
        create(target)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "create",
    [
        private_files.create_empty,
        private_files.create_for_append,
        lambda path: private_files.write_new(path, Hidden(b"x")),
    ],
)
def test_an_existing_file_is_kept(target, create):
    """A file that must be new is an error if it exists, even as a link to nothing."""
    target.write_text("mine", encoding="utf-8")
    link = target.with_name("link.pdf")
    link.symlink_to("nowhere")
    for path in (target, link):
        with pytest.raises(FileExistsError):
            create(path)
    assert target.read_text(encoding="utf-8") == "mine"
    assert sorted(target.parent.iterdir()) == [link, target]


def test_a_replaced_file_is_private(target):
    """The new file has mode 0600 even if the old one had another mode."""
    target.write_text("old", encoding="utf-8")
    target.chmod(0o644)
    private_files.replace(target, Hidden(b"new"))
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"new", 0o600)


def test_a_file_with_open_permissions_is_refused(target):
    """Nothing is read from a file that others can access, or appended to it."""
    private_files.write_new(target, Hidden(b"secret"))
    assert private_files.read(target) == b"secret"
    target.chmod(0o640)
    for act in (private_files.read, private_files.open_for_append):
        with pytest.raises(PermissionError, match="too open; run chmod 600 first"):
            act(target)
    assert target.read_bytes() == b"secret"


def test_a_device_has_no_permissions_to_check():
    """A device that everyone can write to, such as the null device, is accepted as an output."""
    private_files.open_for_append(os.devnull).close()


def test_a_lock_excludes_other_openings(target):
    """A file that is locked can't be locked by another opening until it is closed."""
    with private_files.create_for_append(target) as first, private_files.open_for_append(target) as second:
        private_files.lock(first, wait=True)
        with pytest.raises(BlockingIOError):
            private_files.lock(second, wait=False)
        first.close()
        private_files.lock(second, wait=False)


def test_a_file_system_without_hard_links_works(target):
    """The name is reserved first, so that no other file is overwritten; the file has mode 0600 as well."""

    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name, exists in ((target, False), (target.with_name("taken.pdf"), True)):
        part = PartFile(name, link=no_links)
        part.open()
        part.write(Hidden(b"whole"))
        if exists:
            name.write_text("mine", encoding="utf-8")
            with pytest.raises(FileExistsError):
                part.publish()
        else:
            part.publish()
        part.discard()
    assert target.read_bytes() == b"whole"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in target.parent.iterdir()) == ["report.pdf", "taken.pdf"]


def test_a_reserved_name_is_released_after_an_error(target):
    """If the part file can't be renamed to its reserved name, no empty file is left."""

    def unlink_part(part: Path, _: Path) -> None:
        part.unlink()
        raise PermissionError(errno.EPERM, "Operation not permitted")

    part = PartFile(target, link=unlink_part)
    part.open()
    with pytest.raises(FileNotFoundError):
        part.publish()
    part.discard()
    assert list(target.parent.iterdir()) == []


def test_other_link_errors_are_raised(target):
    """Only errors that mean "no hard links" lead to the other way."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    part = PartFile(target, link=full)
    part.open()
    with pytest.raises(OSError, match="No space left"):
        part.publish()
    part.discard()
    assert list(target.parent.iterdir()) == []


def test_a_file_is_closed_before_it_is_published(target):
    """An error that a system reports only on close, such as a used-up quota, is raised in time."""
    part = PartFile(target)
    part.open()
    os.close(descriptor_of(target.parent))  # now closing it fails, as it may on a network file system
    with pytest.raises(OSError, match="Bad file descriptor"):
        part.publish()
    part.discard()
    assert list(target.parent.iterdir()) == []


def test_no_frame_shows_what_is_written(target):
    """A report is personal data: the error of a full disk contains none of it."""
    part = PartFile(target)
    part.open()
    os.close(descriptor_of(target.parent))
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        part.write(Hidden(b"JOHN DOE"))
    frames = [f.f_locals for f, _ in traceback.walk_tb(caught.value.__traceback__)][1:]
    assert "JOHN DOE" not in repr(frames)
    part.discard()


def test_a_file_discarded_before_it_is_opened_is_never_created(target):
    """A call that is cancelled while its thread has not started leaves no file."""
    part = PartFile(target)
    part.discard()
    part.open()
    part.restart()
    part.write(Hidden(b"x"))
    part.publish()
    assert list(target.parent.iterdir()) == []


def test_discarding_waits_for_a_thread_that_works_on_the_file(target):
    """A thread that works on the file when its call is cancelled finishes first; then the part is deleted."""
    started, release = threading.Event(), threading.Event()

    def link(source: Path, name: Path) -> None:
        started.set()
        release.wait()
        os.link(source, name)

    part = PartFile(target, link=link)
    part.open()
    publishing, discarding = threading.Thread(target=part.publish), threading.Thread(target=part.discard)
    publishing.start()
    started.wait()
    discarding.start()
    discarding.join(0.05)
    assert discarding.is_alive()
    assert target not in target.parent.iterdir()
    release.set()
    publishing.join()
    discarding.join()
    assert list(target.parent.iterdir()) == [target]
