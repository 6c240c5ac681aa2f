"""The errors of s3fs, gcsfs and adlfs, as those raise them, mean the same to a store."""

import errno

import pytest

from ingest.backends import FsspecBackend
from ingest.errors import Unavailable
from ingest.storage_errors import lost_the_race
from ingest.store import Store


class ClientError(Exception):
    """As botocore's: the answer is in `response`."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(f"An error occurred ({code})")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class HttpError(Exception):
    """As gcsfs's."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.code = code


class HttpResponseError(Exception):
    """As azure's."""

    def __init__(self, error_code: str, status_code: int) -> None:
        super().__init__(error_code)
        self.error_code, self.status_code = error_code, status_code


class ResourceExistsError(HttpResponseError):
    pass


class NoCredentialsError(Exception):
    pass


class DefaultCredentialsError(Exception):
    pass


class ClientAuthenticationError(Exception):
    pass


def s3fs_error(code: str, status: int, number: int) -> OSError:
    error = OSError(number, code)
    error.__cause__ = ClientError(code, status)
    return error


RACES = {
    "s3fs": s3fs_error("PreconditionFailed", 412, errno.EINVAL),
    "s3fs, Amazon": FileExistsError("At least one of the pre-conditions you specified did not hold"),
    "gcsfs": FileExistsError("b/bucket/o"),
    "gcsfs, resumable": HttpError(412),
    "adlfs": FileExistsError("a"),
    "azure": ResourceExistsError("BlobAlreadyExists", 409),
    "azure, commit": HttpResponseError("ConditionNotMet", 412),
}
CONFLICT = s3fs_error("ConditionalRequestConflict", 409, errno.EIO)
PASSING = {
    "conflict": CONFLICT,
    "slow down": s3fs_error("SlowDown", 503, errno.EBUSY),
    "internal": s3fs_error("InternalError", 500, errno.EREMOTEIO),
    "gcs busy": HttpError(429),
    "azure busy": HttpResponseError("ServerBusy", 503),
    "reset": ConnectionResetError(),
    "timeout": TimeoutError(),
}
PERMANENT = {
    "denied": (PermissionError("Access Denied"), "access is refused"),
    "gcsfs denied": (OSError("Forbidden: b/bucket\nno"), "access is refused"),
    "azure denied": (HttpResponseError("AuthorizationFailure", 403), "access is refused"),
    "s3 keys": (NoCredentialsError("Unable to locate credentials"), "AWS_ACCESS_KEY_ID"),
    "gcs keys": (DefaultCredentialsError("not found"), "GOOGLE_APPLICATION_CREDENTIALS"),
    "azure keys": (ClientAuthenticationError("no"), "AZURE_STORAGE"),
    "too big": (s3fs_error("EntityTooLarge", 400, errno.EMSGSIZE), "EntityTooLarge"),
    "no space": (OSError(errno.ENOSPC, "No space left on device"), "make room"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "make room"),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), "read-only"),
}


class ScriptedFileSystem:
    """Answers writes with the errors of a script, then does them."""

    protocol = "gs"

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.objects: dict[str, bytes] = {}
        self.writes = 0

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        self.writes += 1
        if self.errors:
            raise self.errors.pop(0)
        self.objects[path] = data

    def cat_file(self, path: str, start: int | None, end: int | None) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][start:end]


def store_over(filesystem: ScriptedFileSystem) -> Store:
    return Store("gs://bucket", backend=FsspecBackend(filesystem, "bucket"), pauses=(0.0,) * 4)


@pytest.mark.parametrize("race", RACES)
def test_a_lost_race_is_an_answer(race: str) -> None:
    filesystem = ScriptedFileSystem(RACES[race])
    filesystem.objects["bucket/a"] = b"winner's"
    assert store_over(filesystem).create("a", b"loser's") is False
    assert filesystem.writes == 1


@pytest.mark.parametrize("race", RACES)
def test_a_write_that_the_client_repeated_lost_to_itself(race: str) -> None:
    filesystem = ScriptedFileSystem(RACES[race])
    filesystem.objects["bucket/a"] = b"mine"
    assert store_over(filesystem).create("a", b"mine") is True


def test_a_race_lost_to_what_is_deleted_by_now_is_lost() -> None:
    assert store_over(ScriptedFileSystem(RACES["gcsfs"])).create("a", b"x") is False


@pytest.mark.parametrize("error", PASSING)
def test_what_may_pass_is_tried_again(error: str) -> None:
    assert not lost_the_race(PASSING[error])
    filesystem = ScriptedFileSystem(PASSING[error], PASSING[error])
    assert store_over(filesystem).create("a", b"x") is True
    assert filesystem.writes == 3


@pytest.mark.parametrize("error", PERMANENT)
def test_what_will_not_pass_is_said_at_once_with_advice(error: str) -> None:
    failure, advice = PERMANENT[error]
    filesystem = ScriptedFileSystem(failure)
    with pytest.raises(Unavailable, match=advice):
        store_over(filesystem).create("a", b"x")
    assert filesystem.writes == 1


def test_a_bug_is_not_blamed_on_the_store() -> None:
    filesystem = ScriptedFileSystem(TypeError("a bytes-like object is required"))
    with pytest.raises(TypeError):
        store_over(filesystem).create("a", b"x")
    assert filesystem.writes == 1


def test_a_refusal_leaves_no_doubt_who_wrote() -> None:
    """After a 409 nothing was written; after a lost reply it may have been, so the bytes decide."""

    class Answers:
        def __init__(self, first: Exception) -> None:
            self.first: Exception | None = first

        def put_new(self, path: str, data: bytes) -> bool:
            error, self.first = self.first, None
            if error:
                raise error
            return False

        def get(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
            return b"same"

    assert not Store("memory://x", backend=Answers(CONFLICT), pauses=(0.0,)).create("a", b"same")
    assert Store("memory://x", backend=Answers(TimeoutError()), pauses=(0.0,)).create("a", b"same")


def test_a_server_that_ignores_ranges_is_not_believed() -> None:
    filesystem = ScriptedFileSystem()
    filesystem.objects["bucket/a"] = b"0123456789"
    filesystem.cat_file = lambda path, start, end: filesystem.objects[path]
    with pytest.raises(Unavailable, match="more than was asked"):
        store_over(filesystem).read_range("a", 2, 3)
