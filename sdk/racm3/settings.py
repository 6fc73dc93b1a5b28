"""Settings: the annotated keyword arguments of a component's constructor, checked by pydantic."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from .errors import ConfigError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class Secret(str):
    """A setting that came from the environment: used like any str, never shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def settings_model(component: type) -> type[BaseModel]:
    """A pydantic model of a component's settings. Raises `TypeError` when they cannot be described.

    >>> class Shelf:
    ...     def __init__(self, width: int, label: str = "") -> None: ...
    >>> sorted(settings_model(Shelf).model_json_schema()["properties"])
    ['label', 'width']
    """
    from pydantic import ConfigDict, create_model
    from pydantic.errors import PydanticUserError

    fields: dict[str, Any] = {}
    constructor: Any = component.__init__  # type: ignore[misc]
    if constructor is not object.__init__:
        try:
            hints = get_type_hints(constructor, include_extras=True)
        except Exception as error:
            raise TypeError(f"an annotation of its constructor cannot be evaluated: {error}") from error
        for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise TypeError(f"its constructor takes {parameter}, where every setting is a keyword argument")
            if name == "name":
                raise TypeError("the setting 'name' cannot be given: in a pipeline file it is the component's name")
            if name not in hints:
                raise TypeError(f"the setting {name!r} has no annotation")
            fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    config = ConfigDict(extra="forbid", protected_namespaces=())
    try:
        model: type[BaseModel] = create_model(component.__name__, __config__=config, **fields)
        model.model_json_schema()
    except (PydanticUserError, NameError, TypeError) as error:
        raise TypeError(f"its settings cannot be described: {str(error).splitlines()[0]}") from error
    return model


def validate(model: type[BaseModel], settings: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """The settings that were given, as the constructor expects them. owner: in words, for the `ConfigError`."""
    from pydantic import ValidationError

    unknown = [key for key in settings if key not in model.model_fields]
    if unknown:
        known = ", ".join(model.model_fields) or "none"
        raise ConfigError(
            f"{owner} has no setting {unknown[0]!r}. Settings: {known}.", nearest(str(unknown[0]), model.model_fields)
        )
    try:
        checked = model.model_validate(dict(settings))
    except ValidationError as error:
        fault = first_fault(error)
    else:
        # Only what was given: the defaults stay the constructor's own business.
        return {key: getattr(checked, key) for key in settings}
    # Raised outside the handler: pydantic's error, as a context, would show every value, secrets too.
    if not fault.name:
        raise ConfigError(f"{owner}: {fault.said}.")
    if fault.kind == "missing":
        raise ConfigError(f"{owner} needs the setting {fault.name!r}.", f"Give {fault.name} = ...")
    raise ConfigError(f"{owner}: {fault.name} = {fault.given!r} is not valid: {fault.said}.")


class Fault(NamedTuple):
    """What pydantic found wrong first. name: the setting, with those that it is inside of; empty: several of them together.
    kind: pydantic's name for it."""

    name: str
    said: str
    kind: str
    given: Any


def first_fault(error: ValidationError) -> Fault:
    """The first of the errors, as it can be told."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(step) for step in first["loc"])
    return Fault(name, first["msg"].removeprefix("Value error, ").rstrip("."), first["type"], first["input"])
