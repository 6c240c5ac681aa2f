"""The options that several commands share."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EngineName(StrEnum):
    """Who does the work."""

    ray = "ray"
    inline = "inline"


class DeviceName(StrEnum):
    """Where networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


GalleryUrl = Annotated[
    str,
    typer.Option(
        "--gallery", "-g", help="Folder or URL (s3://bucket/prefix) of the gallery.", show_default=False
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe", "-r", help="Shipped recipe (reseen recipe list) or YAML file.", show_default=False
    ),
]
Engine = Annotated[
    EngineName,
    typer.Option(
        "--engine", help="ray: worker processes, here or on the cluster of RAY_ADDRESS. inline: this one."
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Worker processes; default: one a processor.")
]
Device = Annotated[
    DeviceName, typer.Option("--device", help="Where networks run; auto: on GPUs where there are some.")
]
Decoders = Annotated[
    int | None,
    typer.Option(
        "--decoders", min=1, help="Decoding processes a worker; default: 1, on a GPU one a processor."
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Networks through torch.compile: a minute more at the start.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no news; errors still.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder for copies of index objects; default: reseen in the user's cache folder."
    ),
]
MaxRejects = Annotated[
    float,
    typer.Option(
        "--max-rejects", min=0, max=1, help="Share of images without features above which the run stops."
    ),
]
Nprobe = Annotated[
    int | None, typer.Option("--nprobe", min=1, help="Inverted lists a query reads; default: the recipe's.")
]
GenerationNumber = Annotated[
    int | None, typer.Option("--generation", min=1, help="Generation to use; default: the newest.")
]

Images = Annotated[
    list[str], typer.Argument(metavar="IMAGE", help="Path or URL; - is standard input.", show_default=False)
]
Box = Annotated[
    str | None,
    typer.Option(
        "--box", metavar="X0,Y0,X1,Y1", help="Only this part, in pixels of the image as it is shown."
    ),
]
Top = Annotated[int, typer.Option("--top", min=1, help="Images to find.")]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        metavar="FILTER",
        help='Only images whose metadata fit: year >= 1990 and (city = "Rome" or not private = true).',
    ),
]


def cache_folder(given: Path | None) -> Path:
    """The folder of local copies: the one given, else `reseen` below XDG_CACHE_HOME or ~/.cache."""
    if given is not None:
        return given
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a relative XDG_CACHE_HOME is to be ignored.
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "reseen"
