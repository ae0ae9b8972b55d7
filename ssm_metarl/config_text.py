"""The text side of the configuration: reading YAML and saying what is wrong with it. Knows no setting by name.

``settings`` below maps a setting's dotted key to its JSON schema (``config.settings()``): the sentences are made from
the bounds and choices that pydantic checks.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError

Settings = Mapping[str, Mapping[str, Any]]


class ConfigError(ValueError):
    """A configuration that cannot be used. One line per problem: source, key, value, rule and nearest name."""


class _Loader(yaml.SafeLoader):
    """Plain data only. A key given twice is an error; 2024-01-01, 1:30 and 010 are text, not a date, 90 and 8."""

    yaml_constructors: ClassVar = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in {"null", "bool", "int", "float", "str", "seq", "map"}
    }
    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in {"timestamp", "int"}]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"{plain(key.value)} is given twice: keep one"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """One YAML document as Python values. Raises ConfigError: not YAML, or a key that is given twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{place}{error.problem or error.context}") from error
    # PyYAML's own code raises these for odd scalars (!!int x, an integer of 5000 digits) and for a thousand brackets.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a UTF-8 YAML file. Raises ConfigError, which names the file."""
    try:
        tree = parse_yaml(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        near = did_you_mean(path.name, (other.name for other in path.parent.glob("*")))
        raise ConfigError(f"{plain(str(path))}: no such file{near}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}): save the file as UTF-8") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{plain(str(path))}: cannot be read as a YAML file: {reason}") from error
    if not isinstance(tree, dict):
        content = "empty" if tree is None else short(tree)
        raise ConfigError(f"{path}: must be a mapping of settings, such as 'seed: 1', but is {content}")
    return tree


def explain(error: ValidationError, tree: Mapping[Any, Any], settings: Settings) -> dict[str, str]:
    """Key -> what is wrong with it, one sentence each, for the configuration tree that pydantic refused."""
    sentences: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        setting, key = _where(tree, problem["loc"])
        # The first problem of a key is the closest: pydantic lists the branches of a union in order.
        sentences.setdefault(key, _sentence(problem, setting, key, settings))
    return sentences


def _where(tree: Any, loc: tuple[str | int, ...]) -> tuple[str, str]:
    """The setting that a location belongs to, and the key as the user wrote it: pydantic adds the branch of a union."""
    parts: list[str] = []
    for part in loc:
        if isinstance(tree, Mapping) and part in tree:
            parts.append(f".{plain(part)}")
        elif isinstance(tree, list | tuple) and isinstance(part, int):
            parts.append(f"[{part}]")
        else:
            break
        tree = tree[part]
    return "".join(parts[:2]).removeprefix("."), "".join(parts).removeprefix(".")


def _sentence(problem: Mapping[str, Any], setting: str, key: str, settings: Settings) -> str:
    value = problem["input"]
    if problem["type"] == "invalid_key":
        place = f" in {problem['loc'][0]}" if len(problem["loc"]) > 1 else ""
        return f"the key {short(value)}{place} is not a setting: keys are text"
    if problem["type"] == "extra_forbidden":
        return unknown_setting(key, settings)
    if problem["type"] == "value_error":
        return f"{key} = {short(value)} must be {problem['ctx']['error']}"
    schema = settings.get(setting)
    if schema is None:
        names = ", ".join(name.removeprefix(f"{key}.") for name in settings if name.startswith(f"{key}."))
        return f"{key} = {short(value)} must be a section: a mapping with any of {names}"
    schema = schema.get("items", schema) if key.endswith("]") else schema
    return f"{key} = {short(value)} must be {rule(schema)}{did_you_mean(value, _choices(schema))}"


_TYPES = {"integer": "a whole number", "number": "a finite number", "boolean": "true or false", "null": "null"}
_BOUNDS = {"exclusiveMinimum": "greater than", "minimum": "of at least", "maximum": "at most"}


def rule(schema: Mapping[str, Any]) -> str:
    """What a value must be, in words."""
    if "anyOf" in schema:
        return " or ".join(rule(branch) for branch in schema["anyOf"])
    if choices := _choices(schema):
        return ("one of " if len(choices) > 1 else "") + ", ".join(choices)
    if schema["type"] == "array":
        return f"a list, each {rule(schema['items'])}"
    if schema["type"] == "object":
        return "a mapping from a parameter's name to a distribution, such as {length: {uniform: [0.3, 1.0]}}"
    if schema["type"] == "string":
        return "non-empty text (in quotes where YAML would read a number)"
    bounds = [f"{words} {schema[name]:g}" for name, words in _BOUNDS.items() if name in schema]
    return " ".join([_TYPES[schema["type"]], " and ".join(bounds)]).strip()


def _choices(schema: Mapping[str, Any]) -> list[str]:
    branches = schema.get("anyOf", [schema])
    return [choice for branch in branches for choice in branch.get("enum", [branch.get("const")]) if choice is not None]


def unknown_setting(key: str, settings: Settings) -> str:
    """Names the nearest settings: of the same name in any section, else of a similar name, else all of the section."""
    section, _, leaf = key.rpartition(".")
    heads = list(dict.fromkeys(name.partition(".")[0] for name in settings))
    if inside := [name for name in settings if name.startswith(f"{key}.")]:
        return f"{key} is a section, not a setting: set {' or '.join(inside)}"
    namesakes = [name for name in settings if name.rpartition(".")[2] == leaf]
    siblings = [name.rpartition(".")[2] for name in settings if section and name.startswith(f"{section}.")]
    count = 1 if section else 3
    near = difflib.get_close_matches(key, namesakes, count, 0.0)
    near = near or [f"{section}.{name}" for name in difflib.get_close_matches(leaf, siblings, 1)]
    near = near or ([] if siblings else difflib.get_close_matches(key, sorted({*settings, *heads}), count))
    if near:
        return f"{plain(key)} is not a setting; did you mean {' or '.join(near)}?"
    known = f"{section} has {', '.join(siblings)}" if siblings else f"there are {', '.join(heads)}"
    return f"{plain(key)} is not a setting; {known}"


def did_you_mean(value: Any, names: Iterable[str]) -> str:
    """A clause with the nearest name, or nothing."""
    near = difflib.get_close_matches(value, list(names), 1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def plain(name: Any) -> str:
    """A name as it is, unless it would break the line."""
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 200 else short(name)


class _Shortener(reprlib.Repr):
    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"


_shortener = _Shortener()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 60
short = _shortener.repr
"""A value on one line, in YAML's words for true, false and null, cut: a YAML alias can make it endless."""
