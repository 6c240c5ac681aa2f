import importlib.util
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from ingest.errors import BadInput
from ingest.packages import PACKAGES, check_packages
from ingest.ray_worker import WorkerHost


def test_our_own_packages_pass() -> None:
    check_packages()


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "ingest"])
@pytest.mark.parametrize("form", ["{}.py", "{}/__init__.py"])
def test_a_stray_module_is_named(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = tmp_path / form.format(name)
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("raise RuntimeError('the check must not import what it finds')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(BadInput, match=f"`{name}`") as caught:
        check_packages()
    assert str(stray) in str(caught.value)


def test_a_module_that_is_loaded_already_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stray `train` that somebody has imported is what `import train` gives, whatever the path says now."""
    stray = tmp_path / "train.py"
    stray.write_text("")
    spec = importlib.util.spec_from_file_location("train", stray)
    assert spec is not None
    monkeypatch.setitem(sys.modules, "train", importlib.util.module_from_spec(spec))
    with pytest.raises(BadInput, match=r"train\.py"):
        check_packages()


def test_a_missing_package_and_a_bare_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("ingest.packages.PACKAGES", ("bare",))
    with pytest.raises(BadInput, match=str(tmp_path / "bare")):
        check_packages()
    monkeypatch.setattr("ingest.packages.PACKAGES", ("absent",))
    with pytest.raises(BadInput, match=r"finds nothing for Reseen's package `absent`.*install"):
        check_packages()


def test_a_worker_checks_before_it_loads_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.packages.PACKAGES", ("absent",))
    kind, error, _ = WorkerHost().start(b"this is no pickle", 1)
    assert kind == "error"
    with pytest.raises(BadInput, match="absent"):
        raise cloudpickle.loads(error)
