"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A busy machine is slow, not wrong: no property fails for the time it takes.
settings.register_profile("bdray", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bdray")

# Tests run side by side; more threads than cores only slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
