"""Where data sets lie, set for each of them: by `data_roots` of a search space, or by environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

PREFIX = "BDRAY_ROOT_"


def variable_of(name: str) -> str:
    """The environment variable that names a data set's folder: `BDRAY_ROOT_FLOWERS`."""
    return PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper())


def root_of(name: str, roots: Mapping[str, str], own: str | None = None) -> str | None:
    """The folder of the data set `name`: what `roots` says, or else its `own` one (`data.root`), or else the
    environment variable; None: wherever the data set is by itself."""
    return roots.get(name) or own or os.environ.get(variable_of(name)) or None
