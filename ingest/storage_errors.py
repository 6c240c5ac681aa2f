"""What the errors of storage libraries mean, without importing the libraries.

Each answers the same event in its own way. Seen in the sources of s3fs 2026.9, gcsfs 2026.8 and adlfs
2026.8, a create-only write that comes second raises:

- s3fs: `OSError` (errno 22) whose cause is botocore's `ClientError` with code `PreconditionFailed`;
  `FileExistsError` if the server names the condition, which Amazon's does and SeaweedFS does not
- gcsfs: `FileExistsError` (from status 412)
- adlfs: `FileExistsError` (from azure's `ResourceExistsError`); older versions let azure's error through
- memory and local folders: `FileExistsError`
"""

import errno
from collections.abc import Iterator

_RACE_CODES = {"PreconditionFailed", "412", "BlobAlreadyExists", "ConditionNotMet"}

# The store did not do it and says so. Amazon answers 409 while another conditional write is in flight.
_REFUSAL_CODES = {"ConditionalRequestConflict", "OperationAborted", "SlowDown", "409", "429", "503"}

_PERMANENT_CODES = {
    "AuthorizationHeaderMalformed",
    "EntityTooLarge",
    "InvalidArgument",
    "InvalidBucketName",
    "InvalidRequest",
    "KeyTooLongError",
    "MethodNotAllowed",
    "NotImplemented",
}
_PERMANENT_ERRNOS = {
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOSYS,
    errno.EPERM,
    errno.EROFS,
}
_PERMANENT_KINDS = (
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    FileExistsError,
    ValueError,  # a bad request
)
_CREDENTIAL_ERRORS = {
    "ClientAuthenticationError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}


def lost_the_race(error: BaseException) -> bool:
    """Whether a failed create-only write says that something was there already."""
    for cause in _chain(error):
        if isinstance(cause, FileExistsError) or type(cause).__name__ == "ResourceExistsError":
            return True
        if not _RACE_CODES.isdisjoint(_codes(cause)):
            return True
    return False


def may_have_written(error: BaseException) -> bool:
    """Whether a write that failed so may have been done all the same (its reply was lost)."""
    if isinstance(error, PermissionError | NotADirectoryError):
        return False
    return all(_REFUSAL_CODES.isdisjoint(_codes(cause)) for cause in _chain(error))


def may_pass(error: BaseException) -> bool:
    """Whether the same operation may succeed in a moment."""
    if isinstance(error, _PERMANENT_KINDS) or getattr(error, "errno", None) in _PERMANENT_ERRNOS:
        return False
    if is_credential_error(error) or is_forbidden(error):
        return False
    return all(_PERMANENT_CODES.isdisjoint(_codes(cause)) for cause in _chain(error))


def is_credential_error(error: BaseException) -> bool:
    """Whether no credentials were found, or none that are whole."""
    return any(type(cause).__name__ in _CREDENTIAL_ERRORS for cause in _chain(error))


def is_forbidden(error: BaseException) -> bool:
    """Whether the store knows who asks and refuses."""
    return any(
        isinstance(cause, PermissionError)
        or str(cause).startswith("Forbidden")  # gcsfs: a bare OSError
        or not {"401", "403", "AccessDenied"}.isdisjoint(_codes(cause))
        for cause in _chain(error)
    )


def is_missing_bucket(error: BaseException) -> bool:
    names = {"NoSuchBucket", "ContainerNotFound"}
    return any(not names.isdisjoint(_codes(cause)) for cause in _chain(error))


def is_past_the_end(error: BaseException) -> bool:
    """Whether a ranged read starts at or behind the object's last byte (status 416)."""
    return any(not {"InvalidRange", "416"}.isdisjoint(_codes(cause)) for cause in _chain(error))


def advice(error: BaseException) -> str:
    """What to do about an error, for the end of a message."""
    if is_credential_error(error):
        return (
            "no usable credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3), "
            "GOOGLE_APPLICATION_CREDENTIALS (gs) or AZURE_STORAGE_CONNECTION_STRING (az)"
        )
    if is_forbidden(error):
        return "access is refused: grant this user, or these credentials, reading and writing there"
    match getattr(error, "errno", None):
        case errno.ENOSPC | errno.EDQUOT:
            return "no space is left: make room, then run the same command again"
        case errno.EROFS:
            return "the file system is mounted read-only: mount it for writing, or use another folder"
        case errno.ENAMETOOLONG:
            return "use a folder with a shorter path"
    return "nothing half-written is visible: run the same command again once the cause is mended"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _codes(error: BaseException) -> set[str]:
    """Every code an error carries: botocore's, azure's (`error_code`, `status_code`) and gcsfs's (`code`)."""
    found = {str(getattr(error, name, None)) for name in ("code", "error_code", "status_code", "status")}
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found.add(str(response.get("Error", {}).get("Code")))
        found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode")))
    return found
