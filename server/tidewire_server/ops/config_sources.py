"""
Where the values of options come from: flags over environment over file over defaults, with the
origin of each kept.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from tidewire_server.ops.config import Config, ConfigError, Section, check

ENV_PREFIX: Final = "TIDEWIRE_"
ENV_FILE: Final = "TIDEWIRE_CONFIG"
FILE_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """
    Values of one source.

    Attributes:
        values: By section, then key; text where the source knows nothing else.
        origins: Where each value was set, by (section, key).
        is_text: True: numbers, booleans and lists are written as text.

    """

    values: Mapping[str, Mapping[str, Any]]
    origins: Mapping[tuple[str, str], str]
    is_text: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """
    A configuration and where each value is from: "default", a file, an environment variable or a
    flag.
    """

    config: Config
    origins: Mapping[tuple[str, str], str]


def load(
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, str] | None = None,
) -> Loaded:
    """
    Read all sources, lay them over each other and check the outcome.

    Args:
        file: TOML file; ``None``: the one ``TIDEWIRE_CONFIG`` names, or none.
        environ: Variables; those named ``TIDEWIRE_SECTION__KEY`` are options.
        flags: Options of the command line: ``{"section.key": text}``.

    Raises:
        ConfigError: A file that cannot be read, an unknown option, a value that does not fit.

    """
    if file is None and environ.get(ENV_FILE):
        file = Path(environ[ENV_FILE])
    layers = [from_file(file)] if file else []
    layers += [from_environ(environ), from_flags(flags or {})]
    values: dict[str, dict[str, Any]] = {}
    origins = {(s, key): "default" for s, kind in sections().items() for key in keys(kind)}
    for layer in layers:
        for (section, key), origin in layer.origins.items():
            value = layer.values[section][key]
            values.setdefault(section, {})[key] = _convert(section, key, value, origin, layer)
            origins[section, key] = origin
    made: dict[str, Any] = {name: kind(**values.get(name, {})) for name, kind in sections().items()}
    config = Config(**made)
    check(config)
    return Loaded(config, origins)


def sections() -> dict[str, type[Section]]:
    """The sections by name."""
    return {field.name: field.type for field in msgspec.structs.fields(Config)}


def keys(section: type[Section]) -> dict[str, Any]:
    """The options of a section by name, with their types."""
    return {field.name: field.type for field in msgspec.structs.fields(section)}


def describe(section: str, key: str) -> str:
    """What an option is."""
    annotation = keys(sections()[section])[key]
    metas = getattr(annotation, "__metadata__", ())
    return next((m.description for m in metas if m.description), "")


def from_file(path: Path) -> Layer:
    """Read a TOML file of at most 1 MiB."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(
                f"{path} is larger than {FILE_BYTES_MAX} bytes; is it a configuration?"
            )
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    origins: dict[tuple[str, str], str] = {}
    for section, options in values.items():
        if not isinstance(options, dict):
            raise ConfigError(f"{path}: {_unknown_option(section)}")
        for key in options:
            _require_known(section, key, f"{path}: ")
            origins[section, key] = str(path)
        _require_section(section, f"{path}: ")
    return Layer(values, origins, is_text=False)


def from_environ(environ: Mapping[str, str]) -> Layer:
    """
    Take the variables named ``TIDEWIRE_SECTION__KEY``; others, such as ``TIDEWIRE_URL``, are not
    the server's.
    """
    values: dict[str, dict[str, Any]] = {}
    origins: dict[tuple[str, str], str] = {}
    for name in sorted(environ):
        section, double, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if not name.startswith(ENV_PREFIX) or not double:
            continue
        _require_known(section, key, f"environment variable {name}: ")
        values.setdefault(section, {})[key] = environ[name]
        origins[section, key] = name
    return Layer(values, origins, is_text=True)


def from_flags(flags: Mapping[str, str]) -> Layer:
    """Take ``section.key`` texts of a command line."""
    values: dict[str, dict[str, Any]] = {}
    origins: dict[tuple[str, str], str] = {}
    for name, text in flags.items():
        section, dot, key = name.partition(".")
        if not dot:
            raise ConfigError(f"{name!r} is not section.key; {_unknown_option(name)}")
        _require_known(section, key, "")
        values.setdefault(section, {})[key] = text
        origins[section, key] = "flag"
    return Layer(values, origins, is_text=True)


def _convert(section: str, key: str, value: Any, origin: str, layer: Layer) -> Any:
    annotation = keys(sections()[section])[key]
    if layer.is_text:
        value = _parse(section, key, value)
    try:
        return msgspec.convert(value, annotation, strict=not layer.is_text)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{section}.{key} (set by {origin}) does not fit: {_explain(error, annotation)}"
        ) from error


def _explain(error: msgspec.ValidationError, annotation: Any) -> str:
    text = f"{error}".replace(" - at `$`", "")
    text = text[:1].lower() + text[1:]
    for kind in (annotation, *get_args(annotation), *get_args(get_args(annotation)[0])):
        if get_origin(kind) is Literal:
            return f"{text}; known are {', '.join(get_args(kind))}"
    return text


def _parse(section: str, key: str, text: str) -> Any:
    """Turn text into a list where the option is one: JSON, or items between commas."""
    default = getattr(sections()[section](), key)
    if not isinstance(default, list):
        return text
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{section}.{key} is not a JSON list: {error}") from error


def _require_section(section: str, where: str) -> None:
    if section not in sections():
        raise ConfigError(f"{where}unknown section [{section}]{_suggestion(section, sections())}")


def _require_known(section: str, key: str, where: str) -> None:
    _require_section(section, where)
    known = keys(sections()[section])
    if key not in known:
        raise ConfigError(f"{where}unknown key {key!r} in [{section}]{_suggestion(key, known)}")


def _unknown_option(name: str) -> str:
    """Say that an option stands outside of any section, and where it belongs when that is plain."""
    homes = [section for section, kind in sections().items() if name in keys(kind)]
    if homes:
        return f"{name!r} belongs in section [{homes[0]}]"
    return f"unknown section {name!r}{_suggestion(name, sections())}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"
