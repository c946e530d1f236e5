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
# BDRAY_STORAGE (also s3://...), or ./runs. What is above can be given to sbatch instead; without GPUs: --gpus-per-node=0.
set -euo pipefail

space="${1:?search space}"
shift
storage="${BDRAY_STORAGE:-$PWD/runs}"
# As Ray finds it, for /etc/hosts often has a machine's own name on 127.0.1.1. This script runs on the first node.
ip="$(python3 -c 'import ray; print(ray.util.get_node_ip_address())')"
# Four from here on are this job's, for nodes may be shared.
port="${RAY_PORT:-$((20000 + SLURM_JOB_ID % 2500 * 4))}"
address="$ip:$port"

# One token for this job, which its processes inherit: whoever reaches Ray's ports without it is refused.
RAY_AUTH_TOKEN="$(python3 -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

# Ray on one node or several, the first argument, each with what the job has there. Slurm ends it with this script.
on_nodes() {
    local count="$1"
    shift
    # srun does not take --cpus-per-task from the job since Slurm 22.05.
    srun --nodes="$count" --ntasks="$count" --cpus-per-task="$SLURM_CPUS_PER_TASK" "$@" \
        --dashboard-agent-listen-port="$((port + 1))" --min-worker-port=0 --max-worker-port=0 \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block > /dev/null
}

here="$SLURMD_NODENAME"
on_nodes 1 --nodelist="$here" ray start --head --node-ip-address="$ip" --port="$port" \
    --dashboard-port="$((port + 2))" --ray-client-server-port="$((port + 3))" &
head=$!
until ray health-check --address "$address" 2> /dev/null; do
    kill -0 "$head" 2> /dev/null || { echo "Ray's head has not come up at $address" >&2; exit 1; }
    sleep 2
done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    on_nodes "$others" --exclude="$here" ray start --address="$address" &
fi

bdray sweep "$space" --address "$address" --storage "$storage" "$@" &
sweep=$!
trap 'kill -TERM "$sweep"' TERM
# A signal ends `wait` before the sweep has ended.
while kill -0 "$sweep" 2> /dev/null; do wait "$sweep" || true; done
wait "$sweep"
