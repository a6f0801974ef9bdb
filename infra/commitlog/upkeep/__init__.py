"""What keeps a log short to read, says whether it is sound, and finds a moment in it."""

from infra.commitlog.dates import Misdated
from infra.commitlog.dates import text as date_text
from infra.commitlog.objects import COMMITS
from infra.commitlog.upkeep.cold_start import ColdStart, cold_start, cold_start_of
from infra.commitlog.upkeep.compactor import Compactor, MaintenanceStore, Snapshots, digest_of
from infra.commitlog.upkeep.moments import Doubt, commit_before
from infra.commitlog.upkeep.retention import ExpiredObject, Keep, expired
from infra.commitlog.upkeep.verify import verify_log

__all__ = [
    "COMMITS",
    "ColdStart",
    "Compactor",
    "Doubt",
    "ExpiredObject",
    "Keep",
    "MaintenanceStore",
    "Misdated",
    "Snapshots",
    "cold_start",
    "cold_start_of",
    "commit_before",
    "date_text",
    "digest_of",
    "expired",
    "verify_log",
]
