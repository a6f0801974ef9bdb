"""What a shell must know to complete the operators' commands."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from infra.settings import SERVICE

SHELLS = ("bash", "zsh")


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Write the completion of the console script for one of SHELLS, which `eval` takes."""
    import shtab

    parser.prog = SERVICE  # a shell completes the words of a program, and `python -m` is none of them
    for action in _actions_of(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script


def _actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions_of(command)
