"""The scripts of `rs-biformer completion`, read by the shells themselves."""

import shutil
import subprocess

import pytest

from rs_biformer.cli import COMMANDS, main

COMPLETE = r"""
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
declaration=$(complete -p rs-biformer)
[[ $declaration =~ -F\ ([^ ]+) ]]
"${BASH_REMATCH[1]}" rs-biformer "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""
"""What bash does when tab is pressed after the words: it calls the function that the script declared."""


def have(shell: str) -> str:
    found = shutil.which(shell)
    if not found:
        pytest.skip(f"no {shell} on this machine")
    return found


@pytest.fixture
def script(tmp_path, capsys):
    def write(shell: str) -> str:
        capsys.readouterr()
        assert main(["completion", shell]) == 0
        path = tmp_path / f"completion.{shell}"
        path.write_text(capsys.readouterr().out, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_accepts_its_script(shell, script):
    done = subprocess.run([have(shell), "-n", script(shell)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_commands_options_choices_keys_and_files(script, tmp_path):
    bash, path = have("bash"), script("bash")
    (tmp_path / "town.onnx").touch()
    (tmp_path / "tiles").mkdir()

    def complete(*words: str) -> set[str]:
        command = [bash, "--norc", "-c", COMPLETE, "bash", path, "rs-biformer", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    assert complete("") >= set(COMMANDS)
    assert complete("pre") == {"predict"}
    assert complete("predict", "--check") == {"--checkpoint"}
    assert complete("predict", "a.tif", "--min-") == complete("tile", "--labells") == set()
    assert complete("ndsm", "--unit", "") == {"m", "ft", "us-ft", "dm", "cm", "mm", "km"}
    assert complete("train", "--data.bat") == {"--data.batch_size"}
    assert complete("predict", "--checkpoint", "to") == {"town.onnx"}
    assert complete("predict", "--out", "t") == {"tiles"}
    assert complete("info", "to") == {"town.onnx"}
