"""From file, environment and command line to `Settings`, and from what pydantic says to what an operator can use."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from gateway.settings.checks import cross_check
from gateway.settings.model import Settings
from gateway.settings.values import Problem, SettingsError

PREFIX = "MQTT_GATEWAY__"


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of `path` (None: no file) < `environ` (None: this process's) < `overrides` (dotted key -> value or its text).

    Raises SettingsError with all mistakes.
    """
    named = {
        name[len(PREFIX) :].lower().replace("__", "."): (name, text)
        for name, text in (os.environ if environ is None else environ).items()
        if name.upper().startswith(PREFIX)
    }
    origins = {key: f"environment variable {name}" for key, (name, _) in named.items()} | dict.fromkeys(overrides or {}, "the command line")
    layers = [
        _nest(overrides or {}),
        _nest({key: text for key, (_, text) in named.items()}),
        {} if path is None else _read_toml(path),
    ]

    class Sources(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(_Layer(settings_cls, layer) for layer in layers)

    try:
        settings = Settings.model_construct(**dict(Sources()))
    except ValidationError as error:
        raise SettingsError([_problem(details, origins, path) for details in error.errors(include_url=False)]) from None
    problems = cross_check(settings)
    if problems:
        raise SettingsError(problems)
    return settings


class _Layer(PydanticBaseSettingsSource):
    """One of the sources, already read; pydantic-settings merges them."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError([Problem("", f"{path} can not be read ({error.strerror})", "Check the path given with --config.")]) from None
    except UnicodeDecodeError:
        raise SettingsError([Problem("", f"{path} is not UTF-8 text", "Save it as UTF-8.")]) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([Problem("", f"{path} is not TOML: {error}", "Correct that line.")]) from None


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": text} as {"a": {"b": value}}. Raises SettingsError when one key is both a value and a section."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise SettingsError([Problem(key, "is given as a value and as a section", "Remove one of the two.")])
        place[last] = _parse(key, value) if isinstance(value, str) else value
    return nested


def _parse(key: str, text: str) -> Any:
    """The value of a text from outside TOML; a list is JSON or separated by commas. Other kinds are converted by pydantic."""
    if not _is_list(key):
        return text
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            # JSONDecodeError keeps the whole text, which may hold secrets
            raise SettingsError([Problem(key, f"is not a JSON list ({error.msg})", 'Write ["a","b"] or a,b.')]) from None
    return [item.strip() for item in text.split(",") if item.strip()]


def _field_of(key: str) -> Any:
    model: Any = Settings
    annotation: Any = Settings
    for part in key.split("."):
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return None
        model = annotation = field.annotation
    return annotation


def _is_list(key: str) -> bool:
    return get_origin(_field_of(key)) is list


def _known_keys() -> list[str]:
    keys = []
    for section, field in Settings.model_fields.items():
        model: Any = get_args(field.annotation)[0] if get_origin(field.annotation) is list else field.annotation
        keys += [section, *(f"{section}.{name}" for name in model.model_fields)]
    return keys


def _problem(details: ErrorDetails, origins: Mapping[str, str], path: Path | None) -> Problem:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"]).lstrip(".")
    plain = ".".join(part for part in details["loc"] if isinstance(part, str))
    origin = origins.get(plain) or (str(path) if path is not None and plain not in origins else "")
    where = f" (from {origin})" if origin else ""
    kind = details["type"]
    if kind == "gateway":
        return Problem(key, details["ctx"]["problem"] + where, details["ctx"]["cure"])
    if kind == "extra_forbidden":
        return Problem(key, f"there is no such setting{where}", _suggest(plain))
    if kind == "missing":
        return Problem(key, f"is missing{where}", "Add it.")
    message = details["msg"][0].lower() + details["msg"][1:]
    given = details["input"]
    if isinstance(given, (str, int, float)) and "secret" not in plain and "password" not in plain and "accounts" not in plain:
        message += f", but it is {given!r}"
    return Problem(key, message + where, _default_of(plain))


def _suggest(key: str) -> str:
    known = [other for other in _known_keys() if other.count(".") == key.count(".")]
    name = key.rpartition(".")[2]
    close = [other for other in known if other.rpartition(".")[2] == name] or difflib.get_close_matches(key, known, n=1)
    return f"Did you mean {close[0]}?" if close else "Remove it; deploy/gateway.toml lists every setting."


def _default_of(key: str) -> str:
    value: Any = Settings()
    for part in key.split("."):
        value = getattr(value, part, None)
    if value is None or isinstance(value, (BaseModel, list)):
        return "deploy/gateway.toml shows how it is written."
    return f"The default is {str(value)!r}."
