"""A directory or an S3 bucket behind a few verbs.

Credentials, region and endpoint come from the usual AWS variables, which obstore reads itself, all but AWS_CA_BUNDLE;
plain http is allowed only for an endpoint that somebody named (AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL).
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, S3Store

from core.errors import (
    ObjectExists,
    ObjectMissing,
    SettingsError,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    StoreUnreachable,
)
from infra.disk.durable import fsync_directory
from infra.disk.ownership import give_to_owner_of, if_kept, make_directories, make_directory, why_not_writable
from infra.storage.side_by_side import side_by_side
from infra.storage.store_errors import ending_of
from infra.storage.url import check_endpoint, redacted

# How long one attempt may take, with its body
SMALL_OBJECT_SECONDS = 3.0  # an ordinary commit
LARGE_OBJECT_SECONDS = 60.0
TRANSFER_SECONDS = 600.0  # for a whole download of what is as large as the database, or for one part of an upload

_CHUNK = 4 * 1024 * 1024  # bytes
_PART = 8 * 1024 * 1024  # of a large upload; S3 takes up to 10,000 of them
_PARTS_AT_ONCE = 4
READ_PART = 2 * 1024 * 1024  # of a large download, bytes; in memory are about four times as many as are under way
READ_AT_ONCE = 4
_CHECK_SECONDS = 5
_NAMES_REMEMBERED = 8
_DEEPEST = 2  # levels of directories: ltx/0
_UNFINISHED = ".being-written-"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DAY_SECONDS = 24 * 3600
_WRITTEN_AT = "litestream-timestamp"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_SUCH_RANGE = 416
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_WITHOUT_LINKS = (
    "{} cannot be created only if absent: its file system makes no hard links ({}), as FAT and some network shares. "
    "Use a directory of another file system, or S3"
)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of an object."""

    name: str
    size: int  # bytes
    modified: datetime  # by the store's clock, UTC
    dated: datetime | None = None  # by the writer's, where a listing has that as well


# Told of each request: put, get, list or delete; whether the store has answered it; the seconds it took
Asked = Callable[[str, bool, float], None]


def nobody_asks(verb: str, answered: bool, seconds: float) -> None:
    """Tell nobody."""


class _Stopwatch:
    """Of one request."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - since

    def seconds(self) -> float:
        return time.perf_counter() - self._started


class ObjectStore:
    """Objects under one URL, `s3://bucket/prefix` or `file:///directory`.

    Every method raises StoreRefused (no such bucket, access denied) or StoreUnavailable (anything that may
    pass by itself) with one line that names the URL and the cause.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = LARGE_OBJECT_SECONDS,
        retries: int = 2,
        asked: Asked = nobody_asks,
        parts_at_once: int = 1,
    ) -> None:
        """Raises SettingsError for an endpoint that is no URL.

        `timeout`: seconds for one request with its body. `retries`: how often a passing fault is tried again;
        a caller who must know what became of each create wants none. `asked`: whom to tell of each request.
        `parts_at_once`: how many requests `read` has under way for an object of a bucket, each for a part of it.
        """
        self.url = url.rstrip("/")
        self._asked = asked
        self._store: Any = None  # as long as it is a directory that is not there yet
        self._directory: Path | None = None
        self._inode: tuple[int, int] | None = None
        self._folders: dict[str, Path] = {}  # those below it that were asked for, by their names in it
        self._lasting: set[Path] = set()  # directories below it whose names are safe from a power cut
        self._named: tuple[tuple[str, int], ...] = ()  # the newest files of which that is known: name, inode
        self._timeout = timeout
        self._parts_at_once = parts_at_once
        self._racers: list[ObjectStore] = []
        with self._errors():
            if urlsplit(url).scheme == "file":
                self._directory = _directory_of(url)
                self._find_directory()
            else:
                self._store = _s3_store(url, timeout, retries)

    def check(self) -> None:
        """Prove that the store is there and may be listed and, for a directory, written.

        A start waits for this: a store that does not answer within a few seconds is unavailable.
        """
        if self._directory is None:
            with self._request("list"):
                impatient = _s3_store(self.url, _CHECK_SECONDS, 0)
                next(iter(obstore.list(impatient, chunk_size=1)), None)
        else:
            self.check_directories()

    def check_directories(self) -> None:
        """Prove that all directories can be read and written, if this is no bucket. The first one is made."""
        with self._errors():
            self._make_first()
            if self._directory and (reason := why_not_writable(_directories(self._directory, _DEEPEST))):
                raise StoreRefused(f"{self.url}: {reason}")

    def check_there(self) -> None:
        """Prove that the directory is there, if this is no bucket: one that is not made yet reads as empty."""
        with self._errors():
            if self._directory and not self._inode:
                raise StoreRefused(f"{self.url}: the directory is not there; put it back")

    def put(self, name: str, body: Path | bytes, written_at: datetime | None = None) -> None:
        """Write an object, replacing an older one of that name atomically. A large file goes up in parts."""
        self._put(name, body, "overwrite", written_at)

    def create(self, name: str, body: Path | bytes | bytearray, written_at: datetime | None = None) -> None:
        """Write an object if the name is free, in one request with all of it in memory. Raises ObjectExists.

        `written_at` is kept where Litestream looks for it: in an object's metadata, as a file's modification time.
        """
        self._put(name, body, "create", written_at)

    def race(self, name: str, body: bytes, racers: int) -> int:
        """Create an object over so many connections at the same moment, and return how many were told that it is new.

        Above 1 the store does not keep create-if-absent. Otherwise one without a clear answer raises its error.
        """
        with self._errors():
            while len(self._racers) < racers:
                alone = self
                if not self._directory:
                    alone = ObjectStore(self.url, timeout=self._timeout, retries=0, asked=self._asked)
                self._racers.append(alone)
        start = threading.Barrier(racers)
        with ThreadPoolExecutor(racers) as pool:
            answers = list(pool.map(lambda racer: racer._raced(name, body, start), self._racers[:racers]))
        unclear = [answer for answer in answers if isinstance(answer, StoreError)]
        won = answers.count(True)
        if unclear and won < 2:
            raise unclear[0]
        return won

    def read(self, name: str) -> Iterator[bytes]:
        """The object's bytes in chunks. Raises ObjectMissing, also in the middle where an object comes in parts."""
        if self._directory is None and self._parts_at_once > 1:
            yield from self._read_parts(name)
            return
        with self._request("get") as watch, self._chunks(name) as chunks:
            for chunk in chunks:
                with watch.paused():
                    yield chunk

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """The bytes from offset `begin` to before `end`, or fewer if there are no more. Raises ObjectMissing."""
        if self._directory is None:
            return self._part(name, begin, end)[0]
        with self._request("get"), self._opened(name) as descriptor:
            return os.pread(descriptor, end - begin, begin)

    def read_end(self, name: str, size: int) -> tuple[bytes, datetime]:
        """The last `size` bytes, or fewer if there are no more, and when the object was written, by the store's clock.

        Raises ObjectMissing.
        """
        with self._request("get"):
            if self._directory is not None:
                with self._opened(name) as descriptor:
                    status = os.fstat(descriptor)
                    end = os.pread(descriptor, size, max(status.st_size - size, 0))
                    return end, datetime.fromtimestamp(status.st_ctime, UTC)
            found = obstore.get(self._store, name, options={"range": {"suffix": size}})
            return bytes(found.bytes()), found.meta["last_modified"]

    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
        """Every object right in a directory, in order of name, from the first name after `after`.

        What is there before this is called and still when it has returned is among them. Of what comes or goes
        meanwhile any may be, whatever came or went before it: a directory is read piece by piece, and neither POSIX nor
        S3 says which moment a listing is of.
        """
        with self._request("list"):
            if self._directory is not None:
                return sorted(_files(self._directory, directory, after), key=lambda info: info.name)
            if after:
                found: list[Any] = [
                    meta for chunk in obstore.list(self._store, directory, offset=after) for meta in chunk
                ]
            else:
                found = list(obstore.list_with_delimiter(self._store, directory)["objects"])
            return sorted(
                (ObjectInfo(meta["path"], meta["size"], meta["last_modified"]) for meta in found),
                key=lambda info: info.name,
            )

    def directories(self, directory: str = "") -> list[str]:
        """The directories right in a directory, as paths from the top."""
        with self._request("list"):
            if self._store is None:
                return []
            return sorted(obstore.list_with_delimiter(self._store, directory)["common_prefixes"])

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone already is no error."""
        try:
            with self._request("delete"):
                if self._store is not None:
                    obstore.delete(self._store, name)
        except ObjectMissing:
            pass

    def remove_unfinished(self) -> None:
        """Remove what killed writers left unfinished in a directory over a day ago; a bucket has a rule for it."""
        if self._directory is not None:
            with self._errors():
                for path in self._directory.rglob(f"{_UNFINISHED}*.partial"):
                    with suppress(FileNotFoundError):
                        if time.time() - path.stat().st_mtime > _DAY_SECONDS:
                            path.unlink()

    def _read_parts(self, name: str) -> Iterator[bytes]:
        """Of a bucket's object. The first one says how many more there are, and of which object they must be."""
        first, size, version = self._part(name, 0, READ_PART)
        if len(first) == size:
            yield first
            return

        def rest(begin: int) -> bytes:
            end = min(begin + READ_PART, size)
            for last_try in (False, True):
                try:
                    part, _, _ = self._part(name, begin, end, version)
                    if len(part) == end - begin:
                        return part
                    raise StoreUnavailable(f"{self.url}/{name}: {len(part)} bytes came where {end - begin} are")
                except StoreUnavailable:
                    if last_try:
                        raise
            raise AssertionError("unreachable")

        parts = side_by_side(rest, range(len(first), size, READ_PART), self._parts_at_once)
        with closing(parts):
            yield first
            yield from parts

    def _part(self, name: str, begin: int, end: int, version: str | None = None) -> tuple[bytes, int, str | None]:
        """Bytes of a bucket's object, fewer if there are no more; the object's size; and what names this version of it.
        `version`: the one that it has to be, if any.
        """
        options: Any = {"range": (begin, end), **({"if_match": version} if version else {})}
        with self._request("get"):
            try:
                found = obstore.get(self._store, name, options=options)
                return bytes(found.bytes()), found.meta["size"], found.meta["e_tag"]
            except PreconditionError as error:
                raise StoreUnavailable(f"{self.url}/{name} was replaced while it was read") from error
            except BaseError as error:
                if ending_of(str(error)).status == _NO_SUCH_RANGE:
                    return b"", 0, None  # there are no more
                raise

    def _raced(self, name: str, body: bytes, start: threading.Barrier) -> bool | StoreError:
        """Whether this one has created it, on a connection that was there before the start."""
        try:
            with suppress(ObjectMissing):
                self.read_range(name, 0, 1)
        except StoreError as error:
            start.abort()
            return error
        try:
            start.wait()
            self.create(name, body)
        except threading.BrokenBarrierError:
            return False  # the one that could not connect says why
        except ObjectExists:
            return False
        except StoreError as error:
            return error
        return True

    def _put(self, name: str, body: Any, mode: Any, written_at: datetime | None = None) -> None:
        with self._request("put"):
            if self._directory is not None:
                folder, file = self._place_of(name)
                self._make_first()
                self._make_directory(folder)
                self._remember_named(name, _write_file(folder, file, body, mode, written_at))
                return
            attributes = {_WRITTEN_AT: written_at.isoformat().replace("+00:00", "Z")} if written_at else None
            obstore.put(
                self._store,
                name,
                body,
                mode=mode,
                attributes=attributes,
                chunk_size=_PART,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def _find_directory(self) -> None:
        """From then on it is this one, and no other that has its name."""
        assert self._directory
        try:
            inode = _inode(self._directory)
        except PermissionError:
            if reason := why_not_writable([self._directory.parent]):
                raise StoreRefused(f"{self.url}: {reason}") from None
            raise
        if inode:
            self._store, self._inode = LocalStore(self._directory), inode

    def _make_first(self) -> None:
        """Whoever only looks makes no directory: one that was moved away is to be put back in its place."""
        if self._directory and not self._inode:
            _make_directories(self.url, self._directory)
            self._find_directory()

    def _make_directory(self, path: Path) -> None:
        """Whoever has made it may not have come to the fsync of its name yet, so each of us does that once."""
        if path == self._directory or (path in self._lasting and path.is_dir()):
            return
        self._make_directory(path.parent)
        make_directory(path)
        self._lasting.add(path)

    @contextmanager
    def _chunks(self, name: str) -> Iterator[Iterator[bytes]]:
        if self._directory is None:
            yield map(bytes, obstore.get(self._store, name).stream(min_chunk_size=_CHUNK))
        else:
            with self._opened(name) as descriptor:
                yield iter(partial(os.read, descriptor, _CHUNK), b"")

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Open a file, and make its name outlive a power cut before anybody answers with its content: its writer may
        not have come to that yet, and never will if the power fails now. It is opened first, so that the name made
        safe is the one that was found.
        """
        folder, file = self._place_of(name)
        descriptor = os.open(f"{folder}/{file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            inode = os.fstat(descriptor).st_ino
            if (name, inode) not in self._named:
                fsync_directory(folder)
                self._remember_named(name, inode)
            yield descriptor
        finally:
            os.close(descriptor)

    def _place_of(self, name: str) -> tuple[Path, str]:
        """The directory that an object lies in, and what its file is called there."""
        assert self._directory
        directory, _, file = name.rpartition("/")
        folder = self._folders.get(directory)
        if folder is None:
            folder = self._folders[directory] = self._directory / directory
        return folder, file

    def _remember_named(self, name: str, inode: int) -> None:
        """Any thread may: it is replaced as a whole."""
        self._named = (*self._named[1 - _NAMES_REMEMBERED :], (name, inode))

    @contextmanager
    def _request(self, verb: str) -> Iterator[_Stopwatch]:
        """That there is no such object, or one already, is an answer as well."""
        watch, answered = _Stopwatch(), True
        try:
            with self._errors():
                yield watch
        except StoreError as error:
            answered = isinstance(error, ObjectMissing | ObjectExists)
            raise
        finally:
            self._asked(verb, answered, watch.seconds())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            if self._directory is not None and self._inode is None:
                self._find_directory()
            elif self._directory is not None and self._inode != _inode(self._directory):
                raise StoreRefused(
                    f"{self.url}: the directory was moved, removed or unmounted while in use; put it back"
                )
            yield
        except (BaseError, OSError) as error:
            raise self._translate(error) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # obstore exports no name for it
                raise
            raise StoreRefused(f"{self.url}: an AWS_* variable has a value that cannot be used ({error})") from error

    def _translate(self, error: Exception) -> StoreError:
        ending = ending_of(str(error))
        message = f"{self.url}: {ending.summary}"
        if ending.without_credentials:
            advice = "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
            return StoreUnreachable(f"{self.url}: {advice}")
        if ending.refusal:
            return StoreRefused(f"{self.url}: {ending.refusal} ({ending.summary})")
        if isinstance(error, AlreadyExistsError | FileExistsError):
            return ObjectExists(message)
        if isinstance(error, FileNotFoundError):
            return ObjectMissing(message)
        if isinstance(error, OSError) and error.errno == errno.EPERM:
            return StoreRefused(f"{self.url}: the file system does not permit that ({ending.summary})")
        if isinstance(error, PermissionError | PermissionDeniedError | UnauthenticatedError):
            return StoreRefused(f"{self.url}: access denied ({ending.summary})")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(f"{self.url}: nothing can be written: {error.strerror}")
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            return StoreRefused(f"{self.url}: nothing can be written: {error.strerror}")
        return StoreUnreachable(message) if ending.unsent else StoreUnavailable(message)


def _directory_of(url: str) -> Path:
    directory = Path(unquote(urlsplit(url).path))
    there = next(path for path in (directory, *directory.parents) if os.path.exists(path))
    if not os.path.isdir(there):
        raise StoreRefused(f"{url}: the directory cannot be created: {there} is a file")
    return directory


def _make_directories(url: str, directory: Path) -> None:
    try:
        make_directories(directory)
    except OSError as error:
        above = [next(path for path in directory.parents if os.path.exists(path))]
        reason = why_not_writable(above) or error.strerror
        raise StoreRefused(f"{url}: the directory cannot be created: {reason}") from error


def _s3_store(url: str, timeout: float, retries: int) -> S3Store:
    options: Any = {
        "allow_http": _endpoint().startswith("http://"),
        # the sooner: a connection that was never made is certain, a request that timed out is not
        "connect_timeout": timedelta(seconds=min(3, timeout / 2)),
        "timeout": timedelta(seconds=timeout),
        **_authorities(),
    }
    return S3Store.from_url(
        url,
        client_options=options,
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=30)},
    )


def _endpoint() -> str:
    """Raises SettingsError."""
    found = ""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if value := os.environ.get(name):
            found = found or value
            try:
                check_endpoint(value)
            except ValueError as error:
                raise SettingsError(f"{name}={redacted(value)!r}: {error}") from None
        else:
            os.environ.pop(name, None)  # obstore would take an empty one for an address
    return found


def _authorities() -> dict[str, Any]:
    """What vouches for a store besides what the machine trusts. Raises SettingsError."""
    name = os.environ.get("AWS_CA_BUNDLE")
    if not name:
        return {}
    import ssl

    try:
        certificates = Path(name).read_bytes()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(name)  # the client would pass over a mere key
    except ssl.SSLError as error:
        raise SettingsError(f"AWS_CA_BUNDLE={name!r} holds no certificate in PEM that can be read") from error
    except OSError as error:
        raise SettingsError(f"AWS_CA_BUNDLE={name!r} cannot be read: {error.strerror}") from error
    return {"root_certificate": certificates}


def _files(top: Path, directory: str, after: str) -> Iterator[ObjectInfo]:
    """The time of the last change of any kind is the kernel's, the other one is as its writer has dated it."""
    prefix = f"{directory}/" if directory else ""
    if not (top / directory).is_dir():
        return  # nothing has been written there
    with os.scandir(top / directory) as entries:
        for entry in entries:
            name = prefix + entry.name
            if name <= after or entry.name.startswith("."):
                continue
            with suppress(FileNotFoundError):  # deleted in this moment
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    changed, dated = (datetime.fromtimestamp(at, UTC) for at in (status.st_ctime, status.st_mtime))
                    yield ObjectInfo(name, status.st_size, changed, dated)


def _directories(top: Path, depth: int) -> Iterator[Path]:
    yield top
    if depth and os.access(top, os.R_OK | os.X_OK):
        with os.scandir(top) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _directories(Path(entry.path), depth - 1)


def _write_file(folder: Path, name: str, body: Path | bytes | bytearray, mode: str, written_at: datetime | None) -> int:
    """Whole, and safe from a power cut, before the name is there for anybody to see. Returns the inode.

    obstore's LocalStore would link the file into place without any fsync.
    """
    path = f"{folder}/{name}"
    if mode == "create" and body == b"":
        return _create_empty(folder, path)  # which is whole at once, and needs no link
    unfinished = f"{folder}/{_UNFINISHED}{token_hex(8)}.partial"
    descriptor = os.open(unfinished, _NEW, 0o600)
    try:
        try:
            for piece in _pieces_of(body) if isinstance(body, Path) else [body]:
                _write_all(descriptor, piece)
            with if_kept():
                os.fchmod(descriptor, 0o644)
            give_to_owner_of(folder, descriptor)
            if written_at:
                nanoseconds = (written_at - _EPOCH) // timedelta(microseconds=1) * 1000  # a float would miss some
                with if_kept():
                    os.utime(descriptor, ns=(nanoseconds, nanoseconds))
            os.fsync(descriptor)
            inode = os.fstat(descriptor).st_ino
        finally:
            os.close(descriptor)
        if mode == "create":
            try:
                os.link(unfinished, path)
            except FileExistsError:
                fsync_directory(folder)  # whoever hears of the object may count on it
                raise
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise StoreRefused(_WITHOUT_LINKS.format(path, error.strerror)) from error
                raise
        else:
            os.replace(unfinished, path)
        _make_outlive_power_cuts(folder, path)
        return inode
    finally:
        with suppress(OSError):  # it must not hide what has happened
            os.unlink(unfinished)


def _create_empty(folder: Path, path: str) -> int:
    descriptor = os.open(path, _NEW, 0o644)
    try:
        give_to_owner_of(folder, descriptor)
        inode = os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
    _make_outlive_power_cuts(folder, path)
    return inode


def _pieces_of(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        yield from iter(partial(file.read, _CHUNK), b"")


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _make_outlive_power_cuts(folder: Path, path: str) -> None:
    try:
        fsync_directory(folder)
    except OSError as error:
        # unlike every error before it this one leaves an object behind
        raise StoreUnavailable(f"{path}: cannot be made to outlive a power cut: {error.strerror}") from error


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
