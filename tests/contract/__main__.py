"""Hold a live server to its own description, by Schemathesis with all its checks: make contract

Exit code 0: nothing found; 1: what was found is on stdout, with a curl command for each.
"""

import argparse
import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.e2e.processes import ROOT, StartProcess, starting_processes

SCHEMATHESIS = ROOT / ".venv-contract" / "bin" / "schemathesis"


def main() -> int:
    arguments = _arguments()
    print(f"seed {arguments.seed}", flush=True)
    codes = []
    for mode in ("none", "keys"):
        with (
            TemporaryDirectory() as directory,
            starting_processes(
                **{"PORT": "0", "MAINTENANCE_INTERVAL_SECONDS": "0", "RATE_LIMIT": "0", "AUTH_MODE": mode},
                DATABASE_PATH=str(Path(directory) / "app.db"),
            ) as start,
        ):
            codes.append(check(start, mode, arguments.cases, arguments.seed))
    return max(codes)


def check(start: StartProcess, mode: str, cases: int, seed: int) -> int:
    url = start(sys.executable, "-m", "handler").wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
    shown = _new_key(start) if mode == "keys" else ""
    # in both ways, as none of them may be drawn beside the other: it takes one key, and no second one (RFC 6750, 2)
    key = ("--header", f"Authorization: Bearer {shown}", "--header", f"X-API-Key: {shown}") if shown else ()
    print(f"AUTH_MODE={mode}", flush=True)
    # One worker: up to Python 3.11.7 two threads that parse at once fail with "AST constructor recursion depth
    # mismatch" (python/cpython#106905), and Hypothesis parses its own lambdas
    done = subprocess.run(
        [
            *(SCHEMATHESIS, "run", f"{url}/openapi.json", "--no-color", "--continue-on-failure", *key),
            *("--max-examples", str(cases), "--seed", str(seed), "--workers", "1"),
        ],
        cwd=ROOT,
        env={**os.environ, "NO_PROXY": "*"},
    )
    return done.returncode


def _new_key(start: StartProcess) -> str:
    scopes = [word for scope in ("read", "write", "ops") for word in ("--scope", scope)]
    made = start(sys.executable, "-m", "infra", "keys", "create", "contract", *scopes)
    return made.wait_for(r"cnp_\w+")[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.contract", description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="at most, for each phase and operation")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="sends the same requests again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
