"""Keys of a YAML file that no pydantic model has, wherever a model stands: Ray's own ignore them."""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError


def unknown_keys(value: Any, kind: Any, where: str = "") -> Iterator[str]:
    """What is wrong with each key that a model, or Ray's `runtime_env`, does not know.

    Args:
        value: as read from the file. kind: the model, or the annotation, that it is to fit.
        where: the place of the value in the file, such as `applications[0].args`.
    """
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from unknown_keys(each, _element(kind), f"{where}[{number}]")
        return
    model = next((each for each in _alternatives(kind) if _is_model(each)), None)
    if not isinstance(value, Mapping) or model is None:
        return
    known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, each in value.items():
        if key not in known:
            yield f"there is no key {place(where, key)} (known: {', '.join(sorted(known))})"
        elif key == "runtime_env":
            yield from _unknown_to_ray(each, place(where, key))
        else:
            yield from unknown_keys(each, known[key], place(where, key))


def place(where: str, key: object) -> str:
    """The place of a key in the file."""
    return f"{where}.{key}" if where else str(key)


def told(error: ValidationError, where: str = "") -> list[str]:
    """What a model says of a value, each with its place."""
    return [
        f"{place(where, '.'.join(map(str, each['loc'])))}: {each['msg']}"
        for each in error.errors(include_url=False)
    ]


def _unknown_to_ray(environment: Any, where: str) -> Iterator[str]:
    from ray.runtime_env import RuntimeEnv

    for key in environment if isinstance(environment, Mapping) else ():
        if key not in RuntimeEnv.known_fields:
            yield f"there is no key {place(where, key)} (known: {', '.join(sorted(RuntimeEnv.known_fields))})"


def _alternatives(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) is typing.Annotated:
        return _alternatives(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(found for each in typing.get_args(kind) for found in _alternatives(each))
    return (kind,)


def _element(kind: Any) -> Any:
    lists = [each for each in _alternatives(kind) if typing.get_origin(each) is list]
    return typing.get_args(lists[0])[0] if lists else None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
