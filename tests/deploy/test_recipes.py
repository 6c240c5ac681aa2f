"""Recipes: what ships is complete and explained, what is wrong is told by line, defaults are printed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import recipes
from index.recipe import Recipe
from ingest.errors import BadInput, NotFound

ROOT = Path(__file__).parents[2]


def keys(values: Any, place: str = "") -> set[str]:
    """Dotted places of all settings in a nested mapping."""
    found = set()
    for name, value in values.items() if isinstance(values, dict) else ():
        found |= {place + name} | keys(value, f"{place}{name}.")
    return found


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_shipped_recipe_is_valid_complete_and_explained_line_by_line(name: str) -> None:
    text = recipes.recipe_text(name)[1]
    recipe = recipes.load_recipe(name)
    assert recipe.name == name
    in_force = recipe.model_dump(mode="json")
    unset = keys(in_force) - keys(recipe.model_dump(mode="json", exclude_none=True))
    assert keys(yaml.safe_load(text)) | unset == keys(in_force), "each setting in force stands in the file"
    bare = [line for line in text.splitlines() if line and not re.search(r"(^| {2})# \S", line)]
    # A section's heading needs no comment where its first line inside says what it is.
    assert [line for line in bare if not line.rstrip().endswith(":") and line.strip() != "#"] == []


def test_the_photograph_recipes_are_what_the_issue_names() -> None:
    coded, full = recipes.load_recipe("sift-vlad"), recipes.load_recipe("sift-vlad-full")
    for recipe in (coded, full):
        assert recipe.encoder is not None
        assert (recipe.encoder.codebook.words, recipe.encoder.normalise) == (256, "intra")
    assert coded.projection is not None
    assert (coded.projection.dim, coded.projection.whiten, coded.quantizer.kind) == (128, True, "ivfadc")
    assert (full.projection, full.quantizer.kind) == (None, "flat")
    assert coded.features == full.features, "so that one ingest serves both"


WRONG = {
    "an unknown setting": (
        "name: x\nquantizer:\n  kind: ivfadc\n  nprob: 3\n",
        r"bad\.yaml, line 4: there is no setting quantizer\.nprob; choose from: .*nprobe",
    ),
    "an unknown setting deep inside": (
        "name: x\nfeatures: {decode: {longest: 3}}\nencoder: {kind: vlad}\nquantizer: {kind: flat}\n",
        r"line 2: there is no setting features\.decode\.longest; choose from: longest_side",
    ),
    "an unknown kind": ("name: x\nquantizer: {kind: hnsw}\n", r"line 2: quantizer.*'flat', 'ivfadc'"),
    "a kind that is not told": (
        "name: x\nfeatures:\n  describe:\n    local: {}\nencoder: {kind: vlad}\nquantizer: {kind: flat}\n",
        r"line 4: features\.describe\.local\.kind is missing: add it; choose from: sift, cnn-global, ",
    ),
    "an unknown setting below a label": (
        "name: x\nfeatures: {describe: {local: {kind: sift, keypoints: 3}}}\nencoder: {kind: vlad}\n"
        "quantizer: {kind: flat}\n",
        r"there is no setting features\.describe\.local\.keypoints; choose from: .*max_keypoints",
    ),
    "an unknown setting of a step": (
        "name: x\nquantizer: {kind: flat}\nsteps:\n  - kind: geometry\n    rate: 3\n",
        r"line 5: there is no setting steps\.0\.rate; choose from: .*ratio",
    ),
    "a label that nothing is described under": (
        "name: x\nfeatures: {}\nencoder: {kind: vlad, reads: columns}\nquantizer: {kind: flat}\n",
        r"the recipe: vlad reads the features columns, and features.describe has only: local",
    ),
    "features of a kind that cannot be read": (
        "name: x\nfeatures: {}\nencoder: {kind: pooled, reads: local}\nquantizer: {kind: flat}\n",
        r"the recipe: pooled cannot read local, which is sift: it reads cnn-global",
    ),
    "a value out of bounds": (
        "name: x\nquantizer: {kind: flat}\nshard_rows: 0\n",
        r"line 3: shard_rows: .*greater than or equal to 1",
    ),
    "a missing setting": ("quantizer: {kind: flat}\n", r"name is missing: add it"),
    "a setting that stands twice": (
        "name: x\nquantizer: {kind: flat}\nname: y\n",
        r"line 3: name is set twice \(line 1 too\)",
    ),
    "settings that contradict each other": (
        "name: x\nfeatures: {}\nquantizer: {kind: flat}\n",
        r"the recipe: features and encoder go together",
    ),
    "no mapping": ("- 1\n", "holds no settings"),
    "an empty file": ("", "holds no settings"),
    "no YAML": ("a: [", "is not YAML"),
    "a Python object": ("name: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    "brackets without end": ("[" * 5000, "is not YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_line_and_the_choices(case: str) -> None:
    text, told = WRONG[case]
    with pytest.raises(BadInput, match=told):
        recipes.parse_recipe(text, "bad.yaml")


def test_every_mistake_of_a_file_is_told_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        recipes.parse_recipe("shard_row: 1\nquantizer: {kind: flat, lists: 2}\n", "bad.yaml")
    assert len(str(caught.value).splitlines()) == 3


def test_a_recipe_is_a_path_or_a_shipped_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nquantizer: {kind: flat}\n")
    assert recipes.load_recipe(str(file)).name == "mine"
    with pytest.raises(NotFound, match=r"choose from .*sift-vlad, sift-vlad-full, vectors-flat"):
        recipes.load_recipe("sift")
    with pytest.raises(NotFound, match="no recipe file"):
        recipes.load_recipe(str(tmp_path / "other.yaml"))
    with pytest.raises(BadInput, match="cannot be read"):
        recipes.load_recipe(f"{tmp_path}/")


@pytest.mark.parametrize("name", recipes.shipped())
def test_defaults_filled_in_are_the_same_recipe(name: str) -> None:
    recipe = recipes.load_recipe(name)
    assert recipes.parse_recipe(recipes.with_defaults(recipe), "printed") == recipe


def test_every_setting_is_described() -> None:
    silent = [s.place for s in recipes.all_settings() if not s.described]
    assert silent == [], "give it a Field(description=...) that says what it does, its unit and its cost"


def test_the_list_of_settings_leaves_none_out() -> None:
    listed = recipes.all_settings()
    places = {re.sub(r"\[[\w-]+\]", "", setting.place) for setting in listed}
    told = [
        (re.sub(r"\[[\w-]+\]", "", s.place), re.sub(r"\[[\w-]+\]", "", s.same_as))
        for s in listed
        if s.same_as
    ]
    for name in recipes.shipped():
        wanted = keys(recipes.load_recipe(name).model_dump(mode="json"))
        wanted = {re.sub(r"^features\.describe\.\w+", "features.describe.*", place) for place in wanted}
        for place in sorted(wanted - {"features.describe.*"}):
            elsewhere = {
                same + place.removeprefix(here) for here, same in told if place.startswith(f"{here}.")
            }
            assert {place} & places or elsewhere & places, place
    assert len(places) > len(Recipe.model_fields) * 3


def test_the_page_of_settings_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    table = page.partition("<!-- settings -->\n")[2].partition("<!-- end of settings -->")[0]
    assert table.strip() == recipes.settings_table().strip(), "run: reseen recipe settings, and paste it"
