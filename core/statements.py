"""A script of SQL as the statements that it is made of."""

import re
from collections.abc import Iterator

import apsw

BEFORE_A_WORD = r"(?:[\s\ufeff]|;|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))*"
TRANSACTION = ("BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE")
OTHER_FILES = ("ATTACH", "DETACH")

_FIRST_WORD = re.compile(BEFORE_A_WORD + r"(\w*)", re.DOTALL)
_LONGEST = 80  # characters
_TOKEN = re.compile(
    r"""(?P<value>x?'(?:[^']|'')*(?:'|$)|\.?\d(?:[\w.]|(?<=e)[+-])*)
    |(?P<comment>--[^\n]*|/\*.*?(?:\*/|$))
    |"(?:[^"]|"")*"|`[^`]*`|\[[^]]*\]|[?:@$]?\w+|\?""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)


def statements(script: str) -> Iterator[str]:
    """Split at the semicolons that end a statement, as SQLite sees it; what the last one lacks stays its own fault."""
    begin = 0
    for semicolon in re.finditer(";", script):
        if apsw.complete(script[begin : semicolon.end()]):
            yield from _unless_empty(script[begin : semicolon.end()])
            begin = semicolon.end()
    yield from _unless_empty(script[begin:])


def first_word(statement: str) -> str:
    """In capitals; a statement that begins with no word is SQLite's to refuse, and nothing but comments is none."""
    found = _FIRST_WORD.match(statement)
    assert found
    return found[1].upper() or statement[found.end() :].strip()


def shortened(statement: str) -> str:
    """For a message."""
    text = " ".join(statement.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def without_values(statement: str) -> str:
    """In one line, each literal a `?`, without comments: nothing of the data is left. Double quotes are for names."""
    return " ".join(_TOKEN.sub(_unless_value, statement).split())


def _unless_value(token: re.Match[str]) -> str:
    return {"value": "?", "comment": " ", None: token[0]}[token.lastgroup]


def _unless_empty(statement: str) -> Iterator[str]:
    if first_word(statement):
        yield statement
