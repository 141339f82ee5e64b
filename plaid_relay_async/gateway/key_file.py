"""The file of the callers' keys: JSON with mode 0600, which several processes may change."""

from __future__ import annotations

import contextlib
import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_origin

import cattrs
from attrs import fields, has
from cattrs.gen import make_dict_structure_fn

from plaid_relay_async import private_files
from plaid_relay_async.codec import DuplicateMemberError, unique_members
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.gateway.keys import RELAY_OPERATIONS, Key, new_key
from plaid_relay_async.redaction import Hidden, strip_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from plaid_relay_async.limits import RateLimit

_VERSION: Final = 1


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
            content = private_files.read(self.path)
        except FileNotFoundError:
            return ()
        except OSError as error:
            problem = error.strerror
        else:
            return _parse_keys(self.path, content)
        raise ConfigurationError(f"{self.path} can't be read: {problem}")

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
                private_files.create_folder(path.parent)
                # The lock is a separate file, because the key file itself is replaced at each write.
                stack.enter_context(private_files.lock_file(path.with_name(f".{path.name}.lock")))
                # Replacing a file with hard links would leave a revoked key under its other names.
                problem = "it has more than one name (hard links)" if _link_count(path) > 1 else None
            except OSError as error:
                problem = error.strerror
            if problem is not None:
                raise ConfigurationError(f"{self.path} can't be written: {problem}")
            yield path

    def _write(self, path: Path, keys: tuple[Key, ...]) -> None:
        content = {"version": _VERSION, "keys": [_converter.unstructure(key) for key in keys]}
        try:
            private_files.replace(path, Hidden(f"{json.dumps(content, indent=2)}\n".encode()))
        except OSError as error:
            problem = error.strerror
        else:
            return
        # Raised outside of `except`: a chained exception would refer to the frame of `add` with the key.
        raise ConfigurationError(f"{self.path} can't be written: {problem}")


def _link_count(path: Path) -> int:
    try:
        return path.stat().st_nlink
    except FileNotFoundError:
        return 0


# --------------------------------------------------------------------------------------------- the content


def _parse_keys(path: Path, raw: bytes) -> tuple[Key, ...]:
    try:
        content = json.loads(raw.decode("utf-8-sig", errors="replace"), object_pairs_hook=unique_members)
    except DuplicateMemberError:
        raise ConfigurationError(f"{path}: an object has two members of the same name") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or set(content) != {"version", "keys"}:
        raise ConfigurationError(f"{path} isn't a key file: JSON with `version` and `keys`")
    if content["version"] != _VERSION:
        raise ConfigurationError(f"{path}: $.version must be {_VERSION}; a newer release may read it")
    if not isinstance(content["keys"], list):
        raise ConfigurationError(f"{path}: $.keys must be a list")
    try:
        keys = tuple(_converter.structure(content["keys"], list[Key]))
    except cattrs.BaseValidationError as error:
        problem, _, place = cattrs.transform_error(error, "$.keys", _describe_error)[0].rpartition(" @ ")
    else:
        for name in ("name", "digest"):
            if len({getattr(key, name) for key in keys}) < len(keys):
                raise ConfigurationError(f"{path}: $.keys has the same {name} twice")
        return keys
    # Raised outside of `except`: the frames of the other error have the values of the file.
    raise ConfigurationError(f"{path}: {place}: {problem}")


def _describe_error(error: BaseException, _: object) -> str:
    # cattrs checks only that no field is unknown; the hooks and the records check the rest.
    return str(error.args[0]) if isinstance(error, ConfigurationError) else "has an unknown field"


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=True)
    # `Key` and `RateLimit` check the values. cattrs would convert them before, such as 5 to "5".
    for cls in (str, int, float):
        converter.register_structure_hook(cls, lambda value, _: value)
    converter.register_structure_hook(datetime, _parse_time)
    converter.register_structure_hook_factory(has, _complete_object_hook)
    converter.register_unstructure_hook(datetime, _format_time)
    converter.register_unstructure_hook_func(_is_frozenset, sorted)
    return converter


def _is_frozenset(cls: Any) -> bool:
    return get_origin(cls) is frozenset


def _complete_object_hook(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    structure_fields = make_dict_structure_fn(cls, converter)
    names = [attribute.name for attribute in fields(cls)]

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ConfigurationError("must be an object")
        # Every field is required. With defaults, a field that was lost would extend what the key allows.
        for name in names:
            if name not in value:
                raise ConfigurationError(f"the field {name} is missing")
        return structure_fields(value, cls)

    return structure


def _parse_time(value: Any, _: object) -> Any:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return value  # `Key` says what a time has to be


def _format_time(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


_converter: Final = _make_converter()
