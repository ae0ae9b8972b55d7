"""The command line of a command: its own arguments by tyro, ``--section.field VALUE`` as overrides for ``load_config``.

tyro draws the help (fields, meanings, defaults) and parses what belongs to a command alone, such as RUN or --config.
The settings do not pass through its parser: they become dotted overrides, so that a value meets one rule and one
wording whether it comes from a file, the command line or a sweep, and presets yield to explicit values in any order.

A value is read as YAML (``0.3``, ``true``, ``null``, ``'{length: {uniform: [0.3, 1]}}'``), a text setting as it stands.
Keys take hyphens or underscores, ``--key=value`` works, a bool alone is true, a list takes the words up to the next
option, and of two values for a key the last one counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import yaml

from ssm_metarl.config import ConfigError, TrainConfig, load_config, parse_yaml, settings
from ssm_metarl.config_text import rule

Command = TypeVar("Command")


def parse(command: type[Command], argv: Sequence[str], prog: str) -> tuple[Command, dict[str, Any]]:
    """A command's own arguments and the dotted overrides of the configuration.

    ``command`` is a dataclass: fields are options, ``tyro.conf.Positional`` makes arguments, docstrings are the help.
    Exits with 0 after --help, with 2 where the command's own arguments are wrong. Raises ConfigError for an override
    without a value.

    Example: ``parse(Train, ["--config", "a.yaml", "--inner.lr", "0.2"], "ssm-metarl train")`` returns
    ``(Train(config=Path("a.yaml")), {"inner.lr": 0.2})``.
    """
    own, overrides = _split(argv, [field.name for field in dataclasses.fields(command)])
    if {"-h", "--help"} & set(own):
        _print_help(command, own, overrides, prog)
    import tyro  # Costs 0.1 s, and nothing before this line needs it.

    return tyro.cli(command, args=own, prog=prog, use_underscores=True), overrides


@contextlib.contextmanager
def exit_when_wrong(*errors: type[Exception]) -> Iterator[None]:
    """A ConfigError (or one of ``errors``) inside it ends the program: message on stderr, status 2, no traceback."""
    try:
        yield
    except (ConfigError, *errors) as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        raise SystemExit(2) from None


def _split(argv: Sequence[str], own_names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """What belongs to the command, as it stands, and the overrides."""
    own: list[str] = []
    overrides: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        key, has_value, value = token.removeprefix("--").partition("=")
        key = _underscored(key)
        if not _is_option(token) or key == "help":
            own.append(token)
        elif key in own_names:
            own += [token] if has_value else [token, *_take(rest, 1)]
        else:
            _refuse_misspelt(key, own_names)
            # The name of an attribute may have dots of its own: --env.vary.model.body_mass.
            setting = ".".join(key.split(".")[:2]) if key.startswith(("env.vary.", "env.kwargs.")) else key
            schema = settings().get(setting, {})
            words = [value] if has_value else _take(rest, len(rest) if schema.get("type") == "array" else 1)
            overrides[key] = _value(key, schema, words)
    return own, overrides


def _is_option(token: str) -> bool:
    return token.startswith("--") and token[2:3].isalpha()


def _take(rest: list[str], count: int) -> list[str]:
    taken = []
    while rest and len(taken) < count and not _is_option(rest[0]):
        taken.append(rest.pop(0))
    return taken


def _underscored(key: str) -> str:
    # The third part is the name of an environment's attribute (--env.vary.NAME): not ours to change.
    section, dot, rest = key.partition(".")
    field, dot_2, name = rest.partition(".")
    return f"{section}{dot}{field}".replace("-", "_") + dot_2 + name


def _refuse_misspelt(key: str, own_names: Sequence[str]) -> None:
    near = difflib.get_close_matches(key, [*own_names, *settings()], 1)
    if key not in settings() and near and near[0] in own_names:
        raise ConfigError(f"command line: --{key} is not an option; did you mean --{near[0]}?")


def _value(key: str, schema: Mapping[str, Any], words: Sequence[str]) -> Any:
    types = {branch.get("type") for branch in schema.get("anyOf", [schema])}
    if not words and types == {"boolean"}:
        return True
    if not words and schema:
        raise ConfigError(f"command line: --{key} needs a value: {rule(schema)}")
    if not schema:
        return None  # An unknown key: load_config says so, whatever its value.
    if "array" in types and not words[0].startswith(("[", "{")):
        return list(words)
    if "null" in types and words[0] in ("None", "null"):
        return None
    if types <= {"string", "null"}:
        return words[0]
    try:
        return parse_yaml(words[0])
    except ConfigError as error:
        if words[0].startswith(("[", "{")):
            raise ConfigError(f"command line: --{key} {words[0]}: not valid YAML: {error}") from error
        return words[0]


def _print_help(command: type, own: Sequence[str], overrides: Mapping[str, Any], prog: str) -> None:
    """Shows the settings with the defaults that the file and the preset on this command line give them, and exits."""
    import tyro

    words = [word for token in own for word in token.split("=", 1)]
    path = next((after for option, after in itertools.pairwise(words) if option == "--config"), None)
    defaults = TrainConfig()
    # Help must come even where the settings are wrong: that is when it is needed.
    with contextlib.suppress(ConfigError):
        defaults = load_config(path, overrides)
    fields = [
        ("own", Annotated[command, tyro.conf.arg(name="")]),
        ("settings", Annotated[TrainConfig, tyro.conf.arg(name="")], dataclasses.field(default=defaults)),
    ]
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_mapping_in_help)
    with registry:
        tyro.cli(
            dataclasses.make_dataclass("Both", fields),
            args=["--help"],
            prog=prog,
            description=command.__doc__,
            config=(tyro.conf.FlagConversionOff,),
            use_underscores=True,
        )


def _mapping_in_help(info: Any) -> Any:
    import tyro

    if info.type_origin is not dict:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="YAML",
        instance_from_str=lambda words: parse_yaml(words[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [yaml.safe_dump(value, default_flow_style=True, width=1000).strip()],
    )
