"""Fitted models on the store: safetensors, named by their content, never pickle.

`models/<digest>/model.safetensors` holds the arrays of one model and, as its metadata, a JSON header that
says what it is and what it was fitted from. The digest is that of the object's bytes: a model that loads
is the model that was named.
"""

import json
import struct
from typing import Any

import numpy as np

from ingest.errors import BadInput, Corrupt, NotFound
from ingest.gallery import Gallery, model_path
from ingest.image_features import packed
from ingest.records import DIGEST_LENGTH, canonical_json, digest_of_bytes, sha256
from ingest.tables import write_object

FORMAT = 1


def save_model(gallery: Gallery, kind: str, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Writes a fitted model unless it is there; returns its digest.

    Args:
        kind: what it is, such as `vlad`; stated again when it is loaded.
        header: JSON that goes with it: settings, notes, what it was fitted from.
    """
    data = model_bytes(kind, header, arrays)
    digest = digest_of_bytes(data)
    write_object(gallery.store, model_path(digest), data)
    return digest


def model_bytes(kind: str, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """The object of a model; equal models give equal bytes."""
    # One key: safetensors does not promise an order of several.
    stated = {**header, "kind": kind, "format": FORMAT}
    return packed(arrays, {"reseen": canonical_json(stated).decode()})


def load_model(gallery: Gallery, digest: str, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A model's header and arrays.

    Raises:
        NotFound: the gallery has no such model.
        Corrupt: its bytes are not those that its name promises, or it is of another kind.
    """
    from safetensors.numpy import load

    path = model_path(digest)
    try:
        data = gallery.store.read(path)
    except NotFound:
        raise NotFound(
            f"{gallery.store.where(path)} is missing, and the generation needs it; restore it from a copy, "
            "or fit anew with reseen build --refit"
        ) from None
    if sha256(data)[:DIGEST_LENGTH] != digest:
        raise Corrupt(
            f"{gallery.store.where(path)} is damaged: its bytes do not match its name; restore it from a copy"
        )
    header = _header(data)
    if header.get("kind") != kind:
        raise Corrupt(f"{gallery.store.where(path)} is a model of kind {header.get('kind')}, not {kind}")
    if header.get("format") != FORMAT:
        raise BadInput(
            f"{gallery.store.where(path)} has format {header.get('format')} and this Reseen reads {FORMAT}: "
            "install the version that wrote it, or fit anew with reseen build --refit"
        )
    return header, load(data)


def _header(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    return dict(json.loads(metadata["reseen"]))
