"""`reseen serve`: a server over a gallery, in this process or on Ray Serve."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.options import CacheFolder, Quiet, cache_folder
from deploy.terminal import Output
from ingest.errors import BadInput

if TYPE_CHECKING:
    from serve.front import DoorSettings


class LevelName(StrEnum):
    """Of the log."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def add_to(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    gallery: Annotated[
        str | None,
        typer.Option(
            "--gallery", "-g", help="Folder or URL (s3://bucket/prefix) of the gallery.", show_default=False
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; another than loopback needs --keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="0: any that is free (not with --ray).")
    ] = 8000,
    groups: Annotated[
        int, typer.Option(min=1, help="Groups that the shards are cut into; with --ray, one a node.")
    ] = 1,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Replicas of each group; default: 1, with --ray 2.", show_default=False),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="For the index: of all groups together, with --ray of each replica; default: no limit.",
        ),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="API keys (reseen keys add) that callers must have.")
    ] = None,
    uploads: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Folder or URL for uploaded images; `none`: they are not kept; default: the cache "
            "folder, on a cluster none.",
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Calibration of scores (reseen evaluate --calibration)."),
    ] = None,
    cache: CacheFolder = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="On Ray Serve: the cluster of RAY_ADDRESS, or one started here.")
    ] = False,
    ingresses: Annotated[
        int, typer.Option("--ingress-replicas", min=1, help="With --ray: replicas that answer HTTP.")
    ] = 2,
    encoders: Annotated[
        int, typer.Option("--encoder-replicas", min=1, help="With --ray: replicas that encode images.")
    ] = 1,
    rerankers: Annotated[
        int, typer.Option("--reranker-replicas", min=1, help="With --ray: replicas that look again at pairs.")
    ] = 1,
    cpus: Annotated[
        float, typer.Option(min=0, help="With --ray: processors that Ray sets aside for each replica.")
    ] = 0.0,
    roll: Annotated[
        bool,
        typer.Option("--roll", help="With --ray: start every replica of a running server anew, in turn."),
    ] = False,
    check_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Check a file for `serve deploy`, every key of it, and do no more."
        ),
    ] = None,
    log_level: Annotated[
        LevelName, typer.Option(help="Least level of the log, JSON lines on standard error.")
    ] = LevelName.info,
    quiet: Quiet = False,
) -> None:
    """Answer searches over HTTP, with a page to look at, until SIGTERM or Ctrl-C."""
    from deploy.serve_job import EmbeddedServer, check_door, serve_embedded

    output = Output(False, quiet)
    if check_config is not None:
        from deploy.serve_config import check_serve_config

        output.result({}, check_serve_config(check_config))
        return
    if gallery is None:
        raise BadInput("serve needs --gallery: a folder or URL")
    if roll and not ray:
        raise BadInput("--roll is for servers on Ray: add --ray")
    if roll and uploads is None:
        raise BadInput(
            "--roll needs --uploads as the server has it: a folder or URL, or none (a server that started "
            "its Ray itself keeps them in `uploads` of the cache folder unless told otherwise)"
        )
    check_door(host, keys)
    folder = cache_folder(cache)
    door = _door(keys, uploads, calibration or [], folder, on_cluster=ray and "RAY_ADDRESS" in os.environ)
    memory_bytes = None if memory is None else memory * 2**20
    if not ray:
        serve_embedded(
            EmbeddedServer(gallery, door, folder, host, port, groups, replicas or 1, memory_bytes),
            log_level.value,
            output,
        )
        return
    from deploy.ray_server import ray_server
    from deploy.serve_ray_job import roll as roll_server
    from deploy.serve_ray_job import serve_on_ray

    server = ray_server(
        gallery,
        door,
        host=host,
        port=port,
        address=os.environ.get("RAY_ADDRESS"),
        groups=groups,
        replicas=replicas or 2,
        cache=folder,
        memory_bytes=memory_bytes,
        cpus=cpus,
        log_level=log_level.value,
        fronts=(ingresses, encoders, rerankers),
    )
    if roll:
        roll_server(server, output)
    else:
        serve_on_ray(server, output)


def _door(
    keys: Path | None, uploads: str | None, calibrations: list[Path], cache: Path, on_cluster: bool
) -> "DoorSettings":
    from ingest.store import Store
    from serve.front import DoorSettings

    place = uploads
    if uploads == "none":
        place = None
    elif uploads is None and not on_cluster:
        place = str(cache / "uploads")
    return DoorSettings(
        keys_file=None if keys is None else str(keys.absolute()),
        uploads=None if place is None else Store(place).url,
        calibrations=tuple(str(path.absolute()) for path in calibrations),
    )
