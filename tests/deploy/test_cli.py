"""The command line: results, exit codes, one object on standard output, nothing half-said."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from ingest.sources import Source, open_source
from ingest.store import Store
from tests.drivers import end_session, processes_of

SCENES = "synthetic:scenes=8,views=3,distractors=12,size=160"
LABELS = r"/((?:facade|object)-\d+)/"
RECIPE = """
name: small
features: {describe: {local: {kind: sift, max_keypoints: 200}}}
encoder: {kind: vlad, codebook: {words: 16, sample_descriptors: 4096}}
quantizer: {kind: flat}
"""


def reseen(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def ok(*arguments: object, stdin: bytes | None = None) -> Any:
    """What a command printed with --json, which must be one object on one line."""
    result = reseen(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def refused(code: int, told: str, *arguments: object, stdin: bytes | None = None) -> None:
    """A command that ends with a code, one clear line, and nothing on standard output."""
    result = reseen(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert re.search(told, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert len([line for line in result.stderr.splitlines() if line.startswith("reseen: ")]) == 1


def synthetic() -> Source:
    source = open_source(SCENES)
    assert isinstance(source, Source)
    return source


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "small.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A small gallery; tests that change one take a copy."""
    gallery = tmp_path_factory.mktemp("built") / "gallery"
    ok("ingest", SCENES, "-g", gallery, "-r", recipe, "--engine", "inline", "--part-images", 4)
    ok("build", "-g", gallery, "-r", recipe, "--engine", "inline")
    return gallery


@pytest.fixture
def gallery(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "gallery"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("image") / "query.bmp"
    file.write_bytes(synthetic().read("facade-000002/view-01.bmp"))
    return file


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# -- the way of an image ----------------------------------------------------------------------------------


def test_ingest_says_what_became_of_each_image_and_a_second_run_finds_nothing_new(
    gallery: Path, recipe: Path
) -> None:
    again = ok("ingest", SCENES, "-g", gallery, "-r", recipe, "--engine", "inline")
    found = again["sources"]["synthetic"]
    assert (found["new"], found["changed"], found["unchanged"]) == (0, 0, 36)
    assert (again["images"], again["outcomes"]) == (36, {"ok": 36})
    built_again = ok("build", "-g", gallery, "-r", recipe, "--engine", "inline")
    assert (built_again["generation"], built_again["published"]) == (1, False)


def test_search_finds_an_image_by_itself_and_by_its_part(built: Path, image: Path, tmp_path: Path) -> None:
    answer = ok("search", image, "-g", built, "--top", 3)["queries"]
    assert [query["query"] for query in answer] == [str(image)]
    first = answer[0]["results"][0]
    assert first["key"] == "facade-000002/view-01.bmp"
    assert first["uri"] == synthetic().uri(first["key"])
    assert first["score"] == pytest.approx(1, abs=1e-5)
    assert first["metadata"]["scene"] == "facade-000002"
    assert [found["rank"] for found in answer[0]["results"]] == [1, 2, 3]
    part = ok("search", image, "-g", built, "--box", "8,8,150,110")["queries"][0]["results"][0]
    assert part["image_id"] == first["image_id"]
    assert part["score"] < first["score"], "the box was cut out"


def test_search_leaves_out_what_a_filter_does(built: Path, image: Path) -> None:
    (whole,) = ok("search", image, "-g", built, "--top", 36)["queries"]
    others = [found for found in whole["results"] if found["metadata"]["scene"] != "facade-000002"]
    assert 0 < len(others) < len(whole["results"]) == 36
    for text in (
        'scene != "facade-000002"',
        '{"not": {"column": "key", "op": "prefix", "value": "facade-000002/"}}',
    ):
        (answer,) = ok("search", image, "-g", built, "--top", 5, "--where", text)["queries"]
        assert answer == whole | {"results": [found | {"rank": n + 1} for n, found in enumerate(others[:5])]}
    refused(2, "no such column; they have .*scene", "search", image, "-g", built, "--where", "year = 1990")
    refused(2, r"cannot be read near '&", "search", image, "-g", built, "--where", "scene exists & 3")


def test_an_image_may_come_from_standard_input_or_a_url(built: Path, image: Path) -> None:
    by_path = ok("search", image, "-g", built)["queries"][0]["results"]
    by_pipe = ok("search", "-", "-g", built, stdin=image.read_bytes())["queries"][0]
    by_url = ok("search", f"file://{image}", "-g", built)["queries"][0]
    assert by_pipe["query"] == "standard input"
    assert by_pipe["results"] == by_url["results"] == by_path


def test_a_query_that_cannot_be_used_is_an_answer_and_alone_an_error(
    built: Path, image: Path, tmp_path: Path
) -> None:
    junk = tmp_path / "junk.jpg"
    junk.write_bytes(b"not an image")
    both = ok("search", junk, image, "-g", built)["queries"]
    assert both[0]["rejected"]["reason"] == "unknown_format"
    assert both[0]["results"] == []
    assert both[1]["rejected"] is None
    assert len(both[1]["results"]) == 10
    alone = reseen("search", junk, "-g", built, "--json")
    assert alone.exit_code == 2
    assert json.loads(alone.stdout)["queries"][0]["rejected"]["reason"] == "unknown_format"
    assert "give another image" in alone.stderr


def test_search_writes_a_contact_sheet(built: Path, image: Path, tmp_path: Path) -> None:
    from PIL import Image

    sheet = tmp_path / "sheet.jpg"
    ok("search", image, "-g", built, "--sheet", sheet)
    with Image.open(sheet) as drawn:
        assert drawn.format == "JPEG"
    refused(2, "cannot write", "search", image, "-g", built, "--sheet", tmp_path / "no" / "sheet.jpg")


def test_evaluate_reads_labels_from_names(built: Path) -> None:
    figures = ok("evaluate", "-g", built, "--label-pattern", LABELS)
    assert (figures["protocol"], figures["queries"], figures["labels"]) == ("labels", 24, 8)
    assert 0.3 < figures["map"] <= 1
    assert set(figures["recall_at"]) >= {"1", "5", "10"}
    facades = ok("evaluate", "-g", built, "--label-pattern", LABELS, "--query-pattern", "facade")
    assert facades["queries"] == 12
    text = reseen("evaluate", "-g", built, "--label-pattern", LABELS).stdout
    assert f"{figures['map']:.4f}" in text


def test_vectors_ready_made_go_in_and_are_no_place_for_images(tmp_path: Path, image: Path) -> None:
    gallery, file = tmp_path / "gallery", tmp_path / "base.npy"
    np.save(file, np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32))
    source = f"vectors:{file}"
    listed = ok("ingest", source, "-g", gallery, "-r", "vectors-flat", "--engine", "inline")
    assert listed["outcomes"] == {"ok": 300}
    built = ok("build", "-g", gallery, "-r", "vectors-flat", "--engine", "inline")
    assert built["counts"]["live"] == 300
    refused(2, "ready-made vectors", "search", image, "-g", gallery)
    inline = ("--engine", "inline")
    refused(2, "holds vectors", "ingest", source, "-g", tmp_path / "b", "-r", "sift-vlad", *inline)
    refused(2, "holds images", "ingest", SCENES, "-g", tmp_path / "b", "-r", "vectors-flat", *inline)
    refused(2, "gallery of their own|own", "ingest", SCENES, "-g", gallery, "-r", "sift-vlad", *inline)


def test_a_relative_folder_is_found_again_from_elsewhere(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "photos").mkdir(parents=True)
    elsewhere.mkdir()
    for view in range(3):
        data = synthetic().read(f"facade-000001/view-{view:02d}.bmp")
        (home / "photos" / f"{view}.bmp").write_bytes(data)
    monkeypatch.chdir(home)
    inline = ("--engine", "inline")
    ok("ingest", "photos", "-g", tmp_path / "gallery", "-r", recipe, *inline)
    monkeypatch.chdir(elsewhere)
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.replace("200", "100"))  # other features: the images are read again
    assert ok("build", "-g", tmp_path / "gallery", "-r", other, *inline)["counts"]["live"] == 3
    shutil.rmtree(home)
    assert ok("build", "-g", tmp_path / "gallery", "-r", other, *inline)["published"] is False
    other.write_text(RECIPE.replace("200", "50"))
    refused(2, "cannot be opened.*--moved", "build", "-g", tmp_path / "gallery", "-r", other, *inline)


# -- upkeep -----------------------------------------------------------------------------------------------


def test_what_is_deleted_is_not_found_until_it_is_restored_and_never_after_a_purge(
    gallery: Path, image: Path
) -> None:
    def best() -> str:
        key: str = ok("search", image, "-g", gallery)["queries"][0]["results"][0]["key"]
        return key

    name = "synthetic/facade-000002/view-01.bmp"
    taken = ok("delete", name, "-g", gallery)
    assert taken["generation"] == 2
    assert best() != "facade-000002/view-01.bmp"
    changed = ok("generations", "diff", 1, 2, "-g", gallery)
    assert changed["images"] == {"added": [], "removed": taken["images"], "changed": []}
    assert ok("restore", taken["images"][0], "-g", gallery)["generation"] == 3
    assert best() == "facade-000002/view-01.bmp"
    ok("delete", "--from", "-", "-g", gallery, stdin=f"{name}\r\n\n".encode())
    assert ok("generations", "rollback", 1, "-g", gallery)["counts"]["live"] == 35, "it stays down"
    purged = ok("purge", "-g", gallery, "--engine", "inline")
    assert (purged["images"], purged["parts"]) == (1, 1)
    refused(2, "no image", "restore", name, "-g", gallery)
    assert ok("generations", "verify", "-g", gallery)["problems"] == []
    listed = ok("generations", "list", "-g", gallery)["generations"]
    assert [line["action"] for line in listed[:4]] == ["build", "delete", "restore", "delete"]
    assert listed[-1]["counts"]["live"] == 35
    assert listed[-1]["readable"] is True


def test_names_that_name_nothing_are_refused(built: Path) -> None:
    refused(2, "no images are named", "delete", "-g", built)
    refused(2, "names no image", "delete", "picture.jpg", "-g", built)
    refused(2, "has no image 7", "delete", "7", "-g", built)
    refused(2, "cannot be read", "delete", "--from", "/no/such/file", "-g", built)


def test_a_generation_is_shown_as_it_was_published(built: Path) -> None:
    shown = ok("generations", "show", "-g", built)
    assert shown["recipe"]["name"] == "small"
    assert shown["counts"] == {"rows": 36, "masked": 0, "live": 36, "rejected": 0}
    assert sum(shard["rows"] for shard in shown["shards"]) == 36
    text = reseen("generations", "show", 1, "-g", built).stdout
    assert shown["models"]["encoder"] in text
    refused(2, "it has 1 to 1", "generations", "show", 9, "-g", built)


def test_damage_is_found_and_named_with_exit_code_1(gallery: Path) -> None:
    shard = next(gallery.glob("shards/*/index.faiss"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = reseen("generations", "verify", "-g", gallery, "--json")
    assert result.exit_code == 1
    assert shard.parent.name in json.loads(result.stdout)["problems"][0]


def test_garbage_is_counted_then_collected(gallery: Path) -> None:
    orphan = gallery / "encodings" / "0123" / "4567.parquet"
    orphan.parent.mkdir()
    orphan.write_bytes(b"left behind")
    dry = ok("generations", "gc", "-g", gallery, "--grace", 0, "--dry-run")
    assert (dry["removed"], orphan.exists()) == ({"encodings": 1}, True)
    assert ok("generations", "gc", "-g", gallery)["kept_young"] == 1, "younger than a day"
    assert ok("generations", "gc", "-g", gallery, "--grace", 0)["removed"] == {"encodings": 1}
    assert not orphan.exists()
    assert ok("generations", "verify", "-g", gallery)["problems"] == []


# -- what is said and how it ends --------------------------------------------------------------------------


def test_mistakes_of_the_caller_are_exit_code_2(
    built: Path, image: Path, tmp_path: Path, recipe: Path
) -> None:
    refused(2, "there is no gallery", "search", image, "-g", tmp_path / "none")
    refused(2, "there is no image", "search", tmp_path / "none.jpg", "-g", built)
    refused(2, "is not a file", "search", tmp_path, "-g", built)
    refused(2, "four numbers", "search", image, "-g", built, "--box", "1,2,3")
    refused(2, "is empty", "search", image, "-g", built, "--box", "9,9,3,3")
    refused(2, "holds no pixel", "search", image, "-g", built, "--box", "900,900,990,990")
    refused(2, "choose from .*sift-vlad", "build", "-g", built, "-r", "nothing")
    refused(2, "choose labels", "evaluate", "-g", built, "--label-pattern", "x", "--protocol", "oxford")
    refused(2, "no regular expression", "evaluate", "-g", built, "--label-pattern", "(")
    refused(2, "needs --engine ray", "build", "-g", built, "-r", recipe, "--engine", "inline", "--workers", 2)
    refused(2, "use --engine inline", "ingest", SCENES, "-g", "memory://x", "-r", recipe)
    refused(2, "no images yet", "build", "-g", _empty(tmp_path, recipe), "-r", recipe, "--engine", "inline")


def _empty(tmp_path: Path, recipe: Path) -> Path:
    (tmp_path / "photos").mkdir()
    result = reseen(
        "ingest", tmp_path / "photos", "-g", tmp_path / "empty", "-r", recipe, "--engine", "inline"
    )
    assert result.exit_code == 0
    assert "no images were found" in result.stdout
    return tmp_path / "empty"


@pytest.mark.parametrize(
    "arguments",
    [["search"], ["nonsense"], ["search", "x.jpg"], ["ingest", "x", "-g", "y", "-r", "z", "--workers", "0"]],
)
def test_wrong_usage_is_exit_code_2_and_says_how(arguments: list[str]) -> None:
    result = reseen(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert result.stdout == ""


def test_too_many_rejects_fail_and_keep_what_was_done(tmp_path: Path, recipe: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(b"not an image")
    (photos / "good.bmp").write_bytes(synthetic().read("facade-000001/view-00.bmp"))
    inline = (photos, "-g", tmp_path / "g", "-r", recipe, "--engine", "inline")
    refused(1, "3 of 4 images have no features.*--max-rejects", "ingest", *inline, "--quiet")
    allowed = ok("ingest", *inline, "--max-rejects", 1)
    assert allowed["outcomes"] == {"ok": 1, "unknown_format": 3}


def test_a_bug_is_one_line_and_a_traceback_on_request(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("index.verify.verify", broken)
    refused(1, "bug in Reseen: ZeroDivisionError: by zero", "generations", "verify", "-g", built)
    assert "Traceback" in reseen("--debug", "generations", "verify", "-g", built).stderr


def test_ctrl_c_is_exit_code_130_and_says_that_work_is_kept(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("index.verify.verify", interrupted)
    refused(130, "goes on from there", "generations", "verify", "-g", built)


def test_recipes_are_listed_and_shown() -> None:
    names = [line["name"] for line in ok("recipe", "list")["recipes"]]
    networks = ["cvnet-r101", "cvnet-r50", "effnet-gem", "effnet-patches", "effnet-vlad", "netvlad-vgg16"]
    assert names == [*networks, "sift-vlad", "sift-vlad-full", "vectors-flat", "vectors-ivfadc"]
    shown = reseen("recipe", "show", "sift-vlad").stdout
    assert "# pixels; larger images are reduced" in shown
    assert "nprobe: 32" in reseen("recipe", "show", "sift-vlad", "--defaults").stdout
    digest = reseen("recipe", "show", "sift-vlad", "--digest").stdout.strip()
    assert digest == ok("recipe", "show", "sift-vlad", "--digest")["digest"]


def test_news_goes_to_standard_error_and_quiet_says_none(gallery: Path, recipe: Path) -> None:
    loud = reseen("ingest", SCENES, "-g", gallery, "-r", recipe, "--engine", "inline", "--json")
    assert "describe: " in loud.stderr
    assert "describe: " not in loud.stdout
    quiet = reseen("ingest", SCENES, "-g", gallery, "-r", recipe, "--engine", "inline", "--json", "--quiet")
    assert quiet.stderr == ""


def test_the_cache_is_where_it_was_asked_for(built: Path, image: Path, tmp_path: Path) -> None:
    def copies(folder: Path) -> int:
        return sum(path.is_file() for path in folder.rglob("*"))

    ok("search", image, "-g", built)
    assert copies(tmp_path / "cache" / "reseen") > 0
    ok("search", image, "-g", built, "--cache", tmp_path / "mine")
    assert copies(tmp_path / "mine") == copies(tmp_path / "cache" / "reseen")


def test_the_demo_makes_a_sheet_and_a_second_run_adopts_the_first(tmp_path: Path) -> None:
    arguments = ("demo", "--out", tmp_path / "demo", "--scenes", 12, "--engine", "inline")
    first, second = ok(*arguments), ok(*arguments)
    assert (first["images"], first["evaluation"]["queries"]) == (48, 36)
    assert (tmp_path / "demo" / "sheet.jpg").stat().st_size > 10_000
    assert first["notes"], "48 images are too few for 128 dimensions, and that is said"
    same = ("map", "generation", "gallery", "answers")
    assert [second[name] for name in same] == [first[name] for name in same]


def test_the_demo_takes_photographs(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for view in range(3):
        (photos / f"{view}.bmp").write_bytes(synthetic().read(f"object-000001/view-{view:02d}.bmp"))
    value = ok("demo", "--images", photos, "--out", tmp_path / "demo", "--engine", "inline")
    assert (value["images"], value["map"]) == (3, None)
    assert [len(answer["results"]) for answer in value["answers"]] == [2, 2, 2], "itself is left out"


@pytest.mark.parametrize(("images", "told"), [(1, "projection is random"), (3, "components instead of 128")])
def test_what_a_recipe_does_with_few_images_is_said(images: int, told: str, tmp_path: Path) -> None:
    inline = ("-g", tmp_path / "g", "-r", "sift-vlad", "--engine", "inline")
    ok("ingest", f"synthetic:scenes=0,distractors={images},size=320", *inline)
    built = reseen("build", *inline)
    assert built.exit_code == 0
    assert re.search(rf"note: the .*{told}", built.stdout)
    assert "note: the index is flat (exact, uncompressed)" in built.stdout
    assert ok("generations", "show", "-g", tmp_path / "g")["counts"]["live"] == images


@pytest.mark.parametrize(("vectors", "notes"), [(255, 1), (256, 0)])
def test_fewer_than_256_vectors_make_an_exact_index_and_that_is_said(
    vectors: int, notes: int, tmp_path: Path
) -> None:
    file = tmp_path / "base.npy"
    np.save(file, np.random.default_rng(0).standard_normal((vectors, 16)).astype(np.float32))
    inline = ("-g", tmp_path / "g", "-r", "vectors-ivfadc", "--engine", "inline")
    ok("ingest", f"vectors:{file}", *inline)
    found = ok("build", *inline)["notes"]
    assert ["the index is flat" in note for note in found] == [True] * notes


def test_an_index_below_its_gate_is_not_published_and_the_reason_is_printed(tmp_path: Path) -> None:
    file, poor = tmp_path / "base.npy", tmp_path / "poor.yaml"
    np.save(file, np.random.default_rng(0).standard_normal((800, 16)).astype(np.float32))
    poor.write_text(
        "name: poor\ngate: {recall: 1.0}\n"
        "quantizer: {kind: ivfadc, lists: 8, nprobe: 1, code_bytes: 1, opq: false}\n"
    )
    inline = ("-g", tmp_path / "g", "-r", poor, "--engine", "inline")
    ok("ingest", f"vectors:{file}", *inline)
    told = r"nothing is published: .* top 100 for [0-9.]+%, and recipe 'poor' demands 100\.0%; spend more"
    refused(1, told, "build", *inline, "--quiet")
    assert ok("generations", "list", "-g", tmp_path / "g")["generations"] == []


def test_images_of_which_none_is_usable_cannot_be_built(tmp_path: Path, recipe: Path) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "black.png")
    inline = ("-g", tmp_path / "g", "-r", recipe, "--engine", "inline", "--max-rejects", 1)
    assert ok("ingest", tmp_path / "photos", *inline)["outcomes"] == {"no_features": 1}
    refused(2, "nothing to fit models on", "build", *inline, "--quiet")


# -- as a process ------------------------------------------------------------------------------------------


def test_help_answers_without_the_heavy_libraries() -> None:
    code = (
        "import sys, deploy.cli; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(deploy.cli.app, ['--help']).exit_code == 0; "
        "heavy = {'ray', 'faiss', 'cv2', 'pyarrow', 'numpy', 'pydantic', 'PIL', 'fsspec'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _process(*arguments: object, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**inherited, "RAY_AUTH_MODE": "disabled", **(environment or {})},
    )


@pytest.mark.parametrize(
    ("number", "engine"),
    [
        (signal.SIGINT, "inline"),
        (signal.SIGTERM, "inline"),
        pytest.param(signal.SIGINT, "ray", marks=pytest.mark.ray),
    ],
)
def test_an_ingest_that_is_stopped_goes_on_to_the_same_gallery(
    number: signal.Signals, engine: str, tmp_path: Path, recipe: Path
) -> None:
    source = "synthetic:scenes=20,views=3,distractors=20,size=160"
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"

    def command(gallery: Path, engine: str = "inline") -> tuple[object, ...]:
        return ("ingest", source, "-g", gallery, "-r", recipe, "--engine", engine, "--part-images", 4)

    process = _process(*command(stopped, engine))
    try:
        deadline = time.monotonic() + 120
        while not list(stopped.glob("features/*/*.parquet")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, number)  # as a terminal does: every process of the group
        out, err = process.communicate(timeout=60)
        while processes_of(process.pid):  # its workers and decoders end too
            assert time.monotonic() < deadline + 60
            time.sleep(0.05)
    finally:
        end_session(process.pid)
    assert process.returncode == 130
    assert out == ""
    assert "goes on from there" in err
    assert "Traceback" not in err
    done = len(list(stopped.glob("features/*/*.parquet")))
    ok(*command(undisturbed))
    assert 0 < done < len(list(undisturbed.glob("features/*/*.parquet"))), "it was in the middle"
    ok(*command(stopped))
    assert _contents(stopped) == _contents(undisturbed)


def _contents(gallery: Path) -> dict[str, bytes]:
    """What a gallery holds, by path; records that state writer and time are left to their content's names."""
    store = Store(str(gallery))
    folders = ("parts", "features", "manifests")
    return {info.path: store.read(info.path) for folder in folders for info in store.listing(folder)}


def test_a_process_ends_with_the_exit_code(tmp_path: Path) -> None:
    process = _process("search", "x.jpg", "-g", tmp_path / "none", "--json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("reseen: there is no gallery")
    assert _process("--version").communicate()[0].startswith("reseen ")
