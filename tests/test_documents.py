"""What the pages quote exists: messages, commands, names.

In the pages a message is quoted as code, or in double quotes in the operators' pages, word for word; `...` stands for
what is left out, a number or a capital letter for what differs each time. So whatever is set as code and is neither a
command, nor a name, nor in `_OTHERS`, is taken for a message of this service, and must be in its code.
"""

import ast
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import httpx2
import pytest

from handler.problems import Code
from infra.__main__ import _parser
from tests.e2e.pages import blocks

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "RUNBOOK.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]
OPERATORS = ("RUNBOOK.md", "docs/lambda.md")
# Where the words come from that a page quotes; the tools for developers speak in pages of their own
_SPEAKERS = {"": ("core", "handler", "infra", "scripts"), "docs/": ("tests/checker", "tests/model", "tests/simulation")}
_PROGRAMS = {
    "aws",
    "chmod",
    "curl",
    "df",
    "docker",
    "docker-compose",
    "export",
    "jq",
    "fuser",
    "gh",
    "git",
    "kill",
    "litestream",
    "ls",
    "make",
}
_PROGRAMS |= {"eval", "mv", "pre-commit", "pytest", "python", "rm", "sam", "sqlite3", "ss", "sudo", "ulimit", "uvicorn"}
# Of other programs, and of languages
_OTHERS = {
    "--build",
    "-i",
    "-v",
    ".quit",
    ".timeout 5000",
    '"Type": "volume"',
    '"kind: Connect" in text',
    "1|...",
    "AUTH_MODE='must be said to publish on 0.0.0.0'",
    "DROP TABLE items",
    "Not authorized to perform sts:AssumeRoleWithWebIdentity",
    "OR ROLLBACK",
    "PRAGMA application_id",
    "PRAGMA integrity_check",
    "PRAGMA locking_mode",
    "PRAGMA user_version=99",
    "Restarting",
    "Throttles",
    "USING INDEX idx_items_created",
    'The container name "/cloud-native-poc" is already in use',
    "app-20260131-1200-rescued.db.gz",
    "cloud-native-poc_scratch",
    "database is locked",
    "def rename(db, ...)",
    'fields @timestamp, status_code, path, message | filter level in ["ERROR", "CRITICAL"] or status_code >= 500 '
    "| sort @timestamp desc",
    "fromjson?",
    "minimumCompressionSize",
    "incidents/",
    'parameter_overrides = "Architecture=arm64"',
    "process_*",
    "process_start_time_seconds",
    "read(request, ...)",
    "repo:OWNER@OWNER_ID/REPO@REPO_ID:environment:production",
    "restarts",
    "round-NNN.jsonl",
    "services: {app: {environment: {TMPDIR: /app/data}}}",
    "write(request, ...)",
}
# Commands of `python -m infra` that a page names by themselves
_SHORT = ("maintain", "restore", "sql", "verify")
_ANY = "\0"


def prose(page: str) -> str:
    """Without blocks, and without the commands of another service that the runbook says what becomes of."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    before, heading, rest = text.partition("## Commands that you may know\n")
    chapter, next_heading, after = rest.partition("\n## ")
    return before + heading + re.sub(r"^\| `.*?` \|(?=\s)", "|", chapter, flags=re.MULTILINE) + next_heading + after


def spans(page: str) -> list[str]:
    """What is set as code within the text, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def quotes(page: str) -> list[str]:
    text = re.sub(r"`[^`]+`", "", prose(page))
    remarks = [
        remark for block in blocks(page) for remark in re.findall(r"(?:^|\s)#\s(.*)$", block.script, re.MULTILINE)
    ]
    return [quote for part in (text, *remarks) for quote in re.findall(r'"([^"]+)"', " ".join(part.split()))]


# Messages


@cache
def said_by(package: str) -> str:
    """Every text in the code of a package, a line each, with _ANY for what differs each time; modules end in \f."""
    modules = []
    for path in (ROOT / package).rglob("*.py"):
        texts: set[str] = set()
        tree = ast.parse(path.read_text())
        silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in silent:
                texts |= set(_texts_of(node))
        modules.append("\n".join(" ".join(text.split()) for text in texts))
    for path in (ROOT / package).rglob("*.sh"):
        said = re.findall(r'^ *echo "(.*)"$', path.read_text(), re.MULTILINE)
        modules.append("\n".join(re.sub(r"\$\{[^}]*\}|\$\w+", _ANY, text) for text in said))
    return "\n\f\n".join(modules)


def _texts_of(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield re.sub(r"%[\d.]*[a-z]", _ANY, text)
        case ast.JoinedStr(values=parts):
            yield from map("".join, product(*(list(_texts_of(part)) for part in parts)))
        case ast.FormattedValue(value=ast.IfExp(body=ast.Constant(str(one)), orelse=ast.Constant(str(other)))):
            yield from (one, other)
        case _:
            yield _ANY


def is_said(message: str, by: str) -> bool:
    """The parts of it between `...`, all by one module; what a start says before the cause, by another."""
    if pair := re.fullmatch(r'"(\w+)": "(\w+)"', message):
        return all(re.search(rf"^{word}$", by, re.MULTILINE) for word in pair.groups())
    parts = [part.strip(" ,:") for part in re.split(r"\.\.\.|…", message.removeprefix("cannot start: ..."))]
    return any(all(re.search(_pattern(part), module) for part in parts) for module in by.split("\f"))


def _pattern(part: str) -> str:
    words = re.split(r"(\b\d[\d.]*\b|\b[A-Z]\b)", part)  # every second one may differ
    return "".join(
        f"(?:{_ANY}|{re.escape(word)})" if index % 2 else re.escape(word) for index, word in enumerate(words)
    )


def messages(page: str) -> list[str]:
    quoted = quotes(page) if page in OPERATORS else []
    return [span for span in [*spans(page), *quoted] if " " in span and span not in _OTHERS and not is_command(span)]


@pytest.mark.parametrize("page", PAGES)
def test_every_message_that_a_page_quotes_is_in_the_code(page: str) -> None:
    packages = [package for folder in _SPEAKERS if page.startswith(folder) for package in _SPEAKERS[folder]]
    by = "\n\f\n".join(map(said_by, packages))
    assert [message for message in messages(page) if not is_said(message, by)] == []


def test_nothing_is_left_out_that_no_page_has() -> None:
    assert _OTHERS - {text for page in PAGES for text in (*spans(page), *quotes(page))} == set()


# Commands

SERVICE = "the service's messages"


def is_command(text: str) -> bool:
    words = re.sub(r"^(\w+=\S* )+|^\.\.\. (?=[a-z])", "", text).split()
    return words[0].rpartition("/")[2] in _PROGRAMS or words[0] in ("infra", ".ci/run", *_SHORT) or words[0][0] == "-"


def typed(page: str) -> Iterator[list[str]]:
    """Every simple command of a page's shell blocks, and of what it sets as code in the text.

    Of the service: what its messages set as code.
    """
    scripts: list[str] = []
    if page == SERVICE:
        quoted = re.findall(r"`([^`\n]+)`", "\n".join(map(said_by, _SPEAKERS[""])).replace(_ANY, "NAME"))
    else:
        quoted = spans(page)
        scripts = [re.sub(r"(^|\s)#\s.*$", "", block.script, flags=re.MULTILINE) for block in blocks(page)]
    for script in [*scripts, *filter(is_command, quoted)]:
        lexer = shlex.shlex(script.replace("\\\n", " "), posix=True, punctuation_chars="();<>|&\n")
        lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
        words: list[str] = []
        for token in [*lexer, "\n"]:
            if not set(token) <= set("();<>|&\n"):
                words.append(token)
            elif words:
                yield words
                words = []


def arguments_of_infra(words: list[str]) -> list[str] | None:
    """The page may leave out what comes before them."""
    if "infra" in words:
        return words[words.index("infra") + 1 :]
    words = words[1:] if words[0] == "..." else words
    return words if words[0] in _SHORT else None


def is_taken(arguments: list[str]) -> bool:
    """By the commands' own parser; `...` is for what is left out, and an option's value may be without saying so."""
    shown = arguments[: arguments.index("...")] if "..." in arguments else arguments
    if "--txid" in shown:
        shown = ["1" if word in ("N", "NAME") else word for word in shown]
    return not shown or _parses(shown) or (shown[-1].startswith("-") and _parses([*shown, "1"]))


def _parses(arguments: list[str]) -> bool:
    try:
        with redirect_stderr(io.StringIO()):
            _parser().parse_args(arguments)
    except SystemExit:
        return False
    return True


@pytest.mark.parametrize("page", [*PAGES, SERVICE])
def test_every_command_of_the_service_that_a_page_shows_is_one(page: str) -> None:
    shown = [arguments for words in typed(page) if (arguments := arguments_of_infra(words)) is not None]
    assert [arguments for arguments in shown if not is_taken(arguments)] == []
    assert shown or page not in ("README.md", *OPERATORS, SERVICE)


@pytest.mark.parametrize("page", [*PAGES, SERVICE])
def test_every_verb_that_a_page_shows_is_in_the_makefile(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    known = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    known |= {f"{name}=" for name in re.findall(r"\$\((\w+)\)|^(\w+) [?:]=", makefile, re.MULTILINE) for name in name}
    shown = [word for words in typed(page) if "make" in words for word in words[words.index("make") + 1 :]]
    assert [word for word in shown if re.sub(r"(?<==).*", "", word) not in known] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_module_and_script_that_a_page_shows_is_there(page: str) -> None:
    words = [word for words in typed(page) for word in words]
    modules = [
        word
        for option, word in pairwise(words)
        if option == "-m" and re.match(r"(handler|infra|tests|benchmarks)\b", word)
    ]
    files = [word for word in words if re.match(r"(\./)?(scripts|tests|\.ci|handler|core|infra)/", word)]
    assert [name for name in modules if find_spec(name) is None] == []
    assert [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_selection_of_tests_that_a_page_shows_finds_some(page: str) -> None:
    selections = [
        (words[1:], keyword)
        for words in typed(page)
        if "pytest" in words and "-k" in words
        for keyword in words[words.index("-k") + 1].split(" or ")
    ]
    assert [keyword for words, keyword in selections if not _is_in_a_name(keyword, words)] == []


def _is_in_a_name(keyword: str, folders: list[str]) -> bool:
    files = [path for folder in folders if folder.startswith("tests/") for path in (ROOT / folder).rglob("test_*.py")]
    return any(keyword in path.stem for path in files)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_is_one(page: str) -> None:
    code = "\n".join(map(said_by, ("infra", "tests")))
    options = [span.split()[0] for span in spans(page) if span.startswith("-") and span not in _OTHERS]
    assert [option for option in options if not re.search(rf"^{re.escape(option)}$", code, re.MULTILINE)] == []


# Names


@cache
def words_of_the_code() -> set[str]:
    folders = ("core", "handler", "infra", "scripts", "tests", "benchmarks", ".ci", ".github")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc" and path.is_file()
    ]
    files += [path for path in ROOT.glob("[!.]*") if path.is_file() and path.suffix != ".md"]
    texts = [f"{path} {path.read_text()}" for path in files if path != Path(__file__)]
    return set(re.findall(r"[A-Za-z_]\w*", "\n".join(texts)))


@pytest.mark.parametrize("page", PAGES)
def test_every_name_that_a_page_sets_as_code_is_in_the_code(page: str) -> None:
    if page == "docs/github-actions.md" and not (ROOT / ".github").exists():
        pytest.skip("the workflows are not in the image")
    names = {span for span in spans(page) if " " not in span and not is_command(span)} - _OTHERS
    unknown = [name for name in names if not set(re.findall(r"[A-Za-z_]\w*", name)) <= words_of_the_code()]
    assert unknown == []


def test_every_metric_of_the_runbook_is_there(client: httpx2.Client) -> None:
    """Shown at once, or from the first run of maintenance on."""
    families = "http|database|commit_log|maintenance|verification|process"
    names = set(re.findall(rf"\b(?:{families})_[a-z_]+", (ROOT / "RUNBOOK.md").read_text())) - set(Code)
    shown = f"{client.get('/metrics').text}\n{said_by('infra')}"
    absent = [
        name for name in names if not re.search(rf"^(# TYPE )?{name.removesuffix('_bucket')}", shown, re.MULTILINE)
    ]
    assert absent == []


def test_runbook_has_a_row_for_each_problem_of_the_service() -> None:
    table = (ROOT / "RUNBOOK.md").read_text().partition("| code | cause | do |")[2].partition("\n\n")[0]
    named = {
        code: status for row in re.findall(r"^\| (`.*?`) \((\d+)\)", table, re.MULTILINE) for code, status in [row]
    }
    listed = {code: int(status) for codes, status in named.items() for code in re.findall(r"`(\w+)`", codes)}
    codes = {str(code): code.status.value for code in Code}
    assert listed.items() <= codes.items()
    assert {code for code, status in codes.items() if status >= 500} <= listed.keys()


@pytest.mark.parametrize("page", PAGES)
def test_every_code_that_a_page_names_with_a_status_has_that_status(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())
    pairs = [(code, status) for status, code in re.findall(r"\b([1-5]\d\d) `(\w+)`", text)]
    pairs += re.findall(r"`(\w+)`(?:, `\w+`)* \(([1-5]\d\d)\)", text)
    codes = {str(code): str(code.status.value) for code in Code}
    assert [(code, status) for code, status in pairs if code in codes and codes[code] != status] == []
    assert page not in OPERATORS or {code for code, _ in pairs} & codes.keys()


def test_table_of_problems_has_every_code_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", section("docs/api.md", "Problems"), re.MULTILINE)
    assert sorted(rows) == sorted((str(code), str(code.status.value)) for code in Code)


# The code, as the pages have it


def section(page: str, heading: str) -> str:
    return (ROOT / page).read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_page_for_contributors_names_everything_in_infra_once() -> None:
    rows = re.findall(r"^\| (`.*?) \|", section("CONTRIBUTING.md", "Where things are"), re.MULTILINE)
    there = [
        path.name + "/" * path.is_dir()
        for path in (ROOT / "infra").iterdir()
        if path.name != "__init__.py" and (path.suffix == ".py" or (path / "__init__.py").exists())
    ]
    assert sorted(name for row in rows for name in re.findall(r"`([^`]+)`", row)) == sorted(there)


def test_page_names_every_module_of_the_engine_once() -> None:
    tour = section("docs/commit-log.md", "Where it is in the code").partition("**Who tries again**")[0]
    shown = re.findall(r"`(?:tests/)?(\w+\.py)`", tour.replace("`tests/test_architecture.py`", ""))
    modules = [path.name for path in (ROOT / "infra" / "commitlog").rglob("*.py") if path.name != "__init__.py"]
    assert sorted(shown) == sorted(modules)


def test_every_word_of_the_engine_is_explained_by_a_module_that_is_there() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `(\w+)\.py` \|$", section("docs/commit-log.md", "Words"), re.MULTILINE)
    assert len(rows) >= 15
    assert [word for word, module in rows if not module_named(module)] == []


def test_every_line_that_upholds_a_promise_is_there() -> None:
    table = section("docs/commit-log.md", "What is promised, and by which lines")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and line.count(" | ") == 3]
    names = {name for row in rows for name in re.findall(r"`([a-z_]+(?:\.\w+)*)`", row[2])}
    assert len(names) > 20
    assert [name for name in sorted(names) if not ((ROOT / name).exists() or is_in_the_code(name))] == []


# Who stops whom


def test_every_row_of_the_threat_model_is_shown_by_a_test_that_is_there() -> None:
    table = section("SECURITY.md", "Threat model").splitlines()
    rows = [line.split(" | ") for line in table if line.startswith("| ")][1:]
    assert len(rows) >= 10
    assert {len(row) for row in rows} == {4}
    shown = [re.findall(r"`([\w/.]+)::(\w+)`", row[-1]) for row in rows]
    assert all(shown), "a row without a test"
    tests = [test for tests in shown for test in tests]
    assert [test for test in tests if not is_a_test(*test)] == []


def is_a_test(path: str, name: str) -> bool:
    return (ROOT / path).is_file() and bool(
        re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    )


def module_named(name: str) -> Any:
    """The one of this name in core or infra; the engine's, if there are several."""
    for folder in ("infra/commitlog", "core", "infra"):
        for path in sorted([*(ROOT / folder).rglob(f"{name}.py"), *(ROOT / folder).glob(f"{name}/__init__.py")]):
            parts = path.relative_to(ROOT).with_suffix("").parts
            return import_module(".".join(parts).removesuffix(".__init__"))
    return None


def is_in_the_code(name: str) -> bool:
    module, *rest = name.split(".")
    found: Any = module_named(module)
    for part in rest:
        found = getattr(found, part, None)
    return found is not None
