"""What the build of this release has said of it: the images carry it in their environment."""

import os


def revision() -> str | None:
    """Return the commit that it was built from, None when nobody has said it."""
    return os.environ.get("REVISION") or None


def gauges() -> dict[str, float]:
    """Return the share of the code that its tests have run, if the build knows of it."""
    try:
        percent = float(os.environ.get("COVERAGE", ""))
    except ValueError:
        return {}
    return {"test_coverage_ratio": percent / 100} if 0 <= percent <= 100 else {}
