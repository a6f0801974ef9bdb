"""Lines of the log, held to infra/telemetry/log-line.schema.json. It knows nothing of the code that makes them."""

import json
from collections.abc import Iterable
from pathlib import Path

from jsonschema import Draft202012Validator

SCHEMA = json.loads((Path(__file__).parents[1] / "infra/telemetry/log-line.schema.json").read_text())

_validator = Draft202012Validator(SCHEMA)


def fault_in(line: str) -> str | None:
    """Why a line is not as it should be."""
    try:
        fault = next(_validator.iter_errors(json.loads(line)), None)
    except ValueError as error:
        return f"{error}: {line}"
    return f"{fault.json_path}: {fault.message}: {line}" if fault else None


def assert_described(lines: Iterable[str]) -> None:
    assert [fault for line in lines if (fault := fault_in(line))] == []
