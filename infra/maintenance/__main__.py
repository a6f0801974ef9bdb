"""The process of a server's maintenance, which infra/maintenance/apart.py starts. Operators have `infra maintain`."""

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.errors import MaintenanceCancelled, ServiceError, StoreError
from infra.backups.backups import open_backups
from infra.maintenance.apart import GRACE_SECONDS, STOP_SIGNALS
from infra.maintenance.job import Maintenance, open_maintenance
from infra.maintenance.report import report_problem
from infra.settings import Settings
from infra.storage.object_store import ObjectStore
from infra.telemetry import catalogue
from infra.telemetry.metrics import Metrics

_NICE = 10  # requests come first
_FIRST_TO_GO = b"500"  # where memory ends, before the server


def main() -> None:
    """Do what standard input says, and write what becomes of it to standard output."""
    stopping = threading.Event()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stopping.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_stop_at_the_end_of_input, args=(stopping,), daemon=True).start()
    _come_last()
    metrics = Metrics()
    end: dict[str, Any] = {"merged": order["merged"]}
    try:
        settings = Settings.model_validate(order["settings"])
        logging.basicConfig(handlers=[_Lines()], level=settings.log_level)
        try:
            backups = open_backups(settings, metrics.backups_asked)
        except StoreError as error:
            if order["work"] == "run":  # others learn of it by the report alone
                report_problem(ObjectStore(settings.replica_url), error)
            raise
        maintenance = open_maintenance(settings, backups, metrics)
        merged = maintenance.steps.merged
        merged.update((int(level), txid) for level, txid in order["merged"].items())
        end["merged"] = merged
        end["result"] = _result(order, maintenance, lambda: _check(stopping))
    except MaintenanceCancelled:
        end["cancelled"] = True
    except ServiceError as error:
        end["refused"] = str(error)
    except Exception:
        end["failed"] = traceback.format_exc()
    asked = metrics.histograms.get(catalogue.STORE_DURATION.name, {})
    end["asked"] = [[labels, histogram.counts, histogram.sum] for labels, histogram in asked.items()]
    _say(end=end)


def _result(order: dict[str, Any], maintenance: Maintenance, check: Callable[[], None]) -> Any:
    if order["work"] == "merge":
        return maintenance.merge(check)
    return asdict(maintenance.run(order["seconds"], check=check))


def _check(stopping: threading.Event) -> None:
    if stopping.is_set():
        raise MaintenanceCancelled("The process is stopping.")


def _stop_at_the_end_of_input(stopping: threading.Event) -> None:
    while os.read(0, 1):
        pass
    stopping.set()
    time.sleep(GRACE_SECONDS)
    os._exit(1)  # a store does not answer, perhaps


def _come_last() -> None:
    os.nice(_NICE)
    with suppress(OSError):  # not on this system, or not allowed
        Path("/proc/self/oom_score_adj").write_bytes(_FIRST_TO_GO)


def _say(**what: Any) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


class _Lines(logging.Handler):
    """The lines of the log are the server's, which has one for all."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        line = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname, "msg": text}
        _say(line={**line, "created": record.created})


if __name__ == "__main__":
    main()
