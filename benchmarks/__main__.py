"""`python -m benchmarks [NAME ...] [--quick] [--write]`; `python -m benchmarks gpu --borrowed 1`, then `2`."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path

NAMES = (
    "loop",
    "ordinary",
    "backdoorbench",
    "profile",
    "precision",
    "accuracy",
    "efficiency",
    "overhead",
    "nodes",
    "reuse",
    "questions",
    "memory",
    "gpu",
    "cold_start",
    "slow_store",
    "large",
    "samplers",
    "asking",
)
BORROWED = ("gpu_1", "gpu_2")
"""Sections of the two calls on a borrowed GPU."""
HOURS = ("accuracy",)
"""Run only when named."""
MARK = "<!-- {} -->"
"""Stands before each section of the results, so that one benchmark can be measured again without the others."""

READING = "reading"
"""The section written by hand: what the figures come to. It is kept."""

PREAMBLE = "preamble"
"""What was measured on."""

RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> int:
    """Run what is named, or all; the status is 1 when a target was missed."""
    options = _options()
    # Set before any library starts its threads; what is measured says how many it uses.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.gpu import missing
    from benchmarks.measure import Report, console, progress

    sections: dict[str, str] = {}
    missed = 0
    for name in options.names or [name for name in NAMES if name not in HOURS]:
        if name == "gpu" and (reason := missing()):
            console.print(reason)
            continue
        progress(f"{name} ...")
        load, started = os.getloadavg()[0], time.perf_counter()
        borrowed = {"call": options.borrowed} if options.borrowed else {}
        report: Report = importlib.import_module(f"benchmarks.{name}").measure(quick=options.quick, **borrowed)
        seconds = time.perf_counter() - started
        report.show()
        progress(f"{name} took {seconds:.0f} s")
        missed += sum(row.met is False for row in report.rows) + report.failures
        asked, section = (f" --borrowed {options.borrowed}", f"gpu_{options.borrowed}") if borrowed else ("", name)
        how = f"`python -m benchmarks {name}{asked}`: {seconds:.0f} s on {_cpu()}; load average before it: {load:.2f}."
        sections[section] = f"{report.markdown()}\n{how}\n"
    if not sections:
        return 1
    if options.write:
        kept = {**_written(), **sections}
        ordered = [f"{MARK.format(name)}\n{kept[name]}" for name in (READING, *NAMES, *BORROWED) if name in kept]
        # The sections of GPUs name their own machines: the preamble speaks of the others.
        preamble = kept[PREAMBLE] if set(sections) <= {"gpu", *BORROWED} and PREAMBLE in kept else _preamble()
        RESULTS.write_text(f"{preamble}\n" + "\n".join(ordered))
        console.print(f"written to benchmarks/{RESULTS.name}")
    return 1 if missed and not options.quick else 0


def _written() -> dict[str, str]:
    """The sections that an earlier run wrote, by benchmark."""
    if not RESULTS.exists():
        return {}
    parts = re.split(MARK.format("(\\w+)") + "\n", RESULTS.read_text())
    sections = zip([PREAMBLE, *parts[1::2]], parts[::2], strict=True)
    return {name: text.rstrip("\n") + "\n" for name, text in sections}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: all but {', '.join(HOURS)})"
    )
    parser.add_argument("--quick", action="store_true", help="too small to mean anything: does it run?")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    parser.add_argument("--borrowed", type=int, choices=(1, 2), help="of gpu: the first or second call on a short loan")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}'; there are {', '.join(NAMES)}")
    if options.borrowed and options.names != ["gpu"]:
        parser.error("--borrowed is of gpu alone")
    if options.write and options.quick:
        parser.error("--quick figures mean nothing and are not written")
    return options


def _preamble() -> str:
    """What was measured on."""
    import psutil

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "ray", "mlflow"))
    memory = psutil.virtual_memory().total / 2**30
    return "\n".join(
        [
            "# Benchmarks: results",
            "",
            "Written by `python -m benchmarks --write`, each section by the command below it. Every ratio was measured",
            "side by side in one run.",
            "",
            f"- machine: {os.cpu_count()} cores, {memory:.0f} GiB memory, {_gpu()}; each section names its processor",
            f"- Python {platform.python_version()}, {versions}",
            "",
        ]
    )


def _cpu() -> str:
    """The processor's model, and what it has for bfloat16."""
    import torch

    from bdray.machine import cpu_model

    features = {
        "AVX-512": torch.cpu._is_avx512_supported(),
        "AVX-512 bfloat16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    has = ", ".join(f"{'with' if there else 'no'} {name}" for name, there in features.items())
    return f"{cpu_model()} ({has})"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"


if __name__ == "__main__":
    sys.exit(main())
