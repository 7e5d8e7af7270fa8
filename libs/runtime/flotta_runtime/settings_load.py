"""Where the values of a Settings class come from, and the sentence that says which of them is wrong.

Pure apart from reading the one TOML file: flags and environment come in as arguments.
"""

from __future__ import annotations

import argparse
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

if TYPE_CHECKING:
    from flotta_runtime.settings import Settings

MASK = "**********"


class SourceError(Exception):
    """A flag or file that cannot be understood; the text is one sentence."""


@dataclass(slots=True)
class Sources:
    """Values by field name, per source, and what to call each source."""

    flags: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, Any] = field(default_factory=dict)
    environ_names: dict[str, str] = field(default_factory=dict)
    file: dict[str, Any] = field(default_factory=dict)
    file_path: str = ""
    print_config: bool = False

    def merged(self) -> dict[str, Any]:
        """One value per field, the strongest source's."""
        return {**self.file, **self.environ, **self.flags}

    def origin(self, name: str) -> str:
        """Where the value of field `name` came from, in words."""
        if name in self.flags:
            return f"flag {flag(name)}"
        if name in self.environ:
            return f"environment variable {self.environ_names[name]}"
        if name in self.file:
            return f"{self.file_path}"
        return "default"


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def variables(cls: type[Settings], name: str) -> tuple[str, ...]:
    """The environment variables of a field, the strongest first."""
    extra = cls.model_fields[name].json_schema_extra
    more = extra.get("env", []) if isinstance(extra, dict) else []
    return (f"FLOTTA_{cls.service.upper()}_{name.upper()}", *(str(v) for v in (more if isinstance(more, list) else [])))


def gather(cls: type[Settings], argv: Sequence[str], environ: Mapping[str, str]) -> Sources:
    """Read flags, environment and the file that `--config` or FLOTTA_<SERVICE>_CONFIG names."""
    parsed = vars(_parser(cls).parse_args(list(argv)))
    config = parsed.pop("config") or environ.get(f"FLOTTA_{cls.service.upper()}_CONFIG")
    sources = Sources(print_config=parsed.pop("print_config"))
    sources.flags = {name: value for name, value in parsed.items() if value is not None}
    for name in cls.model_fields:
        for variable in variables(cls, name):
            if variable in environ:
                sources.environ[name] = environ[variable]
                sources.environ_names[name] = variable
                break
    if config:
        sources.file_path = str(config)
        sources.file = _read_file(cls, Path(config))
    return sources


def _read_file(cls: type[Settings], path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SourceError(f"the config file {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"the config file {path} is not valid TOML: {error}") from error
    for key in content:
        if key not in cls.model_fields:
            near = difflib.get_close_matches(key, cls.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the keys are {', '.join(sorted(cls.model_fields))}"
            raise SourceError(f"{path}: unknown key {key!r}{hint}")
    return content


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SourceError(f"{message} (see --help)")


def _parser(cls: type[Settings]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"flotta-{cls.service}",
        description=(cls.__doc__ or "").strip().split("\n")[0],
        epilog="Precedence: flags, then environment variables, then the config file, then defaults.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file whose keys are the field names below")
    parser.add_argument("--print-config", action="store_true", help="print the effective settings and end")
    for name, info in cls.model_fields.items():
        text = f"{info.description or ''} [{default_text(info)}; {', '.join(variables(cls, name))}]".replace("%", "%%")
        if info.annotation is bool:
            parser.add_argument(flag(name), dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag(name), dest=name, metavar=_metavar(info), default=None, help=text)
    return parser


def _metavar(info: FieldInfo) -> str:
    if info.annotation is int:
        return "N"
    choices = get_args(info.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    return "VALUE"


def default_text(info: FieldInfo) -> str:
    """The default of a field in words."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None or value == () or value == "":
        return "default: unset"
    return f"default: {plain(value)}"


def plain(value: object) -> str:
    """A setting's value as it would be typed on the command line; secrets masked."""
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join("=".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return str(value)


def explain(error: ValidationError, sources: Sources) -> str:
    """The first thing wrong, as one sentence: key, problem, where the value came from."""
    first = error.errors(include_url=False)[0]
    problem = first["msg"].removeprefix("Value error, ")
    problem = problem[:1].lower() + problem[1:] if first["type"] != "value_error" else problem
    if not first["loc"]:
        return problem
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return f"{name} is required; give {flag(name)}"
    shown = ""
    if (
        first["type"] != "value_error"
        and not isinstance(first["input"], SecretStr)
        and "token" not in name
        and "key" not in name
    ):
        shown = f", not {first['input']!r}"
    return f"{name}: {problem}{shown} (from {sources.origin(name)})"


def render_config(settings: Settings, sources: Sources) -> str:
    """The effective settings as TOML with the origin of each; unset values and secrets as comments."""
    lines = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        comment = f"  # {sources.origin(name)}"
        if value is None:
            lines.append(f"# {name} is unset")
        elif isinstance(value, SecretStr):
            lines.append(f"# {name} = {json.dumps(MASK)}{comment}")
        elif isinstance(value, bool | int):
            lines.append(f"{name} = {plain(value)}{comment}")
        else:
            lines.append(f"{name} = {json.dumps(plain(value), ensure_ascii=False)}{comment}")
    return "\n".join(lines) + "\n"
