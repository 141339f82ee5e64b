"""Plaid's OpenAPI document, read from a file; what is compared with it and made from it shares this."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

Schema = dict[str, Any]


class UnreadableError(Exception):
    """There is no OpenAPI document to be had; the text says why."""


@frozen(eq=False)
class Specification:
    """An OpenAPI document whose schemas can be had without `$ref` and `allOf`.

    Attributes:
        document: as it was read. It isn't to be changed afterwards: what was resolved is kept.
    """

    document: Mapping[str, Any]
    _resolved: dict[int, Schema] = field(factory=dict, init=False, repr=False)

    @classmethod
    def at(cls, path: str | Path) -> Specification:
        """Read a YAML or JSON file.

        Raises:
            UnreadableError: it can't be read, or holds something else.
        """
        try:
            document = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableError(f"{path} can't be read: {error}") from error
        except yaml.YAMLError as error:
            raise UnreadableError(f"{path} is neither YAML nor JSON: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("paths"), dict):
            raise UnreadableError(f"{path} isn't an OpenAPI document: it has no paths")
        return cls(document)

    @property
    def version(self) -> tuple[int, ...]:
        """The document's own, such as (1, 697, 4) of `2020-09-14_1.697.4`."""
        written = str(self.document.get("info", {}).get("version"))
        found = re.fullmatch(r"\d{4}-\d\d-\d\d_(\d+)\.(\d+)\.(\d+)", written)
        if found is None:
            raise UnreadableError(
                f"the document's version is {written!r}, and not such as 2020-09-14_1.697.4"
            )
        return tuple(int(part) for part in found.groups())

    @property
    def paths(self) -> Mapping[str, Any]:
        """What can be called."""
        paths: Mapping[str, Any] = self.document["paths"]
        return paths

    def request(self, path: str) -> Schema | None:
        """Give the schema of what an operation takes as JSON."""
        return _of_json(self.paths[path]["post"].get("requestBody", {}))

    def answer(self, path: str) -> Schema | None:
        """Give the schema of what an operation answers in JSON; `None` for a file."""
        return _of_json(self.paths[path]["post"]["responses"]["200"])

    def examples(self, path: str) -> Iterator[Any]:
        """Give the document's own examples of an operation's answers."""
        for content in self.paths[path]["post"]["responses"]["200"].get("content", {}).values():
            for example in content.get("examples", {}).values():
                yield example["value"]

    def resolved(self, schema: Schema) -> Schema:
        """Give a schema with what its `$ref` and `allOf` lead to in their place.

        Plaid says `nullable` on one side of a reference or on the other. The outermost word counts; where a
        schema is made of others and says nothing itself, it is nullable if all of them are.
        """
        if id(schema) not in self._resolved:
            self._resolved[id(schema)] = self._merged(self._followed(schema))
        return self._resolved[id(schema)]

    def _followed(self, schema: Schema) -> Schema:
        if "$ref" not in schema:
            return schema
        target: Any = self.document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return {**self.resolved(target), **beside}

    def _merged(self, schema: Schema) -> Schema:
        parts = [self.resolved(part) for part in schema.get("allOf", ())]
        if not parts:
            return schema
        own = {key: value for key, value in schema.items() if key != "allOf"}
        merged: Schema = {"nullable": all(part.get("nullable", False) for part in parts)}
        for part in (*parts, own):
            inherited = {key: value for key, value in part.items() if part is own or key != "nullable"}
            properties = merged.get("properties", {}) | inherited.get("properties", {})
            required = [*merged.get("required", ()), *inherited.get("required", ())]
            merged.update(inherited)
            merged.update(properties=properties, required=required)
        return merged


def _of_json(body: Mapping[str, Any]) -> Schema | None:
    schema: Schema | None = body.get("content", {}).get("application/json", {}).get("schema")
    return schema
