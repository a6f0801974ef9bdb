"""Real shells complete the operators' commands."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.__main__ import main

# Calls the function that `complete` has named, as readline does, and prints what it found
_BASH = r"""
eval "$SCRIPT"
function=$(complete -p "$1" | sed 's/.* -F \([^ ]*\) .*/\1/')
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=$((${#COMP_LINE}))
"$function" "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""
# Binds what Tab does, and then says how the line reads, to Ctrl-X. Completion works in an interactive shell only
_ZSH = r"""
autoload -Uz compinit && compinit -D -u
eval "$SCRIPT"
finish() { zle complete-word; print -r -- "$BUFFER" > line; exit }
zle -N finish
bindkey '^X' finish
"""


def script_for(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["re"], {"restore"}),
        (["ver"], {"verify"}),
        (["--v"], {"--version"}),
        (["maintain", "--"], {"--help", "--json", "--dry-run"}),
        (["restore", "--output", "dump"], {"dump.db", "dumps"}),
        (["changes", "dump"], {"dump.db", "dumps"}),
        (["--print-completion", ""], {"bash", "zsh"}),
    ],
)
def test_bash(typed: list[str], offered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dump.db").touch()
    (tmp_path / "dumps").mkdir()
    environment = {**os.environ, "SCRIPT": script_for("bash", capsys)}
    command = ["bash", "--norc", "-c", _BASH, "bash", "cloud-native-poc", *typed]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered
    assert done.stderr == ""


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("cloud-native-poc rest", "cloud-native-poc restore "),
        ("cloud-native-poc maintain --dr", "cloud-native-poc maintain --dry-run "),
        ("cloud-native-poc changes dum", "cloud-native-poc changes dump.db "),
    ],
)
def test_zsh(typed: str, completed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dump.db").touch()
    (tmp_path / ".zshrc").write_text(_ZSH)
    environment = {**os.environ, "SCRIPT": script_for("zsh", capsys), "ZDOTDIR": str(tmp_path), "TERM": "dumb"}
    ours, its = pty.openpty()
    zsh = subprocess.Popen(
        ["zsh", "-d", "-i"], cwd=tmp_path, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    os.write(ours, typed.encode() + b"\x18")
    shown = _read_to_the_end(ours)
    assert zsh.wait(30) == 0, shown
    assert (tmp_path / "line").read_text() == f"{completed}\n", shown


def _read_to_the_end(terminal: int) -> str:
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # Linux says so that the other end is closed
        pass
    finally:
        os.close(terminal)
    return shown.decode(errors="replace")


def test_settings_do_not_matter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PORT", "x")
    assert "complete -o" in script_for("bash", capsys)


def test_other_commands_do_not_import_what_writes_it() -> None:
    script = "import sys, infra.__main__; infra.__main__._parser(); sys.exit('shtab' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
