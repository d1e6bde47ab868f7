"""Settings from arguments, the environment and `.env`, in that order of precedence.

pydantic-settings reads the values. This module adds:

- one documented variable per field,
- errors that name the variable and its possible values,
- the source of each value,
- a warning about unknown variables with names like ours.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
import textwrap
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from autogen_team._process.streams import SUPERVISED
from autogen_team.errors import ConfigurationError, ConfigurationWarning

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic.fields import FieldInfo

PREFIX = "AUTOGEN_TEAM_"
_PATTERNS = {f"{PREFIX}REDACT_PATTERNS", f"{PREFIX}REDACT_ALLOW"}
"""Variables of a context that affect masking in each service, so each service rejects invalid patterns."""

Source: TypeAlias = Literal["argument", "environment", ".env", "default"]

_MACHINERY = ("autogen_team.", "pydantic")
OF_RUN = frozenset(
    f"{PREFIX}RUN_{name}"
    for name in ("NAME", "DESCRIPTION", "TAGS", "KEEP_OUTPUT", "SYSTEM_METRICS", "REQUIRE_CLEAN", "JOB", "STALE")
)
"""Variables for options of `autogen-team run` that are not settings of a service."""
WORKER_OF = PREFIX + "WORKER_OF"
"""Variable that makes a process a worker, and names the run for which it works."""
_NOT_OF_SERVICES = frozenset(
    f"{PREFIX}{name}" for name in ("ALERT_ON", "ALERT_TITLE", "ALERT_MESSAGE", "REDACT_PATTERNS", "REDACT_ALLOW")
)
"""Settings of the context, whose class may not be loaded, and variables passed to a command that sends an alert."""
_variables = {WORKER_OF, SUPERVISED, *OF_RUN, *_NOT_OF_SERVICES}
"""Every variable that a class of settings reads."""
_prefixes: set[str] = set()
"""The prefix of each class's variables."""
_LOOKS_OURS = "AUTO"
_SIMILAR = 0.8
"""Minimum similarity (`difflib` ratio) for an unknown variable to count as a misspelling of one of ours."""
_reported: set[str] = set()
"""Unknown variables for which a warning has been issued."""


@dataclass(frozen=True, slots=True)
class Variable:
    """Annotation of a field whose variable differs from the class's prefix plus the field's name."""

    name: str


@dataclass(frozen=True, slots=True)
class Setting:
    """One field, for display."""

    name: str
    """`level`; in the settings of a context, `logger.level`."""
    variable: str
    value: str
    """Secrets masked."""
    source: Source
    description: str


class Settings(BaseSettings):
    """Immutable settings; an unknown field or an invalid value raises `ConfigurationError`."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        case_sensitive=True,
        env_file=".env",
        env_ignore_empty=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    __slots__ = ("_arguments",)

    variable_prefix: ClassVar[str] = ""
    """Prefix of the variables of this class."""
    argument_only: ClassVar[frozenset[str]] = frozenset()
    """Fields that no variable can set."""

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(_explain(cls, error, values)) from None
        except UnicodeDecodeError as error:
            raise _unreadable(error) from None
        object.__setattr__(self, "_arguments", frozenset(values))
        if cls.variable_prefix:
            warn_of_unknown_variables(cls.variable_prefix)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        _variables.update(cls.variables().values())
        _prefixes.update({cls.variable_prefix} - {"", PREFIX})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic-settings'
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let pydantic-settings read the environment and `.env`, and look up our own names in both."""
        return (
            init_settings,
            _Variables(settings_cls, env_settings),
            _Variables(settings_cls, dotenv_settings, has_secrets=True),
        )

    @classmethod
    def variables(cls) -> dict[str, str]:
        """Return the variable of each field that has one."""
        return {
            name: next(
                (extra.name for extra in field.metadata if isinstance(extra, Variable)),
                cls.variable_prefix + name.upper(),
            )
            for name, field in cls.model_fields.items()
            if name not in cls.argument_only
        }

    def settings(self) -> list[Setting]:
        """Return each field that has a variable, with its value and the source of the value."""
        cls = type(self)
        found, texts = _found(cls), descriptions(cls)
        return [
            Setting(name, variable, show(name, getattr(self, name)), self._source(name, found), texts.get(name, ""))
            for name, variable in cls.variables().items()
        ]

    def source(self, name: str) -> Source:
        """Return the source of a field's value."""
        return self._source(name, _found(type(self)))

    def _source(self, name: str, found: Mapping[str, tuple[Source, str]]) -> Source:
        if name in getattr(self, "_arguments", ()):
            return "argument"
        variable = self.variables().get(name, "")
        return found[variable][0] if variable in found else "default"

    def environment(self) -> dict[str, str]:
        """Return the variables that give the same settings to a process that inherits this environment.

        A variable is omitted if its field would have the same value without it. Secrets are omitted too, because an
        environment is shown in too many places. A child process inherits secrets that are already in the environment.
        """
        cls = type(self)
        found = _found(cls)
        texts = {}
        for name, variable in cls.variables().items():
            value = getattr(self, name)
            text = _as_text(value)
            default = cls.model_fields[name].get_default(call_default_factory=False)
            if text is not None and (value != default or variable in found):
                texts[variable] = text
        return texts

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Mask secrets, so that a service can be logged."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            yield name, value if not isinstance(value, str) else show(name, value)


@cache
def descriptions(cls: type[BaseModel]) -> Mapping[str, str]:
    """Return the docstring below each field in the source of a class and its bases.

    Pydantic's `use_attribute_docstrings` reads the source of each class at each import, which takes 37 ms for our
    services. Few processes need the docstrings, so this function reads the source at its first call.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, BaseModel) or base in (BaseModel, BaseSettings):
            continue
        with suppress(OSError, TypeError, SyntaxError):  # defined at a prompt, or with text at the left margin
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(definition, ast.ClassDef)
            for field, text in pairwise(definition.body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                        found[name] = inspect.cleandoc(said)
    return found


def _as_text(value: object) -> str | None:
    """Return the text of a variable that gives a field this value; None for a secret."""
    if isinstance(value, tuple):
        texts = [_as_text(item) for item in value]
        return None if None in texts else "\n".join(filter(None, texts))
    if isinstance(value, SecretStr):
        return None
    return "none" if value is None else str(value)


def show(name: str, value: object) -> str:
    """Return the value of the field or variable `name` as text for display, secrets masked."""
    # Imported here, because compiling the patterns takes about 6 ms, which would delay each import of the services.
    from autogen_team._redact import MASK, is_secret_name, mask

    if isinstance(value, tuple):
        return " ".join(show(name, item) for item in value)
    if isinstance(value, SecretStr):
        return MASK
    text = value if isinstance(value, str) else repr(value)
    return MASK if text and is_secret_name(name) else mask(text)


def warn_of_unknown_variables(prefix: str) -> None:
    """Warn once per process about each unknown variable, and suggest the most similar known one.

    This covers variables with `prefix`, and variables that look like ours but have no prefix of any class.
    """
    known = sorted(name for name in _variables if name.startswith(PREFIX))
    for variable, (place, _) in _found(Settings).items():
        if variable in _variables or variable in _reported or not variable.upper().startswith(_LOOKS_OURS):
            continue
        is_own = variable.startswith(prefix)
        if not is_own and variable.startswith(tuple(_prefixes)):
            continue  # reported by the service with that prefix
        least = 0.0 if is_own else _SIMILAR
        near = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=least)
        if near:
            _reported.add(variable)
            message = f"unknown variable {variable} ({place}); did you mean {near[0]}?"
            warnings.warn(message, ConfigurationWarning, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """Return the stack level, as `warnings.warn` counts, of the code that created the service."""
    frame, level = sys._getframe(1), 1  # noqa: SLF001 - as the module `warnings` itself does
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_MACHINERY):
        frame, level = frame.f_back, level + 1
    return level


class _Variables(PydanticBaseSettingsSource):
    """The environment or `.env`, as read by pydantic-settings, reduced to the variables of one class."""

    def __init__(
        self, settings_cls: type[BaseSettings], source: PydanticBaseSettingsSource, *, has_secrets: bool = False
    ) -> None:
        super().__init__(settings_cls)
        self._texts: Mapping[str, str | None] = cast("EnvSettingsSource", source).env_vars
        for variable in _PATTERNS & self._texts.keys():
            from autogen_team import _redact

            _redact.check(variable, self._texts[variable] or "")
        if has_secrets and self._texts:  # the redactor reads the environment itself
            from autogen_team._redact import values

            values.learn(self._texts)
        self._variables = cast("type[Settings]", settings_cls).variables()

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - as above
        return self._texts.get(self._variables.get(field_name, "")), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the texts found, for pydantic to convert."""
        found = {name: self._texts.get(variable) for name, variable in self._variables.items()}
        # A name in `.env` without an equals sign has no text, and counts as an empty value.
        return {name: none_or_text(self.settings_cls, name, text) for name, text in found.items() if text is not None}


def none_or_text(cls: type[BaseSettings], name: str, text: str) -> str | None:
    """Return None for the word ``none`` if the field accepts None, and otherwise the text."""
    takes_none = NoneType in get_args(cls.model_fields[name].annotation)
    return None if takes_none and text.lower() == "none" else text


def _found(cls: type[Settings]) -> dict[str, tuple[Source, str]]:
    """Return the source and text of every variable, known or not; the environment takes precedence over `.env`."""
    try:
        dotenv = DotEnvSettingsSource(cls).env_vars
    except UnicodeDecodeError as error:
        raise _unreadable(error) from None
    environment = EnvSettingsSource(cls).env_vars
    found: dict[str, tuple[Source, str]] = {name: (".env", text or "") for name, text in dotenv.items()}
    found.update((name, ("environment", text or "")) for name, text in environment.items())
    return found


def of_file() -> dict[str, str]:
    """Return the text of each variable that only `.env` sets."""
    return {variable: text for variable, (place, text) in _found(Settings).items() if place == ".env"}


def _unreadable(error: UnicodeDecodeError) -> ConfigurationError:
    return ConfigurationError(f".env is not valid UTF-8: {error.reason} at byte {error.start}")


def _explain(cls: type[Settings], error: ValidationError, arguments: Mapping[str, object]) -> str:
    found = _found(cls)
    variables = cls.variables()
    lines = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        if fault["type"] == "default_factory_not_called":  # it follows from the error of another field
            continue
        name = str(fault["loc"][0]) if fault["loc"] else ""
        problem = fault["msg"].removeprefix("Value error, ")
        variable = variables.get(name, "")
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(cls.model_fields)}"
            lines.append(f"{cls.__name__} has no field {name!r}; {hint}")
        elif name in arguments:
            hint = f" (or the variable {variable})" if variable else ""
            lines.append(f"{cls.__name__}.{name} is {_shown(cls, name, arguments[name])}{hint}: {problem}")
        elif variable in found:
            place, text = found[variable]
            lines.append(f"{variable} is {_shown(cls, name, text)} ({place}): {problem}")
        else:
            lines.append(f"{cls.__name__}{'.' if name else ''}{name}: {problem}")
    return "\n".join(lines)


def _shown(cls: type[Settings], name: str, value: object) -> str:
    """Format a rejected value, which may have another type than the field, with secrets masked."""
    field = cls.model_fields.get(name)
    if field is not None and SecretStr.__name__ in str(field.annotation):
        value = SecretStr("")
    return repr(show(name, value))
