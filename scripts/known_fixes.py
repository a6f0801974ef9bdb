"""Name what is pinned or served here and has a vulnerability with a known fix: make audit

Asks https://osv.dev about every version in requirements*.txt, and about the libraries inside the scripts that
are served, which no list of packages shows. Exit code 0: none; 1: some, named on stdout; 2: it cannot be asked.
"""

import argparse
import json
import re
import sys
import urllib.request
from collections import defaultdict
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# What cannot be mended here, and why it does no harm
ACCEPTED: dict[str, str] = {}

_PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)
# Of each script that is served, where it is (in which package) and how it names what is inside
_INSIDE = {
    ("flask_swagger_ui", "dist/swagger-ui-bundle.js"): {
        "swagger-ui-dist": r'\bPACKAGE_VERSION:"([\d.]+)"',
        "dompurify": r'\bDOMPurify\.version="([\d.]+)"',
        "autolinker": r'\bAutolinker\.version="([\d.]+)"',
    },
    ("chartkick", "django/static/chartkick/Chart.bundle.js"): {
        "chart.js": r"^ \* Chart\.js v([\d.]+)$",
        "date-fns": r"^ \* date-fns v([\d.]+)$",
    },
}


class Package(NamedTuple):
    ecosystem: str
    name: str
    version: str


def pinned() -> set[Package]:
    lists = [path.read_text() for path in ROOT.glob("requirements*.txt")]
    return {Package("PyPI", name, version) for text in lists for name, version in _PIN.findall(text)}


def served() -> set[Package]:
    packages = set()
    for (package, path), patterns in _INSIDE.items():
        spec = find_spec(package)
        assert spec is not None
        script = Path(str(spec.origin)).parent.joinpath(path).read_text()
        found = {name: re.findall(pattern, script, re.MULTILINE) for name, pattern in patterns.items()}
        if unclear := [name for name, versions in found.items() if len(versions) != 1]:
            raise ValueError(f"the script of {package} does not say which {unclear[0]} it has: look how it does now")
        packages |= {Package("npm", name, versions[0]) for name, versions in found.items()}
    return packages


def vulnerabilities(api: str, packages: list[Package]) -> dict[str, list[Package]]:
    """Which of the packages each one is in, by its id."""
    queries = [{"package": {"ecosystem": p.ecosystem, "name": p.name}, "version": p.version} for p in packages]
    answers = _ask(f"{api}/v1/querybatch", {"queries": queries})["results"]
    found = defaultdict[str, list[Package]](list)
    for package, answer in zip(packages, answers, strict=True):
        for one in answer.get("vulns", []):
            found[one["id"]].append(package)
    return found


def fixes(vulnerability: dict[str, Any], package: Package) -> list[str]:
    """The versions that have it no more."""
    ranges = [
        each
        for affected in vulnerability.get("affected", [])
        if affected.get("package", {}).get("ecosystem") == package.ecosystem
        and _normal(affected["package"]["name"]) == _normal(package.name)
        for each in affected.get("ranges", [])
        if each["type"] != "GIT"
    ]
    return [event["fixed"] for each in ranges for event in each["events"] if "fixed" in event]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        return json.load(answer)


def main() -> int:
    parser = argparse.ArgumentParser(description="Look for vulnerabilities that a newer version mends.")
    parser.add_argument("--api", default="https://api.osv.dev")
    parser.add_argument("--may-skip", action="store_true", help="exit code 0 when it cannot be asked")
    arguments = parser.parse_args()
    packages, mended = sorted(pinned() | served()), 0
    try:
        for name, concerned in sorted(vulnerabilities(arguments.api, packages).items()):
            vulnerability = _ask(f"{arguments.api}/v1/vulns/{name}")
            for package in concerned:
                fixed = fixes(vulnerability, package)
                mended += bool(fixed) and name not in ACCEPTED
                state = f"fixed in {', '.join(fixed)}" if fixed else "no fix yet"
                state += f"; accepted: {ACCEPTED[name]}" if name in ACCEPTED else ""
                print(f"{package.name} {package.version}: {name}, {state}: {vulnerability.get('summary', '')}")
    except (OSError, HTTPException, ValueError, KeyError) as error:
        skipped = "SKIPPED: " if arguments.may_skip else ""
        print(f"{skipped}{arguments.api} cannot be asked for known fixes: {error}", file=sys.stderr)
        return 0 if arguments.may_skip else 2
    print(f"{len(packages)} packages, {mended} with a known fix")
    return 1 if mended else 0


if __name__ == "__main__":
    sys.exit(main())
