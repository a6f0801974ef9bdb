"""The incidents that are rehearsed: each is caused, noticed, ended by the runbook's own steps, judged by its writes."""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from infra.maintenance.drill import RTO_SECONDS
from tests.drills.place import NAME, Place, Setup, Traffic
from tests.drills.runbook import Step
from tests.e2e.processes import until

RPO_SECONDS = 3600.0  # when a backup is all that is left; otherwise nothing that was acknowledged may be lost

START = Step("P0: container crashed", "docker start")
IS_SOUND = Step("P0: app.db damaged or lost", "infra verify")
REBUILD = Step("P0: app.db damaged or lost", "docker compose restart app")
INTEGRITY = Step("P0: app.db damaged or lost", "integrity_check")
COPY_FIRST = Step("Commit log damaged", r"\.backup")
LEVELS = Step("Commit log damaged", "infra log")
LOCK_HOLDER = Step("P1: database locked", "BEGIN IMMEDIATE; ROLLBACK")
SHELLS = Step("P1: database locked", "docker top")
FREE = Step("Disk full (507)", r"rm data/app\.db\.diverged")
STORE_ANSWERS = Step("Store away", "/ready")
STORE_NEWEST = Step("Store away", "infra log")
LABELLED = Step("Deploy a version", "--label pre-deploy")
BUILD = Step("Deploy a version", "^make build")
DEPLOY = Step("Deploy a version", "docker compose up -d --wait")
TAGS = Step("Roll back", "docker images")
TAG_BACK = Step("Roll back", "docker tag")
START_OLDER = Step("Roll back", "--no-build --wait")
STOPPED = Step("Complete data loss", "docker compose down; make build")
LOG_SOUND = Step("Complete data loss", r"infra verify\s+#")
BACKUPS = Step("Complete data loss", "infra backups")
BACKUP_SOUND = Step("Complete data loss", "infra verify NAME")
BEGIN_ANEW = Step("Complete data loss", "infra restore NAME")
BUILD_FILE = Step("Complete data loss", "docker compose up -d --wait")
ALL_THERE = Step("Complete data loss", "/ready")


_FAULT = "\n\ndef create_item(*_: object, **__: object) -> None:\n    raise RuntimeError('a fault')\n"


@dataclass(slots=True)
class Outcome:
    """Seconds are since the cause."""

    name: str
    noticed: float = 0.0
    recovered: float = 0.0  # a write is acknowledged again, and /ready says ready
    pause: float = 0.0  # the longest that the writer saw, between two acknowledged writes
    writes: int = 0  # acknowledged
    lost: int = 0  # of them
    lost_seconds: float = 0.0  # how old the oldest lost one was at the cause: the RPO
    promised_seconds: float = 0.0
    failure: str = ""

    def judge(self) -> None:
        """Hold what was measured against what is promised."""
        if self.lost_seconds > self.promised_seconds:
            self.failure = f"{self.lost} acknowledged writes are lost, the oldest of {self.lost_seconds:.1f} s before"
        elif self.recovered > RTO_SECONDS:
            self.failure = f"it took {self.recovered:.0f} s, the objective is {RTO_SECONDS:.0f} s"


@dataclass(slots=True)
class Hands:
    """Whoever carries out a drill, with the runbook open."""

    place: Place
    traffic: Traffic
    outcome: Outcome
    begun: float = field(default_factory=time.monotonic)

    def says(self, what: str) -> None:
        print(f"  {time.monotonic() - self.begun:6.1f} s  {what}", flush=True)

    def causes(self, what: str, act: Callable[[], object]) -> None:
        """Do the harm; from now on the time counts."""
        self.begun = time.monotonic()
        self.says(f"cause: {what}")
        act()

    def notices(self, sign: Callable[[], str], seconds: float = 60) -> None:
        """Wait for a sign; it returns what it has seen, or nothing. Others are shown beside it."""
        seen = ""

        def is_seen() -> bool:
            nonlocal seen
            seen = sign()
            return bool(seen)

        until(is_seen, seconds)
        self.outcome.noticed = time.monotonic() - self.begun
        self.says(f"noticed: {seen}")
        for other in (self.place.ready(), self.place.status(), f"a write: {self.traffic.trouble or 'acknowledged'}"):
            self.says(f"         {other}")
        for message in self.place.errors()[-2:]:
            self.says(f"         log: {message[:160]}")

    def types(self, step: Step, **parts: str) -> str:
        return self.place.types(step.script, **parts)

    def recovers(self) -> None:
        """Wait until it serves again, and hold all that was acknowledged against what is there."""
        until(lambda: '"ready"' in self.place.ready(), seconds=60)
        self.traffic.goes_on()
        self.outcome.recovered = time.monotonic() - self.begun
        self.traffic.stop()
        self.outcome.pause = self.traffic.longest_pause()
        there = self.place.items()
        assert max(there.values(), default=1) == 1, "a write was done twice"
        assert not self.traffic.refused & there.keys(), "a write that was refused is there"
        lost = [at for name, at in self.traffic.acknowledged.items() if name not in there]
        self.outcome.writes, self.outcome.lost = len(self.traffic.acknowledged), len(lost)
        self.outcome.lost_seconds = self.begun - min(lost, default=self.begun)
        self.says(f"recovered: {self.place.ready()}; {len(lost)} of {self.outcome.writes} acknowledged writes lost")


def _is(text: str, shown: str) -> str:
    return shown if text in shown else ""


def container_killed(hands: Hands) -> None:
    place = hands.place
    hands.causes("docker kill", lambda: place.sh(f"docker kill {NAME}"))
    hands.notices(lambda: "container is {} with exit code {}".format(*place.state()) if place.state()[1] == 137 else "")
    hands.types(START)
    hands.recovers()


def damaged_file(hands: Hands) -> None:
    place = hands.place
    harm = "dd if=/dev/urandom of=data/app.db bs=4096 count=2 conv=notrunc status=none"
    hands.causes("two pages of app.db are overwritten", lambda: place.as_root(harm))
    hands.notices(lambda: next(iter(place.errors()), ""))
    assert "is sound" in hands.types(IS_SOUND)
    hands.types(REBUILD)
    assert hands.types(INTEGRITY) == "ok\n"
    hands.recovers()


def damaged_log_object(hands: Hands) -> None:
    place = hands.place
    until(lambda: len(hands.traffic.acknowledged) > 40)
    place.sh(f"docker exec {NAME} python -m infra maintain")  # so that a run holds the first commits
    path = sorted((place.data / "replica" / "ltx" / "0").iterdir())[7]
    byte = path.read_bytes()[-1] ^ 1
    harm = f"printf '\\x{byte:02x}' | dd of={path} bs=1 seek={path.stat().st_size - 1} conv=notrunc status=none"
    hands.causes("the last byte of a commit in the log is another", lambda: place.as_root(harm))
    verify = f"docker exec {NAME} python -m infra verify"
    hands.notices(lambda: _is(path.name, place.run(verify).stdout.partition("\n")[0]))
    hands.types(COPY_FIRST)
    hands.types(LEVELS)
    place.as_root(f"rm {path}")  # the table: a commit that a run of level 1 holds
    assert "is sound" in place.sh(verify)
    place.as_root("rm data/log-damaged.db")
    hands.recovers()


def locked_database(hands: Hands) -> None:
    place = hands.place
    shell = subprocess.Popen(
        ["docker", "exec", "-i", NAME, "sqlite3", "data/app.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert shell.stdin
    with shell, shell.stdin as keyboard:

        def forget() -> None:
            keyboard.write(".timeout 20000\nBEGIN IMMEDIATE;\n")
            keyboard.flush()

        hands.causes("a shell with a transaction open", forget)
        hands.notices(lambda: _is("database_locked", hands.traffic.trouble))
        held = place.run(LOCK_HOLDER.script.replace("cloud-native-poc", NAME)).stderr
        assert "database is locked" in held
        assert "sqlite3" in hands.types(SHELLS)
        keyboard.write("ROLLBACK;\n")
        keyboard.flush()
        hands.recovers()
        hands.types(LOCK_HOLDER)


def full_disk(hands: Hands) -> None:
    place = hands.place

    def fill() -> None:
        place.run(f"docker exec {NAME} dd if=/dev/zero of=data/app.db.diverged-1 bs=4096 status=none")

    hands.causes("a kept file fills the disk", fill)
    hands.notices(lambda: _is("database_full", hands.traffic.trouble))
    in_it = "docker exec cloud-native-poc"  # the disk that is small is the container's
    assert "100%" in place.types(f"{in_it} df -h data")
    hands.types(FREE, **{"rm data/app.db.diverged-*": f"{in_it} sh -c 'rm data/app.db.diverged-*'"})
    hands.recovers()
    assert "is sound" in place.sh(f"docker exec {NAME} python -m infra verify")


def bad_release(hands: Hands) -> None:
    place = hands.place
    code = place.directory / "core" / "items.py"
    sound = code.read_text()
    place.sh(f"docker tag {NAME}:latest {NAME}:v0.1.0")  # as the deployment of this release did
    place.types(LABELLED.script)
    try:
        code.write_text(sound + _FAULT)
        place.types(BUILD.script)
        hands.causes("a release that fails at each write is deployed", lambda: hands.types(DEPLOY))
        hands.notices(lambda: _is("internal_error", hands.traffic.trouble))
        hands.types(TAGS)
        hands.types(TAG_BACK)
        hands.types(START_OLDER)
        hands.recovers()
    finally:
        code.write_text(sound)
        place.run(f"make build; docker rmi {NAME}:v0.1.0")


def store_away(hands: Hands) -> None:
    place = hands.place
    hands.causes("the store is stopped", lambda: place.sh("docker compose stop s3"))
    hands.notices(lambda: _is("degraded", place.ready()))
    until(lambda: hands.traffic.trouble != "")
    hands.says(f"         a write: {hands.traffic.trouble}")
    place.sh("docker compose --profile s3 up -d --wait s3")
    hands.types(STORE_ANSWERS)
    hands.types(STORE_NEWEST)
    hands.recovers()


def all_data_lost(hands: Hands) -> None:
    """The machine's disk; the log is elsewhere."""
    place = hands.place
    place.sh(f"docker exec {NAME} python -m infra maintain")
    hands.causes("the disk of the database is gone", lambda: _lose_the_disk(place))
    hands.notices(lambda: _is("no answer", place.ready()))
    hands.types(STOPPED)
    assert "is sound" in hands.types(LOG_SOUND)
    hands.types(BUILD_FILE)
    hands.types(ALL_THERE)
    hands.recovers()


def log_lost_as_well(hands: Hands) -> None:
    """A backup is all that is left."""
    place, kept = hands.place, set(hands.traffic.acknowledged)
    place.sh(f"docker exec {NAME} python -m infra maintain")
    since = len(hands.traffic.acknowledged)
    until(lambda: len(hands.traffic.acknowledged) > since + 50)
    hands.outcome.promised_seconds = RPO_SECONDS

    def lose() -> None:
        _lose_the_disk(place)
        environment = place.directory / ".env"  # an empty log is what is found where it was
        environment.write_text(environment.read_text().replace("items/log", "items/new-log"))

    hands.causes("the disk is gone, and the log with it", lose)
    hands.notices(lambda: _is("no answer", place.ready()))
    hands.types(STOPPED)
    names = re.findall(r"^(app-\S+)\.db\.gz", hands.types(BACKUPS), re.MULTILINE)
    hands.types(BACKUP_SOUND, NAME=names[-1])
    hands.types(BEGIN_ANEW, NAME=names[-1])
    hands.types(BUILD_FILE)
    hands.types(ALL_THERE)
    hands.recovers()
    assert kept <= place.items().keys(), "a write from before the backup is lost"


def _lose_the_disk(place: Place) -> None:
    place.sh(f"docker rm --force {NAME}")
    place.as_root("rm -rf data")


@dataclass(frozen=True, slots=True)
class Drill:
    name: str
    procedure: str  # of the runbook
    setup: Setup
    run: Callable[[Hands], None]


DRILLS = [
    Drill("all data lost", "Complete data loss", Setup.BUCKET, all_data_lost),
    Drill("data and log lost, a backup is left", "Complete data loss", Setup.BUCKET, log_lost_as_well),
    Drill("store away", "Store away", Setup.BUCKET, store_away),
    Drill("damaged file", "P0: app.db damaged or lost", Setup.DIRECTORY, damaged_file),
    Drill("damaged log object", "Commit log damaged", Setup.DIRECTORY, damaged_log_object),
    Drill("locked database", "P1: database locked", Setup.DIRECTORY, locked_database),
    Drill("container killed", "P0: container crashed", Setup.DIRECTORY, container_killed),
    Drill("bad release", "Roll back", Setup.DIRECTORY, bad_release),
    Drill("full disk", "Disk full (507)", Setup.SMALL_DISK, full_disk),
]

_numbers = count(1)


def rehearse(drill: Drill, place: Place) -> Outcome:
    """Carry one out in a place that is well. What goes wrong is the outcome's failure."""
    outcome = Outcome(drill.name)
    traffic = Traffic(place, f"{drill.name} {next(_numbers)}:")
    print(f"\n{drill.name} (RUNBOOK.md, {drill.procedure})", flush=True)
    try:
        traffic.start()
        drill.run(Hands(place, traffic, outcome))
        outcome.judge()
    except (AssertionError, LookupError, OSError, subprocess.SubprocessError, ValueError) as error:
        outcome.failure = f"{type(error).__name__}: {error}"
    finally:
        traffic.stop()
    if outcome.failure:
        print(f"  FAILED: {outcome.failure}", flush=True)
    return outcome
