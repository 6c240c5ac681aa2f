"""The file for `serve deploy`, checked key by key, and whether its applications go together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from deploy.schema_keys import told, unknown_keys
from ingest.errors import BadInput, NotFound
from serve.loopback import is_loopback

if TYPE_CHECKING:
    from serve.cluster.settings import FrontSettings, SlotSettings

_FRONT, _SLOT = "serve.cluster.app:application", "serve.cluster.app:slot"


def check_serve_config(path: Path) -> str:
    """Checks a file of ours for `serve deploy`; says what it deploys.

    Raises:
        NotFound: there is no such file.
        BadInput: it is no YAML, has an unknown key or a wrong value anywhere, or its applications do not
            belong together; everything that is wrong is named.
    """
    from ray.serve.schema import ServeDeploySchema

    config = _read(path)
    wrong = list(unknown_keys(config, ServeDeploySchema))
    try:
        deployed = ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        wrong += told(error)
    else:
        wrong += _check_applications(config["applications"], deployed.http_options.host)
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


@dataclass
class _Server:
    """The applications of one name."""

    fronts: "list[FrontSettings]" = field(default_factory=list)
    slots: "list[SlotSettings]" = field(default_factory=list)


def _check_applications(applications: list[dict[str, Any]], host: str | None) -> list[str]:
    """What is wrong with our applications: their `args`, their names, and how they go together."""
    servers: dict[str, _Server] = {}
    wrong: list[str] = []
    for number, each in enumerate(applications):
        where = f"applications[{number}]"
        if each["import_path"] not in (_FRONT, _SLOT):
            wrong.append(f"{where}.import_path is none of {_FRONT}, {_SLOT}")
        else:
            wrong += _check_application(each, where, servers)
    if wrong:
        return wrong
    return [each for name, server in servers.items() for each in _check_server(name, server, host)]


def _check_application(application: Mapping[str, Any], where: str, servers: dict[str, _Server]) -> list[str]:
    """What is wrong with one; notes its settings where they can be read."""
    from serve.cluster.settings import FrontSettings, SlotSettings, group_deployment, slot_application

    front, args = application["import_path"] == _FRONT, application.get("args", {})
    try:
        if front:
            asked = FrontSettings.model_validate(args)
            servers.setdefault(asked.name, _Server()).fronts.append(asked)
            expected, deployments = asked.name, ["ingress", "encoder", "reranker"]
        else:
            slot = SlotSettings.model_validate(args)
            servers.setdefault(slot.name, _Server()).slots.append(slot)
            expected = slot_application(slot.name, slot.slot)
            deployments = [group_deployment(group) for group in range(slot.groups)]
    except ValidationError as error:
        return told(error, f"{where}.args")
    wrong = []
    if application.get("name") != expected:
        wrong.append(f"{where}.name must be {expected}, by its args")
    if front != (application.get("route_prefix", "/") is not None):
        wrong.append(f"{where}.route_prefix must be {'a path' if front else 'null'}")
    for number, each in enumerate(application.get("deployments", ())):
        at = f"{where}.deployments[{number}]"
        if each["name"] not in deployments:
            wrong.append(f"{at}.name is none of {', '.join(deployments)}")
        elif not front and (each.get("num_replicas", 1) != 1 or "autoscaling_config" in each):
            wrong.append(f"{at}: a slot has one replica of each group: for more, add a slot")
    return wrong


def _check_server(name: str, server: _Server, host: str | None) -> list[str]:
    """What is wrong with how the applications of one name go together, and who could call them."""
    if len(server.fronts) != 1:
        return [f"one application of {name} must be {_FRONT}, and there are {len(server.fronts)}"]
    front, wrong = server.fronts[0], []
    if sorted(front.slots) != sorted(each.slot for each in server.slots):
        there = ", ".join(sorted(each.slot for each in server.slots)) or "none"
        wrong.append(f"{name} asks the slots {', '.join(front.slots)}, and these are deployed: {there}")
    for each in server.slots:
        for key in ("gallery", "groups"):
            mine, theirs = getattr(front, key), getattr(each, key)
            if mine != theirs:
                wrong.append(f"slot {each.slot} has {key} {theirs}, and {name} has {mine}")
    if front.keys_file is None and host is not None and not is_loopback(host):
        wrong.append(f"http_options.host {host} lets other machines in, and {name} has no keys_file")
    return wrong
