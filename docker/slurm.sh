#!/usr/bin/env bash
#SBATCH --job-name=bdray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
# Ten minutes before the end the sweep is stopped resumably; submitted again, it continues.
#SBATCH --signal=B:TERM@600
#
#   sbatch docker/slurm.sh SPACE [options of bdray sweep]
#
# Runs in the environment it is submitted from (bdray installed), with its storage in a folder that all nodes see:
# BDRAY_STORAGE, or ./runs.
set -euo pipefail

space="${1:?search space}"
shift
storage="${BDRAY_STORAGE:-$PWD/runs}"
head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
ip="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d ' ' -f 1)"
port="${RAY_PORT:-6379}"
address="$ip:$port"

# One token for this job, which only its owner can read: whoever reaches Ray's ports without it is refused.
umask 077
mkdir -p "$storage"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$storage/.ray-token-$SLURM_JOB_ID"
python3 -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

resources=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --node-ip-address="$ip" --port="$port" "${resources[@]}" --block &
until ray health-check --address "$address" 2> /dev/null; do sleep 2; done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --exclude="$head" ray start --address="$address" "${resources[@]}" --block &
fi

bdray sweep "$space" --address "$address" --storage "$storage" "$@" &
sweep=$!
trap 'kill -TERM "$sweep"' TERM
# Twice: the first `wait` is ended by the signal itself.
wait "$sweep" || wait "$sweep"
