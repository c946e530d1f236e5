"""`bdray completion SHELL`: a script that completes commands, options, search spaces and the names of sweeps."""

from __future__ import annotations

import argparse
import sys

import shtab

from bdray.shipped import shipped

SHELLS = ("bash", "zsh")

_TAKES_A_SWEEP = ("status", "results", "report", "sync", "compare", "stages")
_TAKES_A_SPACE = ("sweep", "trial", "preview", "doctor")

_PREAMBLE = {
    "bash": """\
_bdray_sweeps() {
  local one
  compgen -W "$(for one in runs/*/sweep.json; do [ -e "$one" ] && basename "$(dirname "$one")"; done)" -- "$1"
}
_bdray_spaces() {
  compgen -W "SPACES" -- "$1"
  compgen -f -- "$1"
}
""",
    "zsh": """\
_bdray_sweeps() {
  local -a sweeps=(runs/*/sweep.json(N:h:t))
  compadd -a sweeps
}
_bdray_spaces() {
  compadd -- SPACES
  _files
}
""",
}
_SWEEPS, _SPACES = (dict.fromkeys(SHELLS, name) for name in ("_bdray_sweeps", "_bdray_spaces"))


def completion(options: argparse.Namespace) -> int:
    """Print the script for `bash` or `zsh`, made from the parser that reads the commands."""
    parser, shell = options.build_parser("bdray"), options.shell
    for name, command in _commands(parser).items():
        for action in command._actions:
            if not action.option_strings and not action.choices and action.nargs != 0:
                wanted = _SWEEPS if name in _TAKES_A_SWEEP else _SPACES if name in _TAKES_A_SPACE else None
                if wanted is not None:
                    vars(action)["complete"] = wanted  # how shtab is told
    spaces = " ".join(file.removesuffix(".yaml") for file in shipped() if file.endswith(".yaml"))
    sys.stdout.write(str(shtab.complete(parser, shell=shell, preamble=_PREAMBLE[shell].replace("SPACES", spaces))))
    return 0


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices)
