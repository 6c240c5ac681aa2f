"""The file for `serve deploy`, checked key by key: Ray itself ignores keys that it does not know."""

import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ingest.errors import BadInput, NotFound

if TYPE_CHECKING:
    from serve.cluster.settings import FrontSettings, SlotSettings

_APPLICATIONS = ("serve.cluster.app:application", "serve.cluster.app:slot")


def check_serve_config(path: Path) -> str:
    """Checks a file of ours for `serve deploy`; says what it deploys.

    Raises:
        NotFound: there is no such file.
        BadInput: it is no YAML, has an unknown key or a wrong value anywhere, or its applications do not
            belong together; everything that is wrong is named.
    """
    from ray.serve.schema import ServeDeploySchema

    config = _read(path)
    wrong = list(_unknown(config, ServeDeploySchema, ""))
    deployed: Any = None
    try:
        deployed = ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        wrong += _told(error, "")
    if deployed is not None:
        wrong += _check_applications(config["applications"])
    if wrong:
        raise BadInput(f"{path}: {'; '.join(dict.fromkeys(wrong))}")
    names = [each["name"] for each in config["applications"]]
    return f"{path}: {len(names)} applications ({', '.join(names)})"


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}: check the spelling") from None
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise BadInput(f"{path} is no file for `serve deploy`: it has no `applications`")
    return config


def _unknown(value: Any, kind: Any, where: str) -> Iterator[str]:
    """Keys that no model has, wherever a model stands."""
    if isinstance(value, list):
        for place, each in enumerate(value):
            yield from _unknown(each, _element(kind), f"{where}[{place}]")
        return
    model = next((each for each in _alternatives(kind) if _is_model(each)), None)
    if not isinstance(value, Mapping) or model is None:
        return
    known = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, each in value.items():
        if key not in known:
            yield f"there is no key {_at(where, key)} (known: {', '.join(sorted(known))})"
        elif key == "runtime_env":
            yield from _unknown_to_ray(each, _at(where, key))
        else:
            yield from _unknown(each, known[key], _at(where, key))


def _unknown_to_ray(environment: Any, where: str) -> Iterator[str]:
    from ray.runtime_env import RuntimeEnv

    for key in environment if isinstance(environment, Mapping) else ():
        if key not in RuntimeEnv.known_fields:
            yield f"there is no key {_at(where, key)} (known: {', '.join(sorted(RuntimeEnv.known_fields))})"


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


def _at(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _told(error: ValidationError, where: str) -> list[str]:
    return [
        f"{_at(where, '.'.join(map(str, each['loc'])))}: {each['msg']}"
        for each in error.errors(include_url=False)
    ]


def _check_applications(applications: list[dict[str, Any]]) -> list[str]:
    """What is wrong with our applications: their `args`, their names, and how they go together."""
    from serve.cluster.settings import FrontSettings, SlotSettings, slot_application

    wrong: list[str] = []
    fronts: list[FrontSettings] = []
    slots: list[SlotSettings] = []
    for place, each in enumerate(applications):
        where = f"applications[{place}]"
        front = each["import_path"] == _APPLICATIONS[0]
        if each["import_path"] not in _APPLICATIONS:
            wrong.append(f"{where}.import_path is none of {', '.join(_APPLICATIONS)}")
            continue
        try:
            if front:
                fronts.append(FrontSettings.model_validate(each.get("args", {})))
                expected = fronts[-1].name
            else:
                slots.append(SlotSettings.model_validate(each.get("args", {})))
                expected = slot_application(slots[-1].name, slots[-1].slot)
        except ValidationError as error:
            wrong += _told(error, f"{where}.args")
            continue
        if each.get("name") != expected:
            wrong.append(f"{where}.name must be {expected}, by its args")
        if front != (each.get("route_prefix", "/") is not None):
            wrong.append(f"{where}.route_prefix must be {'a path' if front else 'null'}")
    return wrong or _check_together(fronts, slots)


def _check_together(fronts: "list[FrontSettings]", slots: "list[SlotSettings]") -> list[str]:
    if len(fronts) != 1:
        return [f"one application must be {_APPLICATIONS[0]}, and there are {len(fronts)}"]
    front, wrong = fronts[0], []
    if sorted(front.slots) != sorted(each.slot for each in slots):
        there = ", ".join(sorted(each.slot for each in slots)) or "none"
        wrong.append(f"{front.name} asks the slots {', '.join(front.slots)}, and these are deployed: {there}")
    for each in slots:
        for key in ("gallery", "groups", "name"):
            mine, theirs = getattr(front, key), getattr(each, key)
            if mine != theirs:
                wrong.append(f"slot {each.slot} has {key} {theirs}, and {front.name} has {mine}")
    return wrong
