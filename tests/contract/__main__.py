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

from tests.e2e.processes import ROOT, starting_processes

SCHEMATHESIS = ROOT / ".venv-contract" / "bin" / "schemathesis"


def main() -> int:
    arguments = _arguments()
    print(f"seed {arguments.seed}", flush=True)
    with TemporaryDirectory() as directory:
        return check(Path(directory), arguments.cases, arguments.seed)


def check(directory: Path, cases: int, seed: int) -> int:
    with starting_processes(
        PORT="0", LOG_LEVEL="WARNING", MAINTENANCE_INTERVAL_SECONDS="0", DATABASE_PATH=str(directory / "app.db")
    ) as start:
        server = start(sys.executable, "-m", "handler", LOG_LEVEL="INFO")
        url = server.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
        done = subprocess.run(
            [
                *(SCHEMATHESIS, "run", f"{url}/openapi.json", "--no-color", "--continue-on-failure"),
                *("--max-examples", str(cases), "--seed", str(seed), "--workers", "2"),
            ],
            cwd=ROOT,
            env={**os.environ, "NO_PROXY": "*"},
        )
        return done.returncode


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.contract", description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="at most, for each phase and operation")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="sends the same requests again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
