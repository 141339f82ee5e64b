"""Caller keys and the key file."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import stat
import string
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from canaries import package_frames
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import running_process

from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.gateway.key_file import KeyFile
from plaid_relay_async.gateway.keys import ALL_OPERATIONS, RELAY_OPERATIONS, Key, find_key, new_key
from plaid_relay_async.limits import RateLimit

NAMES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64)
PARTNERS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "P"]), min_size=1)
BINDINGS = st.fixed_dictionaries(
    {},
    optional={
        "credentials": st.from_regex("[a-z0-9]{1,20}(-[a-z0-9]{1,20}){0,2}", fullmatch=True),
        "operations": st.sets(st.sampled_from(ALL_OPERATIONS), min_size=1),
        "partners": st.none() | st.sets(PARTNERS, min_size=1),
        "rate": st.none()
        | st.builds(RateLimit, st.integers(1, sys.maxsize), st.integers(1) | st.floats(0.001, 1e9)),
    },
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def key_file(tmp_path):
    return KeyFile(tmp_path / "config" / "keys.json")


# One key


def test_a_new_key_is_for_the_relay():
    """By default a key has the default credentials, the five relay operations and all partners."""
    key, _ = new_key("ann")
    assert (key.name, key.credentials, key.partners, key.rate) == ("ann", "default", None, None)
    assert key.operations == {
        f"/credit/relay/{name}" for name in ("create", "get", "pdf/get", "refresh", "remove")
    }
    assert timedelta() <= datetime.now(UTC) - key.created < timedelta(seconds=10)


def test_a_key_is_256_random_bits():
    """Each key differs: 43 characters of base64url after a prefix that secret scanners can find."""
    created = {new_key("ann")[1] for _ in range(100)}
    assert len(created) == 100
    assert all(key.startswith("plaid-gateway-") and len(key) == 57 for key in created)


def test_a_record_does_not_reveal_its_key():
    """The repr contains neither the key nor its digest, and the record doesn't contain the key."""
    record, key = new_key("ann")
    assert "ann" in repr(record)
    assert record.digest not in repr(record)
    assert key not in str([getattr(record, name) for name in Key.__slots__ if name != "__weakref__"])


@given(st.lists(NAMES, min_size=1, max_size=5, unique=True), st.text())
def test_a_key_is_found_only_by_itself(names, other):
    """A presented key finds its record; any other text, including a lone surrogate, finds none."""
    created = [new_key(name) for name in names]
    keys = [record for record, _ in created]
    assert [find_key(keys, key) for _, key in created] == keys
    for text in (other, "\ud800", "\udcff", created[0][1][:-1], created[0][1] + " ", keys[0].digest, ""):
        assert find_key(keys, text) is None
    assert find_key([], created[0][1]) is None


@pytest.mark.parametrize(
    ("invalid", "problem"),
    [
        ({"name": ""}, "name must be 1 to 64"),
        ({"name": "a" * 65}, "name must be 1 to 64"),
        ({"name": "an n"}, "name must be 1 to 64"),
        ({"name": "ann\n"}, "name must be 1 to 64"),
        ({"name": None}, "name must be 1 to 64"),
        ({"credentials": "Acme"}, "credentials must be the name of a set"),
        ({"credentials": "acme_bank"}, "credentials must be the name of a set"),
        ({"credentials": "a" * 65}, "credentials must be the name of a set"),
        ({"operations": ()}, "operations must be a non-empty collection"),
        ({"operations": RELAY_OPERATIONS[0]}, "operations must be a non-empty collection"),
        ({"operations": [1]}, "operations must be a non-empty collection"),
        ({"operations": ["/credit/relay/"]}, "operations must be paths"),
        ({"partners": ()}, "partners must be a non-empty collection"),
        ({"partners": 5}, "partners must be a non-empty collection"),
        ({"partners": ["a b"]}, "one of the partners contains whitespace"),
        ({"partners": ["a,b"]}, "one of the partners contains a quote, a comma or a semicolon"),
        ({"partners": [""]}, "one of the partners is empty"),
        ({"rate": 5}, "rate must be a RateLimit"),
    ],
)
def test_invalid_arguments_are_rejected(invalid, problem):
    """Each argument is validated, and the error names it."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        new_key(**{"name": "ann"} | invalid)
    assert "plaid-gateway-" not in package_frames(caught.value)


@pytest.mark.parametrize(
    "created", [NOON.replace(tzinfo=None), NOON.astimezone(timezone(timedelta(hours=1)))]
)
def test_a_time_must_be_in_utc(created):
    """A naive time and another time zone are rejected."""
    with pytest.raises(ConfigurationError, match="created must be a time in UTC"):
        Key("ann", "0" * 64, created=created)


def test_a_digest_must_be_a_sha_256():
    """A key in place of its digest is rejected, and the error doesn't quote it."""
    _, key = new_key("ann")
    with pytest.raises(ConfigurationError, match="digest must be a SHA-256 in hex") as caught:
        Key("ann", key)
    assert key not in str(caught.value)


# The key file


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, BINDINGS, max_size=4))
def test_added_keys_are_found_until_revoked(tmp_path_factory, bindings):
    """Each added key is found with its bindings, in order; a revoked key is no longer found."""
    key_file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    created = {name: key_file.add(name, **bound) for name, bound in bindings.items()}
    keys = key_file.read()
    assert [key.name for key in keys] == list(bindings)
    for name, key in created.items():
        record = find_key(keys, key)
        expected = Key(name, record.digest, created=record.created, **bindings[name])
        assert record == expected
    for name, key in created.items():
        key_file.revoke(name)
        remaining = key_file.read()
        assert find_key(remaining, key) is None
        assert name not in {other.name for other in remaining}
    assert key_file.read() == ()


def test_the_file_is_private(key_file):
    """The file has mode 0600 in a folder with mode 0700, and contains no key."""
    key = key_file.add("ann")
    assert stat.S_IMODE(key_file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file.path.parent.stat().st_mode) == 0o700
    assert key.removeprefix("plaid-gateway-") not in key_file.path.read_text()
    assert repr(key_file) == f"<KeyFile {key_file.path}>"
    assert {path.name for path in key_file.path.parent.iterdir()} == {"keys.json", ".keys.json.lock"}


def test_a_missing_file_has_no_keys(key_file):
    """Reading a missing file returns no keys, and doesn't create it."""
    assert (key_file.read(), key_file.read_fingerprint()) == ((), None)
    assert not key_file.path.parent.exists()


def test_a_name_is_unique(key_file):
    """A second key with the same name is rejected, and the first one stays."""
    key = key_file.add("ann")
    with pytest.raises(ConfigurationError, match="the name ann is taken"):
        key_file.add("ann")
    assert find_key(key_file.read(), key) is not None
    with pytest.raises(ConfigurationError, match="has that name"):
        key_file.revoke("ben")


@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing yet"])
def test_a_symbolic_link_is_followed(tmp_path, exists):
    """Through a link, or a link to a link, keys are added to the target and revoked in it."""
    key_file, link, other = (
        KeyFile(tmp_path / name) for name in ("keys.json", "link.json", "elsewhere/link.json")
    )
    other.path.parent.mkdir()
    link.path.symlink_to("keys.json")
    other.path.symlink_to(link.path)
    if exists:
        key_file.add("ann")
    key = other.add("ben")
    assert find_key(key_file.read(), key) is not None
    assert key_file.read_fingerprint() == link.read_fingerprint() == other.read_fingerprint()
    link.revoke("ben")
    assert find_key(key_file.read(), key) is None
    assert (link.path.is_symlink(), other.path.is_symlink(), key_file.path.is_symlink()) == (
        True,
        True,
        False,
    )
    assert [path.name for path in tmp_path.rglob("*.lock")] == [".keys.json.lock"]


def test_a_circular_link_is_reported(tmp_path):
    """The error contains the system's message."""
    key_file = KeyFile(tmp_path / "keys.json")
    key_file.path.symlink_to(key_file.path)
    with pytest.raises(ConfigurationError, match="can't be written: Too many levels of symbolic links"):
        key_file.add("ann")


def test_a_file_with_hard_links_is_not_changed(key_file):
    """It is read but not replaced, because its other name would keep a revoked key."""
    key = key_file.add("ann")
    os.link(key_file.path, key_file.path.with_name("other.json"))
    for act in (lambda: key_file.add("ben"), lambda: key_file.revoke("ann")):
        with pytest.raises(ConfigurationError, match="more than one name"):
            act()
    assert find_key(key_file.read(), key) is not None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o666])
def test_a_file_with_open_permissions_is_rejected(key_file, mode):
    """A file that other users can access is neither read nor written."""
    key_file.add("ann")
    before = key_file.path.read_bytes()
    key_file.path.chmod(mode)
    for act in (key_file.read, lambda: key_file.add("ben"), lambda: key_file.revoke("ann")):
        with pytest.raises(ConfigurationError, match="chmod 600"):
            act()
    assert key_file.path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="other systems don't use file owners")
def test_a_file_of_another_user_is_rejected(key_file):
    """The mode makes no difference."""
    key_file.add("ann")
    if os.geteuid() == 0:
        os.chown(key_file.path, 12345, 12345)
    else:
        # A readable file of another user is readable by all; the owner is checked before the mode.
        key_file = KeyFile("/etc/passwd")
    with pytest.raises(ConfigurationError, match="must belong to the user"):
        key_file.read()


def test_folders_and_pipes_are_rejected(tmp_path):
    """A named pipe isn't waited for."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, problem in ((tmp_path, "Is a directory"), (tmp_path / "pipe", "isn't a regular file")):
        with pytest.raises(ConfigurationError, match=problem):
            KeyFile(path).read()


def test_a_byte_order_mark_is_ignored(tmp_path):
    """Editors on Windows may write one."""
    key_file = KeyFile(tmp_path / "keys.json")
    key_file.add("ann")
    written = key_file.path.read_bytes()
    key_file.path.write_bytes(b"\xef\xbb\xbf" + written)
    assert [key.name for key in key_file.read()] == ["ann"]


def test_an_impossible_path_is_reported(tmp_path):
    """The error contains the system's message, and such a path has a fingerprint."""
    (tmp_path / "file").write_text("")
    key_file = KeyFile(tmp_path / "file" / "keys.json")
    for act in (key_file.read, lambda: key_file.add("ann"), lambda: key_file.revoke("ann")):
        with pytest.raises(
            ConfigurationError, match=r"keys\.json can't be (read|written): (Not a directory|File exists)"
        ):
            act()
    assert key_file.read_fingerprint() not in {None, KeyFile(tmp_path / "file").read_fingerprint()}


@contextlib.contextmanager
def file_size_limit():
    """Limit the size of files that this process writes to ten bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_keeps_the_old_file(key_file):
    """If the disk is full, the old file stays, and no frame of the error or its chain contains the new key."""
    key_file.add("ann")
    before = key_file.path.read_bytes()
    with (
        file_size_limit(),
        pytest.raises(ConfigurationError, match="can't be written: File too large") as caught,
    ):
        key_file.add("ben")
    assert "plaid-gateway-" not in package_frames(caught.value)
    assert key_file.path.read_bytes() == before
    assert not list(key_file.path.parent.glob("*.part"))


def test_the_fingerprint_changes_with_the_file(key_file):
    """The fingerprint changes when the file is written, replaced, or its mode changes."""
    key_file.add("ann")
    first = key_file.read_fingerprint()
    assert key_file.read_fingerprint() == first
    key_file.path.chmod(0o644)
    wide = key_file.read_fingerprint()
    key_file.path.chmod(0o600)
    key_file.add("ben")
    assert len({first, wide, key_file.read_fingerprint()}) == 3


def with_entry(**changes):
    entry = {
        "name": "ann",
        "digest": "0" * 64,
        "credentials": "default",
        "operations": [RELAY_OPERATIONS[0]],
        "partners": None,
        "rate": None,
        "created": "2026-01-01T00:00:00Z",
    } | changes
    return {"version": 1, "keys": [{name: value for name, value in entry.items() if value is not ...}]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "isn't a key file"),
        (b"\xff{}", "isn't a key file"),
        (b"[" * 100_000, "isn't a key file"),
        ([], "isn't a key file"),
        ({"version": 1}, "isn't a key file"),
        ({"version": 2, "keys": []}, r"\$\.version must be 1"),
        ({"version": 1, "keys": {}}, r"\$\.keys must be a list"),
        ({"version": 1, "keys": ["ann"]}, r"\$\.keys\[0\]: must be an object"),
        (b'{"version": 1, "keys": [{"name": "ann", "name": "ben"}]}', "two members of the same name"),
        (b'{"version": 1, "keys": [], "keys": []}', "two members of the same name"),
        (with_entry(partners=...), r"\$\.keys\[0\]: the field partners is missing"),
        (with_entry(admin=True), r"\$\.keys\[0\]: has an unknown field"),
        (with_entry(name=5), r"\$\.keys\[0\]: name must be"),
        (with_entry(digest="x"), r"\$\.keys\[0\]: digest must be"),
        (with_entry(operations=None), r"\$\.keys\[0\]: operations must be"),
        (with_entry(partners=[[]]), r"\$\.keys\[0\]: partners must be"),
        (with_entry(partners="p"), r"\$\.keys\[0\]: partners must be"),
        (with_entry(rate=5), r"\$\.keys\[0\]\.rate: must be an object"),
        (with_entry(rate={"count": 1}), r"\$\.keys\[0\]\.rate: the field per is missing"),
        (with_entry(rate={"count": 1, "per": 1, "burst": 1}), r"\$\.keys\[0\]\.rate: has an unknown field"),
        (with_entry(rate={"count": "1", "per": 1}), r"\$\.keys\[0\]\.rate: count must be"),
        (with_entry(rate={"count": 0, "per": 1}), r"\$\.keys\[0\]\.rate: count must be"),
        (with_entry(created="yesterday"), r"\$\.keys\[0\]: created must be"),
        (with_entry(created="2026-01-01T00:00:00"), r"\$\.keys\[0\]: created must be"),
        (with_entry(created=5), r"\$\.keys\[0\]: created must be"),
        ({"version": 1, "keys": with_entry()["keys"] * 2}, r"\$\.keys has the same name twice"),
        (
            {"version": 1, "keys": [*with_entry()["keys"], *with_entry(name="ben")["keys"]]},
            r"\$\.keys has the same digest twice",
        ),
    ],
)
def test_an_invalid_file_is_rejected(key_file, content, problem):
    """The error names the file and the position of the problem."""
    key_file.add("ann")
    key_file.path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ConfigurationError, match=problem) as caught:
        key_file.read()
    assert str(key_file.path) in str(caught.value)


@pytest.mark.parametrize("field", ["count", "per"])
def test_a_key_in_the_place_of_a_number(key_file, field):
    """The error about a number in the file doesn't quote a key that was pasted in its place."""
    _, key = new_key("ann")
    key_file.add("ann")
    key_file.path.write_text(json.dumps(with_entry(rate={"count": 1, "per": 1} | {field: key})))
    with pytest.raises(ConfigurationError, match=rf"\.rate: {field} must be .*, not str ") as caught:
        key_file.read()
    assert key not in str(caught.value)


ADD = "import sys; from plaid_relay_async.gateway.key_file import KeyFile; print(KeyFile(sys.argv[1]).add(sys.argv[2]))"


def test_concurrent_additions_are_all_stored(key_file):
    """Keys that several processes add concurrently, by several names of the file, are all stored."""
    names = [f"caller-{number}" for number in range(4)]
    key_file.path.parent.mkdir(mode=0o700)
    link = key_file.path.with_name("link.json")
    link.symlink_to(key_file.path)
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                running_process([sys.executable, "-c", ADD, path, name], stdout=subprocess.PIPE, text=True)
            )
            for name, path in zip(names, (key_file.path, link) * 2, strict=True)
        }
        created = {name: process.communicate()[0].strip() for name, process in processes.items()}
    keys = key_file.read()
    assert {name: find_key(keys, key).name for name, key in created.items()} == {name: name for name in names}


# The process kills itself at the nth system call, which an audit hook reports beforehand. Its environment is
# empty, so that no coverage data is written, which would be truncated as well.
KILLED = """
import os, signal, sys
from plaid_relay_async.gateway.key_file import KeyFile
remaining = int(sys.argv[2])
def step(event, _):
    global remaining
    if event in {"open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock"}:
        remaining -= 1
        if not remaining:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(step)
KeyFile(sys.argv[1]).add("ben")
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_valid_file(key_file):
    """Wherever the process is killed, the file has the old or the new content, and keys can be added."""
    kept_key = key_file.add("ann")
    for step in range(1, 20):
        run = subprocess.run([sys.executable, "-c", KILLED, key_file.path, str(step)], check=False, env={})
        keys = key_file.read()
        assert find_key(keys, kept_key) is not None
        assert [key.name for key in keys] in (["ann"], ["ann", "ben"])
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL
        if len(keys) == 2:
            key_file.revoke("ben")
    assert step > 4
    assert [key.name for key in key_file.read()] == ["ann", "ben"]
