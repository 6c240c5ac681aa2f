"""The file of API keys: who may ask a server for what. Only hashes are kept, and it is changed in one step.

A key reads `reseen_<id>_<secret>`; the secret is 32 random bytes, so that one sha256 is hash enough: nothing
can be guessed. Several keys are valid at once, so a key is changed without a gap: add the new one, move the
callers over, revoke the old one.
"""

import base64
import hashlib
import json
import os
import secrets
import stat
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ingest.errors import BadInput, Conflict, NotFound

_LONGEST_FILE = 4 * 2**20


class Scope(StrEnum):
    """What a key may be good for."""

    SEARCH = "search"  # searches, uploads, comparisons, similar images and duplicates
    READ = "read"  # rows, thumbnails and the generation
    METRICS = "metrics"


class Key(BaseModel):
    """A key as it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(max_length=200, description="for people: whose it is")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the secret's 32 bytes", repr=False)
    scopes: tuple[Scope, ...]
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def valid(self, now: float) -> bool:
        """Whether it has not expired at a time in seconds since 1970."""
        return self.expires is None or now < self.expires.timestamp()


class _KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=1, ge=1, le=1)
    keys: tuple[Key, ...] = ()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file, in its order.

    Raises:
        NotFound, BadInput: it is not there, or not a file of keys.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            raise ValueError("too long")
        return _KeyFile.model_validate_json(data).keys
    except FileNotFoundError as error:
        raise NotFound(f"there is no {path}; make a key: reseen keys add") from error
    except OSError as error:
        raise BadInput(f"cannot read the keys in {path}: {error.strerror}") from error
    except ValidationError as error:
        where = ", ".join(".".join(map(str, each["loc"])) or "it" for each in error.errors()[:3])
        raise BadInput(f"{path} is no file of keys ({where}); mend it, or make a new one") from None
    except ValueError as error:
        raise BadInput(f"{path} is no file of keys ({error}); mend it, or make a new one") from None


def list_keys(path: Path) -> list[Key]:
    """The keys of a file, oldest first; none if there is no file."""
    try:
        return sorted(read_keys(path), key=lambda key: key.created)
    except NotFound:
        return []


def add_key(
    path: Path, name: str, scopes: Collection[Scope] = tuple(Scope), expires: datetime | None = None
) -> tuple[Key, str]:
    """Makes a key and adds it to a file, which is made if there is none.

    Args:
        expires: with a time zone; None: never.

    Returns:
        The key, and its text, which is nowhere else and cannot be had again.
    """
    if not scopes:
        raise BadInput(f"a key without scopes opens nothing; choose of {', '.join(Scope)}")
    secret = secrets.token_bytes(32)
    try:
        key = Key(
            id=secrets.token_hex(6),
            name=name,
            sha256=hashlib.sha256(secret).hexdigest(),
            scopes=tuple(scope for scope in Scope if scope in scopes),
            created=datetime.now(UTC).replace(microsecond=0),
            expires=expires,
        )
    except ValidationError as error:
        raise BadInput(
            f"a key cannot have this {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}"
        ) from None
    _change(path, lambda keys: (*keys, key))
    encoded = base64.urlsafe_b64encode(secret).decode().rstrip("=")
    return key, f"reseen_{key.id}_{encoded}"


def revoke_key(path: Path, key_id: str) -> Key:
    """Takes a key out of a file; servers notice within a second or so.

    Raises:
        NotFound: no key has this id.
    """
    revoked = next((key for key in list_keys(path) if key.id == key_id), None)
    if revoked is None:
        raise NotFound(f"no key in {path} has the id {key_id!r}; see: reseen keys list")
    _change(path, lambda keys: tuple(key for key in keys if key.id != key_id))
    return revoked


def _change(path: Path, change: Callable[[tuple[Key, ...]], tuple[Key, ...]]) -> None:
    """Rewrites the file in one step, readable by its owner only; two writers at once do not lose a key."""
    path = path.resolve()  # a link stays one: servers may follow what it leads to
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            before = read_keys(path) if path.exists() else ()
            _write(path, _KeyFile(keys=change(before)))
    except OSError as error:
        raise BadInput(f"cannot write keys to {path} ({error.strerror}): choose another file") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise Conflict(f"cannot lock {path} ({error.strerror}): keep keys on a local disk") from error
        yield
    finally:
        os.close(lock)


def _write(path: Path, content: _KeyFile) -> None:
    """Owner, group and what the group may read stay: a server of another user must go on reading it."""
    before = path.stat() if path.exists() else None
    mode = 0o600 if before is None else stat.S_IMODE(before.st_mode) & 0o640
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content.model_dump(mode="json"), indent=1) + "\n")
            file.flush()
            if before is not None:
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except PermissionError as error:
        temporary.unlink(missing_ok=True)
        raise BadInput(f"{path} is another user's ({error.strerror}): change keys as that user") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
