"""How much time has really passed, where the store's clock is this machine's own.

A directory's times are the host's. When its clock leaps ahead, everything looks old at once; the time since the machine
was booted does not leap. Where the two part, what was there before is by so much younger than it looks. A virtual
machine that was paused looks the same, and is treated so: that time nobody could have used. A clock that leaps back and
forth again between two looks is not noticed.
"""

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TOLERANCE_SECONDS = 60.0  # between two looks; clocks are slewed
_REMEMBERED = 32
_A_DAY_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Boot:
    """A start of the machine, and how long ago that was."""

    id: str  # of this start of the machine; empty where there is none, as on other systems than Linux
    uptime: float  # seconds since then, sleep included


@dataclass(frozen=True, slots=True)
class Leap:
    """How far the clock has leapt ahead, once."""

    at: float  # when it was noticed, by the clock that has leapt; seconds since 1970
    by: float  # seconds


@dataclass(frozen=True, slots=True)
class HostTime:
    """What has been seen of the clock. Times are seconds since 1970."""

    boot: Boot
    now: float  # at that uptime
    since: float  # when it was first looked at: nothing is known of the time before
    leaps: list[Leap] = field(default_factory=list)

    @property
    def leapt(self) -> Leap | None:
        """Since the look before this one."""
        return self.leaps[-1] if self.leaps and self.leaps[-1].at == self.now else None

    def has_leapt_within_a_day(self) -> bool:
        """Tell whether a leap was noticed within 24 hours before the newest look."""
        return bool(self.leaps) and self.now - self.leaps[-1].at < _A_DAY_SECONDS

    def counted(self, modified: datetime) -> datetime:
        """What a time counts as, for an age that is proven: never that of what was there before the first look."""
        if modified.timestamp() < self.since:
            modified = datetime.fromtimestamp(self.since, modified.tzinfo)
        return self.without_leaps(modified)

    def without_leaps(self, moment: datetime) -> datetime:
        """Return the moment later by all leaps that were noticed after it."""
        return moment + timedelta(seconds=sum(leap.by for leap in self.leaps if moment.timestamp() < leap.at))


def read_boot() -> Boot:
    """Ask the kernel; empty where it does not tell."""
    try:
        return Boot(_BOOT_ID.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME))
    except OSError:
        return Boot("", 0.0)


def looked_again(before: HostTime | None, boot: Boot, now: float) -> HostTime:
    """`now`: by the store's clock, seconds since 1970."""
    if before is None:
        return HostTime(boot, now, now)
    # A clock that was set back makes nothing look old; what is dated after it was made before it, too
    leaps = [Leap(min(leap.at, now), leap.by) for leap in before.leaps]
    if boot.id and boot.id == before.boot.id:
        by = now - before.now - (boot.uptime - before.boot.uptime)
        if by > _TOLERANCE_SECONDS:
            leaps.append(Leap(now, by))
    if len(leaps) > _REMEMBERED:
        first, second, *rest = leaps
        leaps = [Leap(second.at, first.by + second.by), *rest]
    return HostTime(boot, now, min(before.since, now), leaps)
