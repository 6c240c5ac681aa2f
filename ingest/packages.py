"""Whether `import train` finds Reseen's `train`, and not a `train.py` in somebody's working folder."""

import importlib.util
import sys
from pathlib import Path

from ingest.errors import BadInput

PACKAGES = ("ingest", "index", "serve", "train", "deploy")


def check_packages() -> None:
    """Refuses to go on unless Reseen's five packages are those that lie beside this very file.

    The driver checks at its start, and every worker at its own: Ray puts the driver's working folder in
    front of its workers' path. Nothing is imported.

    Raises:
        BadInput: a package is shadowed by another module of its name, or is missing.
    """
    root = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        ours = root / name / "__init__.py"
        found = _location(name)
        if found != ours:
            raise BadInput(
                f"Python finds {found or 'nothing'} for Reseen's package `{name}`, which is {ours}: "
                + (f"rename {found}, or work in another folder" if found else "install Reseen again")
            )


def _location(name: str) -> Path | None:
    """The file that `import name` has given, or would give; a folder where there is no file."""
    try:
        spec = getattr(sys.modules.get(name), "__spec__", None) or importlib.util.find_spec(name)
    except ValueError:  # a module that somebody made by hand
        spec = None
    if spec is None:
        return None
    if spec.origin is None or not spec.has_location:
        return next((Path(folder).resolve() for folder in spec.submodule_search_locations or ()), None)
    return Path(spec.origin).resolve()
