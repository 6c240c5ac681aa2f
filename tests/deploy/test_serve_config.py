"""The file for `serve deploy`: the shipped one is right, and no key of it can be misspelt unnoticed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import deploy
from deploy.ray_environment import REQUEST_TIMEOUT_S
from deploy.serve_config import check_serve_config
from ingest.errors import BadInput, NotFound
from serve.api import SearchOptions
from serve.http.settings import HttpSettings

SHIPPED = Path(deploy.__file__).with_name("serve_config.yaml")
_GROUP_0 = "    deployments: [{name: group-0, "


def changed(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """The shipped file with pieces of its text replaced, each of which it has."""
    text = SHIPPED.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return file


def test_the_shipped_file_deploys_two_slots_and_a_front() -> None:
    assert check_serve_config(SHIPPED).endswith("3 applications (reseen-a, reseen-b, reseen)")


def test_other_machines_may_come_in_with_keys(tmp_path: Path) -> None:
    check_serve_config(changed(tmp_path, ("host: 127", "host: 10"), ("keys_file: null", "keys_file: /keys")))


def test_several_servers_share_a_cluster_by_their_names(tmp_path: Path) -> None:
    config = yaml.safe_load(SHIPPED.read_text())
    both = [*config["applications"], *(_renamed(each) for each in config["applications"])]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**config, "applications": both}))
    assert check_serve_config(file).endswith(
        "6 applications (reseen-a, reseen-b, reseen, more-a, more-b, more)"
    )
    file.write_text(yaml.safe_dump({**config, "applications": both[:-1]}))
    with pytest.raises(BadInput, match="one application of more must be"):
        check_serve_config(file)


def _renamed(application: dict[str, Any]) -> dict[str, Any]:
    prefix = application["route_prefix"] and "/more"
    name = application["name"].replace("reseen", "more")
    return {
        **application,
        "name": name,
        "route_prefix": prefix,
        "args": {**application["args"], "name": "more"},
    }


def test_both_ways_to_start_give_a_request_up_after_the_same_time() -> None:
    given = yaml.safe_load(SHIPPED.read_text())["http_options"]["request_timeout_s"]
    longest = next(
        each.le for each in SearchOptions.model_fields["timeout_ms"].metadata if hasattr(each, "le")
    )
    assert given == REQUEST_TIMEOUT_S > longest / 1e3 + HttpSettings().body_timeout_s


@pytest.mark.ray
def test_the_shipped_file_builds_the_deployments_that_it_promises() -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve._private.build_app import build_app
    from ray.serve._private.utils import import_attr

    built = {}
    for each in yaml.safe_load(SHIPPED.read_text())["applications"]:
        args = {**each["args"], "groups": 2}
        application = call_user_app_builder_with_args_if_necessary(import_attr(each["import_path"]), args)
        deployments = build_app(application, name=each["name"]).deployments
        built[each["name"]] = {deployment.name: deployment for deployment in deployments}
    assert {name: set(found) for name, found in built.items()} == {
        "reseen-a": {"group-0", "group-1"},
        "reseen-b": {"group-0", "group-1"},
        "reseen": {"ingress", "encoder", "reranker"},
    }
    for deployment in (each for found in built.values() for each in found.values()):
        assert deployment.max_ongoing_requests > 5, "Ray's default is 5 at once"
        assert deployment.max_queued_requests > 0, "Ray's default is a queue without end"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("port: 8000", "prt: 8000", r"http_options\.prt"),
        ("proxy_location:", "proxy_locaton:", "proxy_locaton"),
        ("route_prefix: /", "route_prefx: /", r"applications\[2\]\.route_prefx"),
        ("encoder_cpus: 1", "encoder_cpu: 1", r"applications\[2\]\.args\.encoder_cpu:"),
        ("cpus: 1\n", "cpu: 1\n", r"applications\[0\]\.args\.cpu:"),
        ("port: 8000", "port: many", r"http_options\.port"),
        ("groups: 1 #", "groups: 0 #", r"applications\[0\]\.args\.groups"),
        ("groups: 1 #", "groups: 2 #", "slot a has groups 2, and reseen has 1"),
        ("slots: [a, b]", "slots: [a]", "asks the slots a, and these are deployed: a, b"),
        ("slot: b", "slot: c", r"applications\[1\]\.name must be reseen-c"),
        ("name: reseen-a", "name: reseen-x", r"applications\[0\]\.name must be reseen-a"),
        ("serve.cluster.app:application", "serve.cluster.app:app", r"applications\[2\]\.import_path"),
        ("route_prefix: null", "route_prefix: /a", r"applications\[0\]\.route_prefix must be null"),
        ("      encoder_cpus: 1\n", "      service: {pol_s: 1}\n", r"args\.service\.pol_s"),
        ("num_replicas: 2", "num_replica: 2", r"deployments\[0\]\.num_replica "),
        ("max_replicas: 4", "max_replica: 4", r"deployments\[1\]\.autoscaling_config\.max_replica "),
        ("name: encoder", "name: encodr", r"deployments\[1\]\.name is none of ingress, encoder, reranker"),
        ("    args: &slot\n", _GROUP_0 + "num_replicas: 2}]\n    args: &slot\n", "one replica of each group"),
        (
            "    args: &slot\n",
            _GROUP_0 + "autoscaling_config: {}}]\n    args: &slot\n",
            "one replica of each",
        ),
        (
            "host: 127.0.0.1",
            "host: 0.0.0.0",
            r"0\.0\.0\.0 lets other machines in, and reseen has no keys_file",
        ),
        ("  host: 127.0.0.1", "  #", r"host 0\.0\.0\.0 lets other machines in"),  # Ray's default
        (
            "    route_prefix: /\n",
            "    route_prefix: /\n    runtime_env: {env_var: {A: b}}\n",
            r"runtime_env\.env_var ",
        ),
        ("num_replicas: 2", "ray_actor_options: {num_cpu: 1}", r"ray_actor_options\.num_cpu "),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        check_serve_config(changed(tmp_path, (old, new)))


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = changed(tmp_path, ("port: 8000", "prt: 8000"), ("encoder_cpus: 1", "encoder_cpu: 1"))
    with pytest.raises(BadInput, match=r"(?s)http_options\.prt.*args\.encoder_cpu"):
        check_serve_config(file)


def test_what_is_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        check_serve_config(tmp_path / "absent.yaml")
    for text in ("[1, 2]", "a: [", "applications: {}", "applications: [{name: x}]"):
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(BadInput):
            check_serve_config(tmp_path / "odd.yaml")
