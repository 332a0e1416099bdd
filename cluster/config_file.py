"""Reads a YAML file so that every complaint about it can name the key and the line."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from workers.core.errors import ConfigError
from workers.wire.redis_keys import without_password

Loc = Sequence[int | str]
ModelT = TypeVar("ModelT", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Without aliases, which can make a file endless, and with a line for every fault."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"aliases (*{event.anchor}) are not taken here", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # of dates, numbers and tags
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is no {node.tag.rpartition(':')[2]}", node.start_mark
            ) from error


class ConfigFile:
    """The parsed file: `data` as Python values, and where each of them stands."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError: unreadable, not YAML, a key twice, or no mapping."""
        self.path = path
        try:
            loader = _Loader(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (UnicodeDecodeError, yaml.reader.ReaderError):
            raise ConfigError(f"{path} is not a text file") from None
        try:
            self._root = loader.get_single_node()
            self._refuse_twins(self._root)
            self.data = loader.construct_document(self._root) if self._root else {}
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from None
        except RecursionError:
            raise ConfigError(f"{path}: nested too deeply") from None
        if not isinstance(self.data, dict):
            raise ConfigError(f"{path}: expected keys and values, found {_kind(self.data)}")

    def validate(self, model: type[ModelT]) -> ModelT:
        """`data` as a `model`. Raises ConfigError with every fault, each with key and line."""
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            lines = [
                f"{self.place(fault['loc'])}: {explain(fault, model)}" for fault in error.errors()
            ]
            raise ConfigError("\n".join(lines)) from None

    def place(self, loc: Loc) -> str:
        """`file:line` of the key at `loc`, or of the deepest one above it that is written down."""
        node, line = self._root, 0
        for step in loc:
            found = _child(node, step)
            if found is None:
                break
            key, node = found
            line = key.start_mark.line
        return f"{self.path}:{line + 1}"

    def _refuse_twins(self, node: yaml.Node | None) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise ConfigError(f"{self.path}:{line}: a key must be a word")
                if key.value in seen:
                    raise ConfigError(
                        f"{self.path}:{line}: the key {key.value!r} stands here twice"
                    )
                seen.add(key.value)
                self._refuse_twins(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._refuse_twins(item)


def anchored(section: ModelT, folder: Path) -> ModelT:
    """Relative paths in it, at any depth, are relative to `folder`."""
    moved: dict[str, Any] = {}
    for name in type(section).model_fields:
        part = getattr(section, name)
        if isinstance(part, Path):
            moved[name] = folder / part
        elif isinstance(part, BaseModel):
            moved[name] = anchored(part, folder)
    return section.model_copy(update=moved)


def explain(fault: Any, model: type[BaseModel]) -> str:
    """One pydantic fault in our words: the key, what is wrong, and what would be right."""
    loc = fault["loc"]
    key = ".".join(str(step) for step in loc) or "the file"
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_fields_at(model, loc[:-1]))
        return f"unknown key {key!r}; known here: {known}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{key}: {message} (got {_shown(fault['input'])!r})"


def _child(node: yaml.Node | None, step: int | str) -> tuple[yaml.Node, yaml.Node] | None:
    """The node that names the child `step` of `node`, and the child itself."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(step):
                return key, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _fields_at(model: type[BaseModel], loc: Loc) -> list[str]:
    """Names of the fields of the model that stands at `loc` below `model`."""
    steps = (step for step in loc if isinstance(step, str))
    for step in steps:
        annotation = model.model_fields[step].annotation
        model = _inner_model(annotation)
        if typing.get_origin(annotation) is dict:
            next(steps, None)  # the key, which no field is called by
    return list(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel]:
    """The model inside `Model`, `tuple[Model, ...]`, `dict[str, Model]` or `Model | None`."""
    if isinstance(annotation, types.GenericAlias | types.UnionType):
        inner = (arg for arg in typing.get_args(annotation) if arg not in (str, type(None)))
        return _inner_model(next(inner))
    assert isinstance(annotation, type) and issubclass(annotation, BaseModel), annotation
    return annotation


def _shown(value: object) -> object:
    if isinstance(value, dict):
        return {key: _shown(part) for key, part in value.items()}
    return without_password(value) if isinstance(value, str) and "://" in value else value


def _kind(value: object) -> str:
    return {list: "a list", str: "text", type(None): "nothing"}.get(
        type(value), type(value).__name__
    )
