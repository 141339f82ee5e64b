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
from plaid_relay_async.gateway.keys import ALL_OPERATIONS, RELAY_OPERATIONS, Key, KeyFile, find_key, new_key
from plaid_relay_async.limits import RateLimit

NAMES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "P"]), min_size=1)
BINDINGS = st.fixed_dictionaries(
    {},
    optional={
        "credentials": st.from_regex("[a-z0-9]{1,20}(-[a-z0-9]{1,20}){0,2}", fullmatch=True),
        "operations": st.sets(st.sampled_from(ALL_OPERATIONS), min_size=1),
        "partners": st.none() | st.sets(WORDS, min_size=1),
        "rate": st.none() | st.builds(RateLimit, st.integers(1), st.integers(1) | st.floats(0.001, 1e9)),
    },
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def file(tmp_path):
    return KeyFile(tmp_path / "config" / "keys.json")


# One key


def test_a_new_key_is_for_the_relay():
    """Unless told otherwise a key stands for the default credentials, relay's five operations and all partners."""
    key, _ = new_key("ann")
    assert (key.name, key.credentials, key.partners, key.rate) == ("ann", "default", None, None)
    assert key.operations == {
        f"/credit/relay/{name}" for name in ("create", "get", "pdf/get", "refresh", "remove")
    }
    assert timedelta() <= datetime.now(UTC) - key.created < timedelta(seconds=10)


def test_a_key_is_256_random_bits():
    """Each is another one, 43 characters of base64url behind a prefix that searches for secrets can look for."""
    made = {new_key("ann")[1] for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("plaid-gateway-") and len(key) == 57 for key in made)


def test_nothing_of_a_key_shows():
    """Neither the key nor its digest is in the repr of its record, and the record doesn't hold the key."""
    record, key = new_key("ann")
    assert "ann" in repr(record)
    assert record.digest not in repr(record)
    assert key not in str([getattr(record, name) for name in Key.__slots__ if name != "__weakref__"])


@given(st.lists(NAMES, min_size=1, max_size=5, unique=True), st.text())
def test_a_key_is_found_by_nothing_else(names, other):
    """A presented key gives the record that it was made with; any other text, also half a character, gives none."""
    made = [new_key(name) for name in names]
    keys = [record for record, _ in made]
    assert [find_key(keys, key) for _, key in made] == keys
    for text in (other, "\ud800", "\udcff", made[0][1][:-1], made[0][1] + " ", keys[0].digest, ""):
        assert find_key(keys, text) is None
    assert find_key([], made[0][1]) is None


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"name": ""}, "name must be 1 to 64"),
        ({"name": "a" * 65}, "name must be 1 to 64"),
        ({"name": "an n"}, "name must be 1 to 64"),
        ({"name": "ann\n"}, "name must be 1 to 64"),
        ({"name": None}, "name must be 1 to 64"),
        ({"credentials": "Acme"}, "credentials must be the name of a set"),
        ({"credentials": "acme_bank"}, "credentials must be the name of a set"),
        ({"credentials": "a" * 65}, "credentials must be the name of a set"),
        ({"operations": ()}, "operations must be a collection"),
        ({"operations": RELAY_OPERATIONS[0]}, "operations must be a collection"),
        ({"operations": [1]}, "operations must be a collection"),
        ({"operations": ["/credit/relay/"]}, "operations must be paths"),
        ({"partners": ()}, "partners must be a collection"),
        ({"partners": 5}, "partners must be a collection"),
        ({"partners": ["a b"]}, "one of the partners holds white space"),
        ({"partners": ["a,b"]}, "one of the partners contains a quote, a comma or a semicolon"),
        ({"partners": [""]}, "one of the partners is empty"),
        ({"rate": 5}, "rate must be a RateLimit"),
    ],
)
def test_a_key_that_can_not_be(wrong, problem):
    """What it is bound to is checked, by name."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        new_key(**{"name": "ann"} | wrong)
    assert "plaid-gateway-" not in package_frames(caught.value)


@pytest.mark.parametrize(
    "created", [NOON.replace(tzinfo=None), NOON.astimezone(timezone(timedelta(hours=1)))]
)
def test_a_time_that_can_not_be(created):
    """A key's time is in UTC, and says so."""
    with pytest.raises(ConfigurationError, match="created must be a time in UTC"):
        Key("ann", "0" * 64, created=created)


def test_a_digest_that_can_not_be():
    """A digest is a SHA-256; a key in its place isn't taken, nor quoted."""
    _, key = new_key("ann")
    with pytest.raises(ConfigurationError, match="digest must be a SHA-256 in hex") as caught:
        Key("ann", key)
    assert key not in str(caught.value)


# A file of them


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, BINDINGS, max_size=4))
def test_what_is_added_is_found_and_nothing_else_is(tmp_path_factory, wanted):
    """Each key that was added is found with what it is bound to, in its order, and a revoked one never again."""
    file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    made = {name: file.add(name, **bound) for name, bound in wanted.items()}
    read = file.read()
    assert [key.name for key in read] == list(wanted)
    for name, key in made.items():
        found = find_key(read, key)
        expected = Key(name, found.digest, created=found.created, **wanted[name])
        assert found == expected
    for name, key in made.items():
        file.revoke(name)
        left = file.read()
        assert find_key(left, key) is None
        assert name not in {other.name for other in left}
    assert file.read() == ()


def test_the_file_is_for_its_owner(file):
    """The file is 0600 in a folder 0700, and holds no key."""
    key = file.add("ann")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert key.removeprefix("plaid-gateway-") not in file.path.read_text()
    assert repr(file) == f"<KeyFile {file.path}>"
    assert {path.name for path in file.path.parent.iterdir()} == {"keys.json", ".keys.json.lock"}


def test_no_file_is_no_key(file):
    """Where there is no file there is no key, and reading makes none."""
    assert (file.read(), file.stamp()) == ((), None)
    assert not file.path.parent.exists()


def test_a_name_is_taken_once(file):
    """A second key of the name is refused, and the first one stays."""
    key = file.add("ann")
    with pytest.raises(ConfigurationError, match="the name ann is taken"):
        file.add("ann")
    assert find_key(file.read(), key) is not None
    with pytest.raises(ConfigurationError, match="there is no key of that name"):
        file.revoke("ben")


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_symbolic_link_stays_one(tmp_path, there):
    """Through a link, also through one to a link, keys are added to the file itself and revoked in it."""
    file, link, other = (
        KeyFile(tmp_path / name) for name in ("keys.json", "link.json", "elsewhere/link.json")
    )
    other.path.parent.mkdir()
    link.path.symlink_to("keys.json")
    other.path.symlink_to(link.path)
    if there:
        file.add("ann")
    key = other.add("ben")
    assert find_key(file.read(), key) is not None
    assert file.read_fingerprint() == link.read_fingerprint() == other.read_fingerprint()
    link.revoke("ben")
    assert find_key(file.read(), key) is None
    assert (link.path.is_symlink(), other.path.is_symlink(), file.path.is_symlink()) == (True, True, False)
    assert [path.name for path in tmp_path.rglob("*.lock")] == [".keys.json.lock"]


def test_a_link_that_leads_nowhere(tmp_path):
    """A link to itself is told with the system's words."""
    file = KeyFile(tmp_path / "keys.json")
    file.path.symlink_to(file.path)
    with pytest.raises(ConfigurationError, match="can't be written: Too many levels of symbolic links"):
        file.add("ann")


def test_a_file_with_two_names_of_its_own(file):
    """A file with a hard link is read and not replaced: its other name would keep a key that was revoked."""
    key = file.add("ann")
    os.link(file.path, file.path.with_name("other.json"))
    for act in (lambda: file.add("ben"), lambda: file.revoke("ann")):
        with pytest.raises(ConfigurationError, match="more than one name"):
            act()
    assert find_key(file.read(), key) is not None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o666])
def test_a_file_that_others_may_use(file, mode):
    """A file that anybody else may read or write is refused, for reading and for writing, and left as it is."""
    file.add("ann")
    before = file.path.read_bytes()
    file.path.chmod(mode)
    for act in (file.read, lambda: file.add("ben"), lambda: file.revoke("ann")):
        with pytest.raises(ConfigurationError, match="chmod 600"):
            act()
    assert file.path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="users are told apart by other means")
def test_a_file_of_another_user(file):
    """A file that belongs to somebody else is refused, whatever its mode."""
    file.add("ann")
    if os.geteuid() == 0:
        os.chown(file.path, 12345, 12345)
    else:
        # What isn't ours and can be read by us is readable for all; the owner is looked at first.
        file = KeyFile("/etc/passwd")
    with pytest.raises(ConfigurationError, match="must belong to the user"):
        file.read()


def test_what_is_no_file(tmp_path):
    """A folder and a pipe in its place are refused, and the pipe isn't waited for."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, problem in ((tmp_path, "Is a directory"), (tmp_path / "pipe", "isn't a regular file")):
        with pytest.raises(ConfigurationError, match=problem):
            KeyFile(path).read()


def test_a_byte_order_mark_is_no_part_of_the_keys(tmp_path):
    """An editor of Windows may put one before them."""
    file = KeyFile(tmp_path / "keys.json")
    file.add("ann")
    written = file.path.read_bytes()
    file.path.write_bytes(b"\xef\xbb\xbf" + written)
    assert [key.name for key in file.read()] == ["ann"]


def test_a_place_that_can_not_be(tmp_path):
    """A folder that can't be made is told with the system's words, and such a place has a stamp, too."""
    (tmp_path / "file").write_text("")
    file = KeyFile(tmp_path / "file" / "keys.json")
    for act in (file.read, lambda: file.add("ann"), lambda: file.revoke("ann")):
        with pytest.raises(
            ConfigurationError, match=r"keys\.json can't be (read|written): (Not a directory|File exists)"
        ):
            act()
    assert file.read_fingerprint() not in {None, KeyFile(tmp_path / "file").read_fingerprint()}


@contextlib.contextmanager
def no_room():
    """No file may grow beyond ten bytes meanwhile, nor may that of pytest's output."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_can_not_be_written(file):
    """Where there is no room the old file stays, and no frame of the error, nor of its chain, holds the key."""
    file.add("ann")
    before = file.path.read_bytes()
    with no_room(), pytest.raises(ConfigurationError, match="can't be written: File too large") as caught:
        file.add("ben")
    assert "plaid-gateway-" not in package_frames(caught.value)
    assert file.path.read_bytes() == before
    assert not list(file.path.parent.glob("*.part"))


def test_the_stamp_changes_with_the_file(file):
    """The stamp is the same until the file is written, replaced, or opened to others."""
    file.add("ann")
    first = file.stamp()
    assert file.stamp() == first
    file.path.chmod(0o644)
    wide = file.stamp()
    file.path.chmod(0o600)
    file.add("ben")
    assert len({first, wide, file.stamp()}) == 3


def spoilt(**changes):
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
        (b"", "isn't a file of keys"),
        (b"\xff{}", "isn't a file of keys"),
        (b"[" * 100_000, "isn't a file of keys"),
        ([], "isn't a file of keys"),
        ({"version": 1}, "isn't a file of keys"),
        ({"version": 2, "keys": []}, r"\$\.version must be 1"),
        ({"version": 1, "keys": {}}, r"\$\.keys must be a list"),
        ({"version": 1, "keys": ["ann"]}, r"\$\.keys\[0\]: a key must have the fields"),
        (b'{"version": 1, "keys": [{"name": "ann", "name": "ben"}]}', "two members of the same name"),
        (b'{"version": 1, "keys": [], "keys": []}', "two members of the same name"),
        (spoilt(partners=...), r"\$\.keys\[0\]: a key must have the fields"),
        (spoilt(admin=True), r"\$\.keys\[0\]: a key must have the fields"),
        (spoilt(name=5), r"\$\.keys\[0\]: name must be"),
        (spoilt(digest="x"), r"\$\.keys\[0\]: digest must be"),
        (spoilt(operations=None), r"\$\.keys\[0\]: operations must be"),
        (spoilt(partners=[[]]), r"\$\.keys\[0\]: partners must be"),
        (spoilt(rate=5), r"\$\.keys\[0\]: rate must have the fields count, per"),
        (spoilt(rate={"count": 0, "per": 1}), r"\$\.keys\[0\]: count must be"),
        (spoilt(created="yesterday"), r"\$\.keys\[0\]: created must be"),
        (spoilt(created="2026-01-01T00:00:00"), r"\$\.keys\[0\]: created must be"),
        (spoilt(created=5), r"\$\.keys\[0\]: created must be"),
        ({"version": 1, "keys": spoilt()["keys"] * 2}, r"\$\.keys has the same name twice"),
        (
            {"version": 1, "keys": [*spoilt()["keys"], *spoilt(name="ben")["keys"]]},
            r"\$\.keys has the same digest twice",
        ),
    ],
)
def test_a_spoilt_file(file, content, problem):
    """A file that isn't as it should be is refused as a whole; it and the place in it are named."""
    file.add("ann")
    file.path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ConfigurationError, match=problem) as caught:
        file.read()
    assert str(file.path) in str(caught.value)


ADD = "import sys; from plaid_relay_async.gateway.keys import KeyFile; print(KeyFile(sys.argv[1]).add(sys.argv[2]))"


def test_two_who_add_at_once(file):
    """Keys that several processes add at the same time, by several names of the file, are all there afterwards."""
    names = [f"caller-{number}" for number in range(4)]
    file.path.parent.mkdir(mode=0o700)
    link = file.path.with_name("link.json")
    link.symlink_to(file.path)
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                running_process([sys.executable, "-c", ADD, path, name], stdout=subprocess.PIPE, text=True)
            )
            for name, path in zip(names, (file.path, link) * 2, strict=True)
        }
        made = {name: process.communicate()[0].strip() for name, process in processes.items()}
    read = file.read()
    assert {name: find_key(read, key).name for name, key in made.items()} == {name: name for name in names}


# The process ends itself at the nth thing that it asks the system for; Python tells of each beforehand. Its
# environment is empty, so that nobody writes a record of what it covers: that would be cut off as well.
KILLED = """
import os, signal, sys
from plaid_relay_async.gateway.keys import KeyFile
left = int(sys.argv[2])
def step(event, _):
    global left
    if event in {"open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock"}:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(step)
KeyFile(sys.argv[1]).add("ben")
"""


def test_killed_between_two_steps(file):
    """Wherever the process is killed, the file is the old one or the new one, and can be added to."""
    kept = file.add("ann")
    for step in range(1, 20):
        run = subprocess.run([sys.executable, "-c", KILLED, file.path, str(step)], check=False, env={})
        read = file.read()
        assert find_key(read, kept) is not None
        assert [key.name for key in read] in (["ann"], ["ann", "ben"])
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL
        if len(read) == 2:
            file.revoke("ben")
    assert step > 4
    assert [key.name for key in file.read()] == ["ann", "ben"]
