"""What a machine has to run sweeps with: code, versions, plugins, devices, data sets; and what tells two apart."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import bdray
from bdray.cards import Cards, card_problems
from bdray.checksum import checksum
from bdray.data.base import DATASETS, DataSet
from bdray.data.folders import said_unread
from bdray.data.roots import root_of, variable_of
from bdray.errors import BdrayError
from bdray.machine import Machine
from bdray.plugins import GROUP

PACKAGES = ("bdray", "ray", "torch", "torchvision", "timm", "mlflow", "optuna")
DECISIVE = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn")
"""Packages in whose hands the numbers of a trial are: other versions may give others."""

Rows = tuple[tuple[str, str], ...]
"""Names and what is said of them."""

NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Installation:
    """What numbers depend on beside a condition, on one machine.

    Attributes:
        code: digest of bdray's own source.
        plugins: digest of each plugin's source, by module.
        versions: of Python (without its last part) and of `DECISIVE` packages.
    """

    code: str
    plugins: Rows
    versions: Rows

    @classmethod
    def here(cls, plugins: Iterable[str]) -> Installation:
        """This process's. `plugins`: modules that can be imported."""
        entries = (entry.module for entry in importlib.metadata.entry_points(group=GROUP))
        modules = sorted({*plugins, *entries})
        python = ".".join(platform.python_version_tuple()[:2])
        return cls(
            code=_digest_of_folder(Path(bdray.__file__).parent),
            plugins=tuple((module, _digest_of_module(module)) for module in modules),
            versions=(("python", python), *((name, version_of(name)) for name in DECISIVE)),
        )

    def differences(self, other: Installation) -> list[str]:
        """What `self` has that `other` has not, a few words each: "torch is 2.10.0, not 2.12.1"."""
        theirs = dict(other.versions)
        found = [f"{name} is {mine}, not {theirs[name]}" for name, mine in self.versions if theirs[name] != mine]
        if self.code != other.code:
            found.append(f"bdray's code is another one ({self.code[:8]}, not {other.code[:8]})")
        plugins, known = dict(self.plugins), dict(other.plugins)
        for name in sorted(plugins.keys() | known.keys()):
            if name not in plugins:
                found.append(f"the plugin {name} is not installed")
            elif name not in known:
                found.append(f"it has a plugin more, {name}")
            elif plugins[name] != known[name]:
                found.append(f"the plugin {name} is another one")
        return found


def version_of(package: str) -> str:
    """The installed version, or `NOT_INSTALLED`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


def versions() -> Rows:
    """Of Python and the packages that bdray stands on."""
    return ("python", platform.python_version()), *((package, version_of(package)) for package in PACKAGES)


def devices() -> Rows:
    """Processor, memory, disk and GPUs of this machine."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    bfloat16 = Machine.here().bfloat16 or "no bfloat16 arithmetic: float32 is used"
    rows = [
        ("cpu", f"{os.cpu_count()} cores, {bfloat16}"),
        ("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        ("disk", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB free here"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows.append((f"gpu {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    rows += [(f"card {card.index}", f"{card.name}, {card.said}") for card in Cards.here().cards]
    rows += [("cards", problem) for problem in card_problems()]
    return tuple(rows if torch.cuda.device_count() else [*rows, ("gpu", "none")])


@dataclass(frozen=True)
class Finding:
    """Something that was looked for. `is_missing`: a sweep would need it."""

    name: str
    said: str
    is_missing: bool = False


def data_sets(given: Mapping[str, str] | None = None, but: Collection[str] = ()) -> Iterator[Finding]:
    """Every registered data set `but` some, with what is found of it here; nothing is downloaded.

    Args:
        given: folders by data set. Missing are those that were given one, here or by the environment, which does not
            hold them.
    """
    for name in (name for name, _ in DATASETS if name not in but):
        yield _looked_at(name, root_of(name, given or {}))


def _looked_at(name: str, root: str | None) -> Finding:
    try:
        data = DATASETS.build({"name": name, **({} if root is None else {"root": root})})
        if data.would_download():
            said = f"not here; a sweep downloads it, or set {variable_of(name)} or data_roots.{name}"
            return Finding(name, said, is_missing=root is not None)
        return Finding(name, said_of(data))
    except BdrayError as error:
        return Finding(name, str(error), is_missing=root is not None)
    except Exception as error:
        # A component of somebody's plugin may do anything; the other rows are still worth reading.
        return Finding(name, f"cannot be loaded: {in_one_line(error)}")


def said_of(data: DataSet) -> str:
    """How many images a data set has, and where they come from."""
    images = data.load()
    where = "" if data.root is None else f", from {data.root}"
    unread = f"; {said_unread(images.unread)}" if images.unread else ""
    return f"{len(images.train_images)} training, {len(images.test_images)} test images{where}{unread}"


def in_one_line(error: Exception) -> str:
    """Its type and what it says."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


@lru_cache(maxsize=4)
def _digest_of_folder(folder: Path) -> str:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    return checksum("\n".join(checksum(files[name].read_bytes(), name) for name in sorted(files)).encode())


def _digest_of_module(module: str) -> str:
    """Of its file, or of its folder, if it is a package."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    origin = Path(spec.origin)
    return _digest_of_folder(origin.parent) if origin.name == "__init__.py" else checksum(origin.read_bytes())
