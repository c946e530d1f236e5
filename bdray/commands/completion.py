"""`bdray completion SHELL`: a script that completes commands, options, search spaces and the names of sweeps.

source <(bdray completion bash)        in ~/.bashrc
source <(bdray completion zsh)         in ~/.zshrc
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from bdray.shipped import shipped

_TAKES_A_SWEEP = ("status", "results", "report", "sync", "compare", "stages")
_TAKES_A_SPACE = ("sweep", "trial", "preview", "doctor")

_SCRIPT = """\
_bdray() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" words="" files=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    case "$command" in
{cases}
    esac
    case "$word" in
        -*) files="" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [ -n "$files" ]; then
        COMPREPLY+=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _bdray bdray
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"

_SWEEPS = r'$(for one in runs/*/sweep.json; do [ -e "$one" ] && basename "$(dirname "$one")"; done)'


def completion(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for `bash` or `zsh`, from the parser that reads the commands."""
    commands = _commands(parser)
    cases = "\n".join(_case(name, command) for name, command in commands.items())
    script = _SCRIPT.format(commands=" ".join(commands), cases=cases)
    return (_ZSH if shell == "zsh" else "") + script


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices)


def _case(name: str, command: argparse.ArgumentParser) -> str:
    words = [option for action in command._actions for option in action.option_strings if option.startswith("--")]
    words += _values(name, command)
    files = 'files="yes"' if name in _TAKES_A_SPACE else 'files=""'
    return f'        {name}) words="{" ".join(words)}"; {files} ;;'


def _values(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    if name in _TAKES_A_SWEEP:
        yield _SWEEPS
    if name in _TAKES_A_SPACE:
        yield from (file.removesuffix(".yaml") for file in shipped() if file.endswith(".yaml"))
    for action in command._actions:
        if not action.option_strings and action.choices:
            yield from map(str, action.choices)
