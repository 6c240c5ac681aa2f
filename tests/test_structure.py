"""The structure keeps what the design promises: imports run one way, pages and code say the same."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

ROOT = Path(__file__).parents[1]
PACKAGES = ("ingest", "index", "serve", "train", "deploy")
README = ROOT / "README.md"


def sources(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def test_imports_run_one_way() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def reads_environment(file: Path) -> list[str]:
    """The lines of a file that look into the process's environment.

    Setting variables for libraries that load later, and handing the whole on to a child, look at nothing.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    allowed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
            allowed.add(id(node.func.value))
        if isinstance(node, ast.Dict):
            allowed.update(
                id(value) for key, value in zip(node.keys, node.values, strict=True) if key is None
            )
    return [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("environ", "environb", "getenv")
            and id(node) not in allowed
        )
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {"environ", "getenv"} & {name.name for name in node.names}
        )
    ]


def test_nothing_below_deploy_reads_the_environment() -> None:
    found = [
        line for file in sources("ingest", "index", "serve", "train") for line in reads_environment(file)
    ]
    assert found == []


def test_reading_the_environment_would_be_noticed() -> None:
    assert reads_environment(ROOT / "deploy" / "options.py")


def test_there_is_no_place_for_odds_and_ends() -> None:
    odd = ("utils", "util", "helpers", "helper", "common", "misc")
    assert [file for file in sources(*PACKAGES, "tests") if file.stem in odd] == []


# -- the README ---------------------------------------------------------------------------------------------


def tree() -> dict[str, str]:
    """The README's folder tree: path from the root, and the comment beside it."""
    block = re.search(r"```text\n(?:reseen/)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None, "README.md has no folder tree"
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block[1].splitlines():
        matched = re.fullmatch(r"( +)(\S+)(?: {2,}(\S.*))?", line)
        assert matched is not None, f"the tree's line {line!r} is not NAME  COMMENT"
        depth = len(matched[1]) // 4
        path = "/".join([*folders[: depth - 1], matched[2].rstrip("/")])
        if matched[2].endswith("/"):
            folders = [*folders[: depth - 1], matched[2].rstrip("/")]
        found[path] = matched[3] or ""
    return found


def test_the_tree_of_the_readme_names_every_module_and_nothing_else() -> None:
    named = tree()
    assert [path for path in named if not (ROOT / path).exists()] == []
    modules = {str(file.relative_to(ROOT)) for file in sources(*PACKAGES) if file.name != "__init__.py"}
    assert sorted(modules - named.keys()) == [], "add them to README.md's tree, with a comment"


def test_every_line_of_the_tree_has_a_comment() -> None:
    assert [path for path, comment in tree().items() if not comment] == []


def commands() -> list[list[str]]:
    """Every `reseen ...` command line in the pages that tell people what to type."""
    found = []
    pages = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]
    for page in pages:
        for block in re.findall(
            r"```(?:console|sh|bash)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        ):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ").removeprefix(".venv/bin/")
                if line.startswith("reseen "):
                    found.append(shlex.split(line, comments=True)[1:])
    return found


def test_the_commands_of_the_pages_exist_with_their_options() -> None:
    from deploy.cli import app

    root = get_command(app)
    assert len(commands()) >= 6
    for words in commands():
        words = words[: words.index("|")] if "|" in words else words
        command, rest = root, list(words)
        while hasattr(command, "commands") and rest and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        assert not hasattr(command, "commands"), f"reseen {' '.join(words)}: no such command"
        options = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        unknown = [word for word in rest if re.match(r"-[-a-z]", word) and word not in options | {"--help"}]
        assert unknown == [], f"reseen {' '.join(words)}: no such option"


def test_every_command_of_the_command_line_is_explained() -> None:
    from deploy.cli import app

    def silent(command: object, name: str) -> list[str]:
        inner = getattr(command, "commands", {})
        found = [] if getattr(command, "help", None) else [name]
        found += [
            f"{name} {parameter.name}"
            for parameter in getattr(command, "params", [])
            if isinstance(parameter, typer.core.TyperOption) and not parameter.help
        ]
        return found + [line for key, value in inner.items() for line in silent(value, f"{name} {key}")]

    assert silent(get_command(app), "reseen") == []


def test_the_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    pages = [README, *sorted(ROOT.glob("*/README.md"))]
    said = re.compile(r"`make (?=[a-z])|^make (?=[a-z]+(?: +#|$))", re.MULTILINE)
    named = {
        re.match("[a-z]+", text[found.end() :])[0]  # type: ignore[index]
        for text in (page.read_text(encoding="utf-8") for page in pages)
        for found in said.finditer(text)
    }
    assert named >= {"demo", "test"}
    assert {"demo", "test", "check", "evaluate", "bench"} <= targets
    assert named - targets == set()


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_every_folder_has_a_page(folder: str) -> None:
    page = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# ")


def test_links_between_pages_lead_somewhere() -> None:
    pages = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert broken == []


def test_no_file_names_this_machine_or_another_checkout() -> None:
    """Paths that only exist where this was written, and package hosts, do not belong into the project."""
    tracked = [
        ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/run", "README.md")
    ]
    tell = re.compile(r"/work/|/root/|/opt/pypi|--index-url|find-links")
    found = [
        str(f.relative_to(ROOT)) for f in [*tracked, *sources(*PACKAGES)] if tell.search(f.read_text("utf-8"))
    ]
    assert found == []
