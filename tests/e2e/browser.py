"""A real Chromium, without a window."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_QUIET = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update")


@contextmanager
def browsing() -> Iterator[Browser]:
    """Each with an empty profile of its own. As root Chromium runs without its sandbox, or not at all."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    flags = [f"--{flag}" for flag in (*_QUIET, "disable-sync", *(["no-sandbox"] if os.geteuid() == 0 else []))]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        try:
            yield browser
        finally:
            browser.close()
