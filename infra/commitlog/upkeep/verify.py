"""Whether the log is sound: every object whole, every commit after the one it names, all of it restorable."""

from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from core.errors import DatabaseFull, LogDamaged, ObjectMissing
from infra.commitlog.chain import LogObject
from infra.commitlog.dates import Misdated, bounds, misdated
from infra.commitlog.defences import open_database
from infra.commitlog.log import CommitLog
from infra.commitlog.objects import Objects
from infra.commitlog.paging.page_index import PageIndex
from infra.commitlog.soundness import soundness_of
from infra.progress import Progress, no_progress

_MADE_ANEW = "maintenance makes that of the newest snapshot anew"


@dataclass(slots=True)
class Findings:
    """What was found; sound, if there are no problems."""

    objects: int = 0
    bytes: int = 0
    head: int = 0  # TXID
    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)  # harmless: not part of the chain, and covered by what is
    warnings: list[str] = field(default_factory=list)  # dates of commits, what cannot be checked: nothing is lost


@dataclass(frozen=True, slots=True)
class _Link:
    item: LogObject
    predecessor: int  # checksums of commits; 0 is unknown
    checksum: int
    timestamp: int


def verify_log(log: CommitLog, scratch: Path, progress: Progress = no_progress) -> Findings:
    """Read every object and check it and its links, then restore the head into `scratch` and check that.

    Raises StoreError when the store cannot be read; everything else that is wrong is in the findings.
    """
    findings = Findings()
    links: list[_Link] = []
    missing: set[str] = set()  # URLs
    found = log.objects.everything()
    total = sum(item.size for item in found)
    for item in found:
        findings.objects += 1
        findings.bytes += item.size
        try:
            with closing(log.objects.read(item)) as change:
                header, position = change.header, change.position
                links.append(_Link(item, header.predecessor, position.checksum, header.timestamp))
        except LogDamaged as error:
            findings.problems.append(str(error))
        except ObjectMissing:
            missing.add(log.objects.url_of(item))
        progress("verify", findings.bytes, total)
    if missing:  # as a rule deleted by maintenance meanwhile, like others after they were read
        there = {log.objects.url_of(item) for item in log.objects.everything()}
        findings.problems += [f"{url} is listed, and cannot be read: it is missing" for url in sorted(missing & there)]
        links = [link for link in links if log.objects.url_of(link.item) in there]
    merged = [link for link in links if link.item.level]
    covered = max((link.item.max_txid for link in merged), default=0)
    run, rest = _newest_run([link for link in links if not link.item.level])
    for link in rest:
        report = findings.leftovers if link.item.max_txid <= covered else findings.problems
        report.append(f"{log.objects.url_of(link.item)} is not a part of the chain that leads to the newest commit")
    for link, message in _broken_links([*run, *merged]):
        findings.problems.append(f"{log.objects.url_of(link.item)} {message}")
    if wrong := _misdated([*run, *merged]):
        findings.warnings.append(str(wrong))
    _check_sidecars(log.objects, findings)
    _restore(log, scratch, findings)
    return findings


def _check_sidecars(objects: Objects, findings: Findings) -> None:
    """They have nothing that the snapshots do not have, so nothing is lost with one."""
    snapshots = objects.snapshots()
    for item in (item for item, has_sidecar in snapshots if has_sidecar):
        with suppress(ObjectMissing):  # deleted by maintenance meanwhile
            if wrong := _wrong_with_sidecar(objects, item):
                findings.warnings.append(f"{objects.url_of_sidecar(item)} {wrong}")
    there = {item.max_txid for item, _ in snapshots}
    urls = [objects.url_of_sidecar(item) for item in objects.sidecars() if item.max_txid not in there]
    findings.leftovers += [f"{url} is without its snapshot" for url in urls]


def _wrong_with_sidecar(objects: Objects, item: LogObject) -> str:
    try:
        index = PageIndex.decode(objects.sidecar(item))
    except LogDamaged as error:
        return f"{error}: reads go without it, and {_MADE_ANEW}"
    with suppress(LogDamaged), closing(objects.read(item)) as change:  # a snapshot's own damage is told already
        try:
            index.check_is_of(change.chunks)
        except LogDamaged as error:  # whole by its own checksum: nobody else finds out without reading the snapshot
            return f"{error}: delete it, and {_MADE_ANEW}"
    return ""


def _newest_run(singles: list[_Link]) -> tuple[list[_Link], list[_Link]]:
    """The commits of level 0 that follow each other up to the newest, and the others.

    Commits are deleted oldest first, so a gap, or another predecessor than the one that is there, is where an
    instance that had slept has used a number again.
    """
    ordered = sorted(singles, key=lambda link: link.item.max_txid)
    start = len(ordered) - 1
    while start > 0 and _follows(ordered[start], ordered[start - 1]):
        start -= 1
    return ordered[max(start, 0) :], ordered[: max(start, 0)]


def _follows(link: _Link, before: _Link) -> bool:
    known = link.predecessor and before.checksum
    return link.item.min_txid == before.item.max_txid + 1 and (not known or link.predecessor == before.checksum)


def _broken_links(links: list[_Link]) -> Iterator[tuple[_Link, str]]:
    ends = {link.item.max_txid: link for link in links}
    for link in links:
        before = ends.get(link.item.min_txid - 1)
        if before is None:
            continue  # deleted; or missing, and then the restore says so
        if not _follows(link, before):
            yield link, f"follows a commit {link.predecessor:016x}, but the one before is {before.checksum:016x}"


def _misdated(links: list[_Link]) -> Misdated | None:
    """Commits that are dated later than the store had them, or than a commit that came after them."""
    dated: dict[int, int] = {}
    for link in links:
        dated[link.item.max_txid] = max(dated.get(link.item.max_txid, 0), link.timestamp)
    found: Misdated | None = None
    follower: int | None = None  # its date
    for txid, bound in bounds(link.item for link in links).items():  # the newest first
        limit = bound if follower is None else min(bound, follower)
        if wrong := misdated(txid, dated[txid], limit):
            found = wrong.with_(found)
        follower = min(dated[txid], limit)
    return found


def _restore(log: CommitLog, scratch: Path, findings: Findings) -> None:
    try:
        findings.head = log.restore(scratch).txid
        if not findings.head:
            findings.problems.append(f"{log.url} is empty")
        else:
            with closing(open_database(str(scratch), apsw.SQLITE_OPEN_READONLY)) as connection:
                found = soundness_of(connection)
            if found.damage:
                findings.problems.append(f"{log.url} restores to a database that is damaged: {found.damage[0]}")
            findings.warnings += found.unchecked
    except LogDamaged as error:
        if str(error) not in findings.problems:
            findings.problems.append(str(error))
    except (apsw.IOError, apsw.FullError) as error:
        raise DatabaseFull(f"{scratch} cannot be checked: {error} (TMPDIR names another directory)") from error
    except apsw.Error as error:
        findings.problems.append(f"{log.url} restores to a file that SQLite cannot read: {error}")
