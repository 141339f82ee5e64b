"""Caller keys: named credentials of the gateway, of which only a SHA-256 digest is stored.

A key is bound to a set of Plaid's credentials, to operations, to partners and to a rate limit.
"""

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
from plaid_relay_async.errors import ConfigurationError, RequestValidationError
from plaid_relay_async.limits import RateLimit
from plaid_relay_async.models.fields import check_identifier
from plaid_relay_async.redaction import GATEWAY_KEY_PREFIX, strip_init_traceback, strip_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALL_OPERATIONS: Final[tuple[str, ...]] = tuple(endpoint.path for endpoint in ENDPOINTS)
"""The paths of all operations that a gateway can serve."""
RELAY_OPERATIONS: Final[tuple[str, ...]] = tuple(
    path for path in ALL_OPERATIONS if path.startswith("/credit/relay/")
)
"""The paths of the relay's operations."""

_KEY_BYTES: Final = 32
_FILE_VERSION: Final = 1

# ------------------------------------------------------------------------------------------------ one key


def _pattern_validator(pattern: str, description: str) -> Any:
    compiled = re.compile(pattern)

    def check(_: object, attribute: Attribute[str], value: object) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ConfigurationError(f"{attribute.name} must be {description}")

    return check


def _string_set(name: str, values: Iterable[str]) -> frozenset[str]:
    # A string is an iterable of its characters, which is never intended.
    strings = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    if not strings or not all(isinstance(item, str) for item in strings):
        raise ConfigurationError(f"{name} must be a non-empty collection of strings")
    return frozenset(strings)


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
    """The record of a caller's key: its digest and what it is bound to. It does not contain the key.

    Attributes:
        name: the name of the caller, for the audit log and the metrics: 1 to 64 ASCII letters, digits, `.`,
            `_` or `-`.
        digest: the key's SHA-256 in hexadecimal. The repr omits it.
        credentials: the name of the set of Plaid's credentials that its calls use: at most 64 lower-case
            letters and digits, in words joined by `-`.
        operations: the paths that it may call.
        partners: the `secondary_client_id`s that its creations may name; `None` allows all.
        rate: its rate limit, over all operations; `None` is no limit.
        created: when it was created, in UTC.

    Raises:
        ConfigurationError: one of the values is invalid.
    """

    name: str = field(
        validator=_pattern_validator("[A-Za-z0-9._-]{1,64}", "1 to 64 ASCII letters, digits, '.', '_' or '-'")
    )
    digest: str = field(repr=False, validator=_pattern_validator("[0-9a-f]{64}", "a SHA-256 in hexadecimal"))
    credentials: str = field(
        default="default",
        validator=_pattern_validator(
            "(?=.{1,64}$)[a-z0-9]+(-[a-z0-9]+)*",
            "the name of a set: at most 64 lower-case letters and digits, in words joined by '-'",
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
    """Create a key of 256 random bits.

    Args:
        name: the name of the caller.
        credentials: the name of the set of Plaid's credentials that its calls use.
        operations: the paths that it may call.
        partners: the `secondary_client_id`s that its creations may name; `None` allows all.
        rate: its rate limit, over all operations.

    Returns:
        Its record, and the key, which can't be recovered from the record.

    Raises:
        ConfigurationError: an argument is invalid; the message names it.
    """
    key = GATEWAY_KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
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
    """Return the record of a key, in a time that reveals nothing about how much of the key is correct.

    Args:
        keys: all valid keys; each is compared, also after a match.
        presented: what a caller sent as its key; any text.
    """
    digest, match = _key_digest(presented), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            match = key
    return match


def _key_digest(key: str) -> str:
    # A salt and a slow hash protect guessable passwords. A key of 256 random bits can't be guessed.
    # A header or JSON may contain a lone surrogate, which is encoded only with "surrogatepass".
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


# ------------------------------------------------------------------------------------------- the key file


class KeyFile:
    """A file of keys: JSON, with mode 0600.

    Args:
        path: the path of the file, or of a symbolic link to it. Neither the file nor its folder has to exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"<KeyFile {self.path}>"

    def read(self) -> tuple[Key, ...]:
        """Return all keys in the order in which they were added; none if the file does not exist.

        Raises:
            ConfigurationError: the file can't be read, other users can access it, it belongs to another user,
                or its content is invalid; the message names the file and the problem.
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
        """Return a value that compares equal while the file is unchanged; `None` if it does not exist."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.errno
        # Mode and owner are included because a change of them can make the file unusable.
        return (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_mode,
            status.st_uid,
        )

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
        """Create a key and store its record. The arguments are those of `new_key`, and `show_key`.

        `show_key` is called with the key before its record is stored. If it raises, no key is added, so that
        every valid key was shown.

        Returns:
            The key, which can't be recovered from the file.

        Raises:
            ConfigurationError: the name is taken, an argument is invalid, or the file can't be used.
        """
        with self._write_lock() as path:
            keys = self.read()
            record, key = new_key(
                name, credentials=credentials, operations=operations, partners=partners, rate=rate
            )
            if any(other.name == name for other in keys):
                raise ConfigurationError(f"the name {name} is taken: revoke that key, or choose another name")
            # Shown first: a key that could not be shown would be valid and known to no caller.
            if show_key is not None:
                show_key(key)
            self._write(path, (*keys, record))
        return key

    def revoke(self, name: str) -> None:
        """Remove a key.

        Raises:
            ConfigurationError: no key has that name, or the file can't be used.
        """
        with self._write_lock() as path:
            keys = self.read()
            remaining = tuple(key for key in keys if key.name != name)
            if len(remaining) == len(keys):
                raise ConfigurationError(f"no key in {self.path} has that name")
            self._write(path, remaining)

    @contextlib.contextmanager
    def _write_lock(self) -> Iterator[Path]:
        """Prevent other processes from writing, and yield the path of the file itself."""
        # Symbolic links are resolved first. Replacing a link would leave its target unchanged, and each name
        # of the file would have a separate lock.
        path = Path(os.path.realpath(self.path))
        with contextlib.ExitStack() as stack:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(_exclusive_lock(path.with_name(f".{path.name}.lock")))
                # Replacing a file with hard links would leave a revoked key under its other names.
                problem = "it has more than one name (hard links)" if _link_count(path) > 1 else None
            except OSError as error:
                problem = error.strerror
            if problem is not None:
                raise ConfigurationError(f"{self.path} can't be written: {problem}")
            yield path

    def _write(self, path: Path, keys: tuple[Key, ...]) -> None:
        content = json.dumps(
            {"version": _FILE_VERSION, "keys": [_key_to_json(key) for key in keys]}, indent=2
        )
        try:
            _replace_atomically(path, f"{content}\n")
        except OSError as error:
            problem = error.strerror
        else:
            return
        # Raised outside of `except`: a chained exception would refer to the frame of `add` with the key.
        raise ConfigurationError(f"{self.path} can't be written: {problem}")

    def _parse_keys(self, text: str) -> tuple[Key, ...]:
        try:
            content = json.loads(text, object_pairs_hook=unique_members)
        except DuplicateMemberError:
            raise ConfigurationError(f"{self.path}: an object has two members of the same name") from None
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or set(content) != {"version", "keys"}:
            raise ConfigurationError(f"{self.path} isn't a key file: JSON with `version` and `keys`")
        if content["version"] != _FILE_VERSION:
            raise ConfigurationError(
                f"{self.path}: $.version must be {_FILE_VERSION}; a newer release may read it"
            )
        if not isinstance(content["keys"], list):
            raise ConfigurationError(f"{self.path}: $.keys must be a list")
        keys = tuple(self._parse_key(index, entry) for index, entry in enumerate(content["keys"]))
        for name in ("name", "digest"):
            if len({getattr(key, name) for key in keys}) < len(keys):
                raise ConfigurationError(f"{self.path}: $.keys has the same {name} twice")
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
    """Return a JSON object from its members, as an `object_pairs_hook` of `json.loads`.

    Raises:
        DuplicateMemberError: two members have the same name, and different parsers use different ones.
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
    # Every field is required. With defaults, a field that was lost would extend what the key allows.
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
    """Return the content of a file that only this user can access.

    Raises:
        ConfigurationError: other users can access it, it belongs to another user, or it isn't a regular file.
        OSError: it can't be read.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblocking)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{path} isn't a regular file")
        _check_owner(path, status)
        return file.read().decode("utf-8-sig", errors="replace")


def _check_owner(path: Path, status: os.stat_result) -> None:
    if os.name != "posix":  # pragma: no cover  # other systems don't use modes for access control
        return
    if status.st_uid != os.geteuid():
        raise ConfigurationError(f"{path} must belong to the user who runs this program")
    if status.st_mode & 0o077:
        raise ConfigurationError(f"{path}: file permissions are too open: chmod 600 {path}")


def _link_count(path: Path) -> int:
    try:
        return path.stat().st_nlink
    except FileNotFoundError:
        return 0


def _replace_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see either the complete old content or the complete new one."""
    # A rename is atomic only within a file system, so the new content is written into the same folder.
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        # Path.open has no `opener`, which creates the file with private permissions.
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
    # The lock is a separate file, because the key file itself is replaced at each write.
    with open(path, "a", opener=_owner_only_opener) as file:
        try:
            import fcntl
        except ModuleNotFoundError:  # pragma: no cover  # Windows has no such locks
            pass
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(folder: Path) -> None:
    """Write the renaming of a file to disk."""
    if os.name != "posix":  # pragma: no cover  # other systems can't open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
