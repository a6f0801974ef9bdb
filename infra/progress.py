"""How far a long piece of work has come, for whoever wants to know."""

from collections.abc import Callable

# Called with the name of the phase, what is done and the total, in bytes
Progress = Callable[[str, int, int], None]


def no_progress(phase: str, done: int, total: int) -> None:
    """Do nothing: nobody wants to know."""
