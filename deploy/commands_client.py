"""`reseen query`, which asks a server, and `reseen keys`, which says who may."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.options import Box, Images, Json, Nprobe, Quiet, Top, Where
from deploy.step_options import Depth, Rerank
from deploy.terminal import Output, table


class ScopeName(StrEnum):
    """What a key is good for; the same as `serve.http.key_file.Scope`, which is slow to import."""

    search = "search"
    read = "read"
    metrics = "metrics"


KeysFile = Annotated[
    Path,
    typer.Option(
        "--keys", metavar="FILE", help="The server's file of keys; hashes only.", show_default=False
    ),
]


def add_to(app: typer.Typer) -> None:
    app.command()(query)
    keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The API keys of a server.")
    keys.command("add")(add)
    keys.command("list")(list_all)
    keys.command("revoke")(revoke)
    app.add_typer(keys, name="keys")


def query(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Of a server: http://HOST:PORT.", show_default=False)
    ],
    images: Images,
    box: Box = None,
    top: Top = 10,
    where: Where = None,
    rerank: Rerank = None,
    depth: Depth = None,
    nprobe: Nprobe = None,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial/--no-allow-partial",
            help="Take an answer from only some of the shards or steps, and say so; or fail.",
        ),
    ] = True,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="For each image, all tries together.")
    ] = 30.0,
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Holds the API key; default: the environment's RESEEN_API_KEY, if it is set."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find what a photograph shows with a server; prints what `reseen search` prints."""
    from deploy import query_job
    from deploy.answer_text import all_refused, answer_text
    from deploy.search_job import parse_box

    output = Output(json, quiet)
    request = query_job.request_of(
        top=top,
        where=where,
        rerank=rerank,
        depth=depth,
        nprobe=nprobe,
        allow_partial=allow_partial,
        box=None if box is None else parse_box(box),
    )
    answered = query_job.query(url, images, request, query_job.api_key(key_file), timeout, output)
    output.result(answered, "\n\n".join(answer_text(answer) for answer in answered["queries"]))
    if refused := all_refused(answered["queries"]):
        raise refused


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.", show_default=False)],
    keys: KeysFile,
    scope: Annotated[
        list[ScopeName] | None,
        typer.Option(help="What it is good for, again for more; default: all.", show_default=False),
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option(min=0, help="Days that it is valid; default: until it is revoked.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a key, add it to the file, and print it: only now, for only its hash is kept."""
    from datetime import UTC, datetime, timedelta

    from ingest.errors import BadInput
    from serve.http.key_file import Scope, add_key

    scopes = tuple(Scope) if not scope else tuple(Scope(each.value) for each in scope)
    try:
        expires = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    except OverflowError:
        raise BadInput(f"--expires-days {expires_days}: no calendar goes so far") from None
    made, text = add_key(keys, name, scopes, expires)
    output = Output(json, False)
    whose, what = _printable(made.name), ", ".join(made.scopes)
    output.say(f"key {made.id} of {whose}, for {what}; it is not shown again")
    output.result(_shown(made) | {"key": text}, text)


def list_all(keys: KeysFile, json: Json = False) -> None:
    """List the keys: whose, for what and until when; never the keys themselves."""
    import time

    from ingest.errors import NotFound
    from serve.http.key_file import list_keys

    if not keys.exists():
        raise NotFound(
            f"there is no file of keys {keys}: check the spelling, or make one with reseen keys add"
        )
    found = list_keys(keys)
    rows = [["id", "name", "scopes", "created", "expires"]]
    for key in found:
        shown = _shown(key)
        ends = shown["expires"] or "never"
        late = "" if key.valid(time.time()) else " (over)"
        rows.append([key.id, _printable(key.name), ",".join(key.scopes), shown["created"], ends + late])
    Output(json, False).result({"keys": [_shown(key) for key in found]}, table(rows))


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Of the key, not the key.", show_default=False)],
    keys: KeysFile,
    json: Json = False,
) -> None:
    """Take a key back; servers that use the file notice within seconds."""
    import re

    from serve.http.key_file import revoke_key

    whole = re.search(r"reseen_([0-9a-f]+)_", key_id)  # somebody has only the key; no error may show it
    gone = revoke_key(keys, whole[1] if whole else key_id)
    Output(json, False).result(_shown(gone), f"key {gone.id} of {_printable(gone.name)} is revoked")


def _shown(key: Any) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": [str(scope) for scope in key.scopes],
        "created": _when(key.created),
        "expires": None if key.expires is None else _when(key.expires),
    }


def _when(at: Any) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)
