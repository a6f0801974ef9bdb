"""The runbook's own commands, taken from where they stand: a drill that typed others would rehearse another thing."""

import re
from dataclasses import dataclass

from tests.e2e.pages import blocks

_BLOCKS = {block.name: block.script for block in blocks("RUNBOOK.md")}


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a procedure: that which the pattern finds, and no other does."""

    procedure: str  # its heading
    pattern: str

    @property
    def script(self) -> str:
        """The line as it stands there, with what it pipes into. Raises LookupError."""
        if self.procedure not in _BLOCKS:
            raise LookupError(f"RUNBOOK.md has no procedure {self.procedure!r} with commands")
        lines = re.sub(r"([|\\])\n", r"\1 ", _BLOCKS[self.procedure]).splitlines()
        found = [line for line in lines if re.search(self.pattern, line)]
        if len(found) != 1:
            raise LookupError(f"RUNBOOK.md, {self.procedure!r}: {len(found)} lines with {self.pattern!r}")
        return re.sub(r"\s+#\s.*", "", found[0])
