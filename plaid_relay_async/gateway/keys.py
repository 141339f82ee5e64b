"""Who may call what: named keys, of which only a digest is kept."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import Attribute, field, fields_dict, frozen

from plaid_relay_async.codec import ENDPOINTS
from plaid_relay_async.errors import (
    ConfigurationError,
    RequestValidationError,
    strip_init_traceback,
    strip_traceback,
)
from plaid_relay_async.limits import RateLimit
from plaid_relay_async.models.fields import check_identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALL_OPERATIONS: Final[tuple[str, ...]] = tuple(endpoint.path for endpoint in ENDPOINTS)
"""The paths of all operations that a gateway can serve."""
RELAY_OPERATIONS: Final[tuple[str, ...]] = tuple(
    path for path in ALL_OPERATIONS if path.startswith("/credit/relay/")
)
"""Those of the relay alone."""

# So that a key that got out is found by those who look for secrets.
KEY_PREFIX: Final = "plaid-gateway-"
_KEY_BYTES: Final = 32
_FILE_VERSION: Final = 1

# ------------------------------------------------------------------------------------------------ one key


def _pattern_validator(pattern: str, description: str) -> Any:
    form = re.compile(pattern)

    def check(_: object, attribute: Attribute[str], value: object) -> None:
        if not isinstance(value, str) or not form.fullmatch(value):
            raise ConfigurationError(f"{attribute.name} must be {description}")

    return check


def _string_set(name: str, values: Iterable[str]) -> frozenset[str]:
    # A string would be taken for its letters.
    names = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"{name} must be a collection of strings that isn't empty")
    return frozenset(names)


def _operation_set(paths: Iterable[str]) -> frozenset[str]:
    return _string_set("operations", paths)


def _partner_set(partners: Iterable[str] | None) -> frozenset[str] | None:
    return None if partners is None else _string_set("partners", partners)


def _check_operations(_: object, __: object, paths: frozenset[str]) -> None:
    if not paths <= set(ALL_OPERATIONS):
        raise ConfigurationError(
            "operations must be paths of Plaid's operations, such as " + RELAY_OPERATIONS[0]
        )


def _check_partners(_: object, __: object, partners: frozenset[str] | None) -> None:
    try:
        for partner in partners or ():
            check_identifier("one of the partners", partner)
    except RequestValidationError as error:
        problem = f"{error.field} {error.problem}"
    else:
        return
    raise ConfigurationError(problem)


def _check_rate(_: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, RateLimit):
        raise ConfigurationError(f"{attribute.name} must be a RateLimit or None")


def _check_utc(_: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, datetime) or value.utcoffset() != timedelta():
        raise ConfigurationError(f"{attribute.name} must be a time in UTC, with its time zone")


def _creation_time() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@strip_init_traceback
@frozen
class Key:
    """A caller of a gateway, and what its key is bound to. The key itself isn't in it.

    Attributes:
        name: of the caller, in the audit log and the metrics: letters, digits, `.`, `_` and `-`, at most 64.
        digest: the key's SHA-256, in hex; it shows in no repr.
        credentials: the name of the set of Plaid's credentials that its calls are made with: small letters
            and digits, in words that are joined by `-`.
        operations: the paths that it may call.
        partners: the `secondary_client_id`s that its creations may name; `None` is all.
        rate: so many calls in so many seconds, over all its operations; `None` is no limit.
        created: when, in UTC.

    Raises:
        ConfigurationError: one of them isn't of that form.
    """

    name: str = field(
        validator=_pattern_validator(
            "[A-Za-z0-9._-]{1,64}", "1 to 64 letters of ASCII, digits, '.', '_' or '-'"
        )
    )
    digest: str = field(repr=False, validator=_pattern_validator("[0-9a-f]{64}", "a SHA-256 in hex"))
    credentials: str = field(
        default="default",
        validator=_pattern_validator(
            "(?=.{1,64}$)[a-z0-9]+(-[a-z0-9]+)*",
            "the name of a set: at most 64 small letters and digits, in words joined by '-'",
        ),
    )
    operations: frozenset[str] = field(
        default=frozenset(RELAY_OPERATIONS), converter=_operation_set, validator=_check_operations
    )
    partners: frozenset[str] | None = field(default=None, converter=_partner_set, validator=_check_partners)
    rate: RateLimit | None = field(default=None, validator=_check_rate)
    created: datetime = field(factory=_creation_time, validator=_check_utc)


@strip_traceback
def new_key(
    name: str,
    *,
    credentials: str = "default",
    operations: Iterable[str] = RELAY_OPERATIONS,
    partners: Iterable[str] | None = None,
    rate: RateLimit | None = None,
) -> tuple[Key, str]:
    """Make a key of 256 random bits.

    Args:
        name: of who calls with it.
        credentials: the name of the set of Plaid's credentials that it stands for.
        operations: the paths that it is good for.
        partners: the `secondary_client_id`s that its creations may name; `None` is all.
        rate: over all its operations.

    Returns:
        Its record, and the key itself, which nobody can be told a second time.

    Raises:
        ConfigurationError: an argument is wrong, by name.
    """
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    record = Key(
        name=name,
        digest=_key_digest(key),
        credentials=credentials,
        operations=operations,
        partners=partners,
        rate=rate,
    )
    return record, key


def find_key(keys: Iterable[Key], presented: str) -> Key | None:
    """Give the record of a key, in a time that tells nothing of how much of it is right.

    Args:
        keys: all that there are; each is compared, whichever fits.
        presented: what a caller says is its key, whatever that holds.
    """
    digest, found = _key_digest(presented), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def _key_digest(key: str) -> str:
    # Not salted and not slow, for there is no dictionary of 256 random bits. What a header or JSON holds
    # may be half a character, which only this way has bytes.
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


# ------------------------------------------------------------------------------------------- a file of them


class KeyFile:
    """Keys in a private file: JSON, mode 0600.

    Args:
        path: of the file, or of a symbolic link to it; neither it nor its folder has to exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"<KeyFile {self.path}>"

    def read(self) -> tuple[Key, ...]:
        """Give all keys, in the order in which they were added; none where there is no file.

        Raises:
            ConfigurationError: others may read or write the file, it belongs to another user, or it doesn't
                hold what it should; the file and the field are named.
        """
        try:
            text = _read_private(self.path)
        except FileNotFoundError:
            return ()
        except OSError as error:
            problem = f"can't be read: {error.strerror}"
        else:
            return self._parse_keys(text)
        raise ConfigurationError(f"{self.path} {problem}")

    def read_fingerprint(self) -> object:
        """Give something that stays equal for as long as the file is the same; `None` where there is none."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.errno
        return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_mode, now.st_uid

    @strip_traceback
    def add(
        self,
        name: str,
        *,
        credentials: str = "default",
        operations: Iterable[str] = RELAY_OPERATIONS,
        partners: Iterable[str] | None = None,
        rate: RateLimit | None = None,
        show_key: Callable[[str], object] | None = None,
    ) -> str:
        """Create a key, and store its record; the arguments are those of `new_key`, and `hand_over`.

        `hand_over` is called with the key before the key can be used. If it raises, no key is added, so that
        no key is in use that was never shown.

        Returns:
            The key itself, which nobody can be told a second time.

        Raises:
            ConfigurationError: the name is taken, an argument is wrong, or the file can't be used.
        """
        with self._write_lock() as path:
            there = self.read()
            record, key = new_key(
                name, credentials=credentials, operations=operations, partners=partners, rate=rate
            )
            if any(other.name == name for other in there):
                raise ConfigurationError(f"the name {name} is taken: revoke that key, or take another name")
            if show_key is not None:
                show_key(key)
            self._write(path, (*there, record))
        return key

    def revoke(self, name: str) -> None:
        """Take a key away.

        Raises:
            ConfigurationError: there is none of that name, or the file can't be used.
        """
        with self._write_lock() as path:
            there = self.read()
            left = tuple(key for key in there if key.name != name)
            if len(left) == len(there):
                raise ConfigurationError(f"there is no key of that name in {self.path}")
            self._write(path, left)

    @contextlib.contextmanager
    def _write_lock(self) -> Iterator[Path]:
        """Keep other processes from writing meanwhile, and yield the path of the file itself."""
        # To replace a symbolic link would leave its file as it was, and each name would have its own lock.
        path = Path(os.path.realpath(self.path))
        with contextlib.ExitStack() as stack:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(_exclusive_lock(path.with_name(f".{path.name}.lock")))
                problem = "it has more than one name (hard links)" if _link_count(path) > 1 else None
            except OSError as error:
                problem = error.strerror
            if problem is not None:
                raise ConfigurationError(f"{self.path} can't be written: {problem}")
            yield path

    def _write(self, path: Path, keys: tuple[Key, ...]) -> None:
        whole = json.dumps({"version": _FILE_VERSION, "keys": [_key_to_json(key) for key in keys]}, indent=2)
        try:
            _replace_atomically(path, f"{whole}\n")
        except OSError as error:
            problem = error.strerror
        else:
            return
        # Not inside of `except`: the chain would lead to the frame of `add`, which holds the key.
        raise ConfigurationError(f"{self.path} can't be written: {problem}")

    def _parse_keys(self, text: str) -> tuple[Key, ...]:
        try:
            whole = json.loads(text, object_pairs_hook=unique_members)
        except DuplicateMemberError:
            raise ConfigurationError(f"{self.path}: an object has two members of the same name") from None
        except (ValueError, RecursionError):
            whole = None
        if not isinstance(whole, dict) or set(whole) != {"version", "keys"}:
            raise ConfigurationError(f"{self.path} isn't a file of keys: JSON with `version` and `keys`")
        if whole["version"] != _FILE_VERSION:
            raise ConfigurationError(
                f"{self.path}: $.version must be {_FILE_VERSION}; a newer release may read it"
            )
        if not isinstance(whole["keys"], list):
            raise ConfigurationError(f"{self.path}: $.keys must be a list")
        keys = tuple(self._parse_key(number, entry) for number, entry in enumerate(whole["keys"]))
        for what in ("name", "digest"):
            if len({getattr(key, what) for key in keys}) < len(keys):
                raise ConfigurationError(f"{self.path}: $.keys has the same {what} twice")
        return keys

    def _parse_key(self, index: int, entry: object) -> Key:
        try:
            return _key_from_json(entry)
        except ConfigurationError as error:
            problem = error.args[0]
        raise ConfigurationError(f"{self.path}: $.keys[{index}]: {problem}")


class DuplicateMemberError(ValueError):
    """A JSON object has two members of the same name."""


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object from its members: an `object_pairs_hook`.

    Raises:
        DuplicateMemberError: two have the same name, of which each reader may take another one.
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        raise DuplicateMemberError
    return members


def _key_to_json(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "digest": key.digest,
        "credentials": key.credentials,
        "operations": [path for path in ALL_OPERATIONS if path in key.operations],
        "partners": None if key.partners is None else sorted(key.partners),
        "rate": None if key.rate is None else {"count": key.rate.count, "per": key.rate.per},
        "created": key.created.isoformat().replace("+00:00", "Z"),
    }


def _key_from_json(entry: object) -> Key:
    # Each field has to be there: one that was lost must not give a key more than it had.
    values = _exact_fields(entry, Key, "a key")
    if values["rate"] is not None:
        values["rate"] = RateLimit(**_exact_fields(values["rate"], RateLimit, "rate"))
    try:
        values["created"] = datetime.fromisoformat(values["created"])
    except (TypeError, ValueError):
        values["created"] = None
    return Key(**values)


def _exact_fields(entry: object, cls: type, description: str) -> dict[str, Any]:
    names = list(fields_dict(cls))
    if not isinstance(entry, dict) or set(entry) != {*names}:
        raise ConfigurationError(f"{description} must have the fields {', '.join(names)}, and no other")
    return dict(entry)


# ------------------------------------------------------------------------------------------ private files


def _owner_only_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read_private(path: Path) -> str:
    """Give what a file holds that belongs to this user alone.

    Raises:
        ConfigurationError: others may have to do with it, or it is no file.
        OSError: it can't be read.
    """
    # A pipe in its place would be waited for.
    unwaiting = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | unwaiting)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ConfigurationError(f"{path} isn't a regular file")
        _check_owner(path, found)
        return file.read().decode("utf-8-sig", errors="replace")


def _check_owner(path: Path, status: os.stat_result) -> None:
    if os.name != "posix":  # pragma: no cover  # where others are kept out by other means
        return
    if status.st_uid != os.geteuid():
        raise ConfigurationError(f"{path} must belong to the user who runs this")
    if status.st_mode & 0o077:
        raise ConfigurationError(f"{path} must be nobody else's to read or write: chmod 600 {path}")


def _link_count(path: Path) -> int:
    try:
        return path.stat().st_nlink
    except FileNotFoundError:
        return 0


def _replace_atomically(path: Path, text: str) -> None:
    """Write a file so that there is always the old one or the new one, whole."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        # Path.open takes no opener, and the file must be private from its first moment.
        with open(part, "x", encoding="utf-8", opener=_owner_only_opener) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    # A file of its own: the one that it is for gets another in its place.
    with open(path, "a", opener=_owner_only_opener) as file:
        try:
            import fcntl
        except ModuleNotFoundError:  # pragma: no cover  # where there are no such locks
            pass
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    """Have the renaming itself on the disk."""
    if os.name != "posix":  # pragma: no cover  # where a folder can't be opened
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
