"""Interprets a server's answer: try again, missing, exists already, not allowed, full. The module does no I/O.

The client (obstore, over the Rust crate object_store) has classes for only a few kinds of failure. Any other failure is
a `GenericError` whose text holds the status code and the server's message.
"""

from __future__ import annotations

import os
import re

from ntkpipe.errors import NtkpipeError, ResourceError, StoreError
from ntkpipe.storage.protocol import MissingObjectError
from ntkpipe.storage.retry import TemporaryError

_NEEDED = {
    "s3": {
        "get": "s3:GetObject",
        "put": "s3:PutObject",
        "size": "s3:GetObject",
        "list": "s3:ListBucket",
        "delete": "s3:DeleteObject",
    },
    "gs": {
        "get": "storage.objects.get",
        "put": "storage.objects.create (and storage.objects.delete to replace one)",
        "size": "storage.objects.get",
        "list": "storage.objects.list",
        "delete": "storage.objects.delete",
    },
    "az": dict.fromkeys(("get", "size", "list"), "Storage Blob Data Reader")
    | dict.fromkeys(("put", "delete"), "Storage Blob Data Contributor"),
}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), or a role of the machine; profiles are not read",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (a key file), or a service account of the machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or AZURE_CLIENT_ID, _SECRET and AZURE_TENANT_ID",
}
_SECRETS = re.compile("KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL")
_STATUS = re.compile(r"status code: (\d{3})|\bstatus: (\d{3}),")
_THROTTLES = ("SlowDown", "Throttl", "TooManyRequests", "ServerBusy", "rateLimitExceeded", "RequestLimitExceeded")
_PASSING = ("InternalError", "ServiceUnavailable", "RequestTimeout", "OperationTimedOut")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")
_WRONG_CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "AuthenticationFailed",
)
_METADATA_HOSTS = ("169.254.", "metadata.google.internal", "metadata.azure")


class ExistsError(Exception):
    """An object under the key already exists."""


def explain(error: Exception, kind: str, scheme: str, place: str, key: str) -> Exception:
    """Return the exception to raise instead of the client's.

    Args:
        error: the exception that the client raised.
        kind: kind of request: `get`, `put`, `size`, `list` or `delete`.
        scheme: scheme of the store's URL.
        place: URL of the store.
        key: key of the object, or the prefix of a listing.

    Returns:
        `TemporaryError`, `MissingObjectError`, `ExistsError`, `ResourceError`, or another `StoreError` that says what
        to do.
    """
    if isinstance(error, (NtkpipeError, TemporaryError, ExistsError)):
        return error
    text = str(error)
    found = _STATUS.search(text)
    status = int(found.group(1) or found.group(2)) if found else None
    said = said_by(text)
    name, where = type(error).__name__, f"{place}/{key}"

    if any(host in text for host in _METADATA_HOSTS):
        # The metadata service is asked only if no credentials are given. It fails at once outside the cloud, and
        # sometimes inside it.
        about = f"no credentials for {place}: set {_CREDENTIALS[scheme]} ({said})"
        return TemporaryError("connection", about, at_most=3)
    if any(code in text for code in _NO_BUCKET):
        return StoreError(
            f"there is no bucket for {place}: create it, or correct store.url (or the endpoint in the environment)"
        )
    if isinstance(error, FileNotFoundError) or name == "NotFoundError":
        return MissingObjectError(f"there is no object {where}")
    if name in ("AlreadyExistsError", "PreconditionError"):
        # S3 answers 409 while another write of the same key is unfinished. Azure's 409 is final.
        if status == 409 and scheme == "s3":
            return TemporaryError("conflict", f"409 {said}")
        return ExistsError(where)
    if any(code in text for code in _WRONG_CREDENTIALS) or status == 401 or name == "UnauthenticatedError":
        return StoreError(
            f"{place} refuses the credentials or the clock of this machine ({said}): check {_CREDENTIALS[scheme]}"
        )
    if status == 403 or name == "PermissionDeniedError":
        listing = (
            " (or s3:ListBucket, because without it S3 gives this answer for missing objects too)"
            if scheme == "s3" and kind in ("get", "size")
            else ""
        )
        return StoreError(
            f"not allowed to {_VERBS[kind]} {where}: the credentials need {_NEEDED[scheme][kind]}{listing}. {said}"
        )
    if status == 507 or "QuotaExceeded" in text or "StorageFull" in text:
        return ResourceError(
            f"no space to store {where} ({said}): free some with `ntkpipe clean`, or set store.url to a larger store. "
            "Stored objects are intact; repeat the same command to continue."
        )
    if status == 501 and kind == "put":
        return StoreError(
            f"{place} does not support put-if-absent (If-None-Match), so two writers could damage each other's "
            f"objects: set store.url to a store that supports it. {said}"
        )
    if status in (429, 503) or any(code in text for code in _THROTTLES):
        return TemporaryError("throttled", f"{status or ''} {said}".strip())
    if status is not None and (status >= 500 or status == 408 or any(code in text for code in _PASSING)):
        return TemporaryError("server", f"{status} {said}")
    if status is None and (
        "HttpError" in text or "HTTP error" in text or "body" in text or "invalid list response" in text
    ):
        return TemporaryError("connection", said)
    if any(code in text for code in _PASSING):
        return TemporaryError("server", said)
    return StoreError(f"cannot {_VERBS[kind]} {where}: {said}")


_VERBS = {"get": "read", "put": "store", "size": "look at", "list": "list", "delete": "delete"}


def said_by(text: str) -> str:
    """Return the informative part of a client's error on one line, without secrets and without queries (signatures)."""
    head = text.partition("\n\nDebug source")[0]
    code, message = (re.search(f"<{tag}>([^<]*)</{tag}>", head) for tag in ("Code", "Message"))
    if code is not None:
        head = f"{code.group(1)}: {message.group(1)}" if message else code.group(1)
    else:
        root = re.findall(r'(?:source|message|error): "([^"]+)"', text)
        head = re.sub(r"\s+", " ", head) + (f" ({root[-1]})" if root else "")
    head = re.sub(r"\?\S*", "", head)
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRETS.search(name):
            head = head.replace(value, "...")
    return head[:300]
