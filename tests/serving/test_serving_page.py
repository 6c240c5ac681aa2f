"""docs/serving.md names what there is, all of it, and its programs can run."""

import ast
import re
from pathlib import Path

import pytest

from serve.client import AsyncClient, Client, errors
from serve.client.errors import class_of
from serve.http.doors import DOORS
from serve.http.key_file import Scope
from serve.http.problems import KINDS
from serve.http.settings import HttpSettings
from serve.metrics import FAMILIES, STAGES
from serve.service.settings import ServiceSettings

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the rows of all tables, heads too."""
    lines = [line.strip("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in cells if set("".join(row)) != {"-"}]


def test_every_path_is_named_with_its_call() -> None:
    calls = [re.fullmatch(r"`(GET|POST) (\S+)`", row[0]) for row in rows(section("Calls"))]
    named = {call[2] for call in calls if call}
    assert named == {door.path for door in DOORS} - {"/static/{name}"}
    assert "/static/" in section("Calls")


def test_every_path_is_called_in_the_examples() -> None:
    asked = set(re.findall(r"\$URL(/[\w/$.]+)", PAGE))
    examples = {path.replace("$DIGEST", "{digest}").replace("$ID", "{image_id}") for path in asked}
    assert examples == {door.path for door in DOORS} - {"/", "/static/{name}"}


def test_every_problem_is_named_with_its_status_and_the_clients_error() -> None:
    named = {}
    for status, code, error, _ in (row for row in rows(section("Errors")) if row[0].isdigit()):
        named[code.strip("`")] = (int(status), error.strip("`"))
    assert named == {
        code: (kind.status, class_of(code, kind.status).__name__) for code, kind in KINDS.items()
    }
    for name in re.findall(r"`(\w+)`", section("Errors")):
        if name[0].isupper() and name not in ("BadInput", "NotFound", "OverBudget", "Unavailable"):
            assert hasattr(errors, name), name


def test_every_metric_and_stage_is_named_with_its_labels() -> None:
    table = {}
    for names, _, labels in rows(section("Metrics and logs"))[1:]:
        for name in re.findall(r"`(\w+)`", names):
            table[name] = tuple(re.findall(r"`(\w+)`", labels))
    assert table.pop("stage_seconds") == ("stage",)
    assert table == {name: family.labels for name, family in FAMILIES.items()}
    stages = next(row for row in rows(section("Metrics and logs")) if "stage_seconds" in row[0])[1]
    assert set(re.findall(r"`(\w+)`", stages)) == set(STAGES)


def test_every_scope_is_named() -> None:
    assert {row[0].strip("`") for row in rows(section("Keys"))[1:]} == {str(scope) for scope in Scope}


def test_the_limits_are_those_of_the_settings() -> None:
    http, service, mib = HttpSettings(), ServiceSettings(), 2**20
    said = " ".join(section("Limits and safety").split())
    for text in (
        f"{http.rate_per_s:g} times a second, {http.rate_burst} at once",
        f"A JSON body has at most {http.max_json_bytes // mib} MiB",
        f"an image {http.max_image_bytes // mib} MiB",
        f"a form {http.max_multipart_bytes // mib} MiB, a search {http.max_images} images",
        f"all bodies together {http.max_bodies_bytes // mib} MiB",
        f"within {http.body_timeout_s:g} s",
    ):
        assert text in said, text
    deadlines = section("Deadlines, partial answers, overload")
    assert f"{service.vector_timeout_ms / 1000:g} s where only" in deadlines
    assert f"{service.image_timeout_ms / 1000:g} s where images" in deadlines
    assert service.poll_s == 2, "Servers look at the gallery every two seconds"


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs_use_what_there_is(program: str) -> None:
    tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            exec(ast.unparse(node), {})
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "client":
            assert hasattr(Client, node.attr), node.attr
            assert hasattr(AsyncClient, node.attr), node.attr


def test_every_method_of_the_client_is_used() -> None:
    used = set(re.findall(r"\bclient\.(\w+)\(", "".join(PROGRAMS)))
    public = {name for name in vars(Client) if name[0] != "_"} - {"close", "live", "metrics"}
    assert public - used == set()


def test_links_inside_the_page_lead_to_its_headings() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) - anchors == set()
