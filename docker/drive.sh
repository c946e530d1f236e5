#!/usr/bin/env bash
# A sweep on a running cluster: this machine joins it without giving it anything, as Ray wants of a driver, and runs
# `bdray sweep` with the arguments given. SIGTERM ends the sweep resumably; the same command continues it.
set -euo pipefail

: "${RAY_HEAD:?host:port of the head}"
ray start --address="$RAY_HEAD" --num-cpus=0 --num-gpus=0 --object-store-memory=100000000 > /dev/null
exec bdray sweep --address "$RAY_HEAD" --storage "${BDRAY_STORAGE:-/runs}" "$@"
