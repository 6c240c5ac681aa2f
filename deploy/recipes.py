"""Recipe files: read from YAML, checked, and told apart by line where something is wrong.

A recipe is a path to a YAML file, or the name of one that ships in `deploy/recipes/`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from ingest.errors import BadInput, NotFound

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo
    from yaml.nodes import Node

    from index.recipe import Recipe

_MOST_CHARACTERS = 1 << 20
Place = tuple[str | int, ...]


# -- reading ------------------------------------------------------------------------------------------------


def shipped() -> list[str]:
    """The names of the recipes that ship with Reseen, sorted."""
    names = (entry.name for entry in (files("deploy") / "recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def recipe_text(recipe: str) -> tuple[str, str]:
    """Where a recipe lies, and its YAML with its comments.

    Raises:
        NotFound: there is no such file, or no shipped recipe of that name.
        BadInput: the file cannot be read as text.
    """
    if "/" in recipe or recipe.endswith((".yaml", ".yml")):
        return recipe, _file_text(Path(recipe))
    if recipe not in shipped():
        also = f"; to use the file, write ./{recipe}" if Path(recipe).is_file() else ""
        raise NotFound(
            f"there is no recipe {recipe!r}: choose from {', '.join(shipped())}, or give the path of a YAML "
            f"file{also}"
        )
    return f"{recipe}.yaml", (files("deploy") / "recipes" / f"{recipe}.yaml").read_text("utf-8")


def _file_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise NotFound(
            f"there is no recipe file {path}; shipped recipes go by name: {', '.join(shipped())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"recipe {path} cannot be read as UTF-8 text: {error}") from error
    if len(text) > _MOST_CHARACTERS:
        raise BadInput(f"recipe {path} is longer than {_MOST_CHARACTERS:,} characters: that is no recipe")
    return text


def load_recipe(recipe: str) -> "Recipe":
    """A recipe by path or shipped name, checked; `NotFound`, or `BadInput` with file, line and choices."""
    where, text = recipe_text(recipe)
    return parse_recipe(text, where)


def parse_recipe(text: str, where: str) -> "Recipe":
    """A recipe from its YAML. Every mistake is one line of the message: file, line, setting, what to do."""
    import yaml
    from pydantic import ValidationError

    from index.recipe import Recipe

    try:
        lines = _lines(yaml.compose(text, Loader=yaml.SafeLoader), where)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInput(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise BadInput(f"{where} holds no settings: a recipe is a mapping such as `name: my-recipe`")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise BadInput("\n".join(_mistakes(error, where, lines))) from None


def _lines(root: "Node | None", where: str) -> dict[Place, int]:
    """The line of every key and list item by its place; `BadInput` where a key stands twice."""
    from yaml.nodes import MappingNode, SequenceNode

    lines: dict[Place, int] = {}
    waiting: list[tuple[Place, Any]] = [((), root)]
    while waiting:
        place, node = waiting.pop()
        if isinstance(node, MappingNode):
            inside = [((*place, key.value), key, value) for key, value in node.value]
        elif isinstance(node, SequenceNode):
            inside = [((*place, at), item, item) for at, item in enumerate(node.value)]
        else:
            continue
        for below, marked, value in inside:
            line = marked.start_mark.line + 1
            if below in lines:
                raise BadInput(
                    f"{where}, line {line}: {_dotted(below)} is set twice (line {lines[below]} too): keep one"
                )
            lines[below] = line
            waiting.append((below, value))
    return lines


def _mistakes(error: "ValidationError", where: str, lines: dict[Place, int]) -> Iterator[str]:
    for problem in error.errors():
        place = _place(problem["loc"], lines)
        line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None)
        at = f"{where}, line {line}" if line else where
        if problem["type"] == "extra_forbidden":
            choices = ", ".join(_choices(problem["loc"][:-1])) or "none here"
            yield f"{at}: there is no setting {_dotted(place)}; choose from: {choices}"
        elif problem["type"] == "union_tag_not_found":
            yield f"{at}: {_dotted(place)}.kind is missing: add it; choose from: {_kinds(problem['loc'])}"
        elif problem["type"] == "missing":
            yield f"{at}: {_dotted(place)} is missing: add it"
        else:
            said = problem["msg"].removeprefix("Value error, ")
            yield f"{at}: {_dotted(place) or 'the recipe'}: {said}"


def _place(loc: Place, lines: dict[Place, int]) -> Place:
    """A location of pydantic's without the kinds of unions in it (`quantizer`, `ivfadc`, `lists`)."""
    place: Place = ()
    for at, part in enumerate(loc):
        if at == len(loc) - 1 or (*place, part) in lines:
            place = (*place, part)
    return place


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


# -- every setting ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe.

    place: dotted, such as `features.decode.longest_side`; kinds stand in brackets: `quantizer[ivfadc].lists`,
        and `*` for a label of your choice.
    same_as: the place where the settings inside it are told; empty where they follow.
    """

    place: str
    field: "FieldInfo"
    same_as: str = ""

    @property
    def described(self) -> str:
        """What it does, its unit and its cost; empty where the code does not say."""
        if self.place.endswith(".kind"):
            return "which kind the settings beside it are of"
        text = " ".join((self.field.description or "").split())
        return f"{text} (inside: as `{self.same_as}`)" if self.same_as else text

    @property
    def default(self) -> str:
        """As it would stand in YAML; `required` where there is none."""
        if self.field.is_required():
            return "required"
        value = self.field.get_default(call_default_factory=True)
        try:
            return json.dumps(value)
        except TypeError:  # settings
            return "see below"


def all_settings() -> list[Setting]:
    """Every setting that a recipe can have, outer before inner, in the order of the code."""
    from index.recipe import Recipe

    return list(_settings(Recipe, "", {}))


def _settings(model: "type[BaseModel]", place: str, told: "dict[type[BaseModel], str]") -> Iterator[Setting]:
    """The settings of a model and all inside it; `told` says where those of a model were listed already."""
    for name, field in model.model_fields.items():
        here = f"{place}.{name}" if place else name
        inner = _models(field.annotation)
        again = [told[each] for each in inner if each in told]
        yield Setting(here, field, again[0] if again else "")
        within = f"{here}.*" if get_origin(field.annotation) is dict else here
        for each in inner:
            kind = each.model_fields.get("kind")
            several = kind is not None and len(get_args(kind.annotation)) == 1
            tag = f"[{get_args(kind.annotation)[0]}]" if kind is not None and several else ""
            if each not in told:
                told[each] = within + tag
                yield from _settings(each, within + tag, told)


def _models(annotation: Any) -> "list[type[BaseModel]]":
    """The settings models in a type: itself, or the members of a union."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _choices(loc: Place) -> list[str]:
    """The settings at a place of pydantic's, kinds included in it."""
    return sorted({name for model in _models_at(loc) for name in model.model_fields})


def _kinds(loc: Place) -> str:
    return ", ".join(str(model.model_fields["kind"].default) for model in _models_at(loc))


def _models_at(loc: Place) -> "list[type[BaseModel]]":
    from index.recipe import Recipe

    models: list[type[BaseModel]] = [Recipe]
    labelled = False  # the next part is a label or a number, not a setting
    for part in loc:
        fields = [model.model_fields[str(part)] for model in models if part in model.model_fields]
        if labelled:
            labelled = False
        elif fields:
            models = [inner for field in fields for inner in _models(field.annotation)]
            labelled = any(get_origin(field.annotation) in (dict, tuple) for field in fields)
        else:  # a kind: only its own settings
            models = [
                m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part
            ]
    return models


def settings_table() -> str:
    """Every setting as a Markdown table; docs/recipes.md holds it, and a test compares the two."""
    lines = ["| setting | default | what it does, its unit and its cost |", "|---|---|---|"]
    for setting in all_settings():
        text = setting.described.replace("|", "\\|")
        lines.append(f"| `{setting.place}` | `{setting.default}` | {text} |")
    return "\n".join(lines) + "\n"


def with_defaults(recipe: "Recipe") -> str:
    """A recipe as YAML with every default filled in."""
    import yaml

    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    return text
