#!/bin/bash
# A recipe on several hosts under Slurm: Ray starts on every host of the job, the recipe's runner on the first.
#
#   sbatch slurm.sh recipe.yaml                          # two hosts of eight GPUs, as set below
#   sbatch --nodes=8 slurm.sh recipe.yaml --jobs 2       # options of sbatch before the script, of `zero2r1 run` behind it
#
# The same command goes on from the last checkpoints, on whatever hosts, and so does Slurm by itself when a host fails.
# The folder of runs must be on a file system that all hosts share; on all of them, zero2r1 with the extra `cluster` is at the same path.
# Two lines to edit for your site:
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --job-name=zero2r1
#SBATCH --output=zero2r1-%j.log
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

stop() {
    echo "slurm.sh: $1" >&2
    exit 2
}

[ $# -ge 1 ] || stop "which recipe? sbatch slurm.sh recipe.yaml"
[ -n "${SLURM_JOB_ID:-}" ] || stop "this runs under Slurm: sbatch slurm.sh $1"
for needed in ray zero2r1 python; do
    command -v "$needed" >/dev/null || stop "there is no $needed here: activate the environment before sbatch"
done

for word in "$@"; do # what stands below would win over them
    case $word in
    --runs | --runs=*) stop "another folder of runs is named by the variable: RUNS=FOLDER sbatch slurm.sh $1" ;;
    --cluster | --cluster=*) stop "this starts a cluster of its own: leave out $word" ;;
    esac
done

runs=${RUNS:-${SLURM_SUBMIT_DIR:-$PWD}/runs}
nodes=$SLURM_JOB_NUM_NODES

# Where this host, the first of the job, is reached by the last one: what its own name stands for is often 127.0.1.1,
# where no other host can find it. The port is one that no other job of this host has: `ray symmetric-run` would end
# without a fault if it were taken.
last=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)
head=$(python -c '
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((sys.argv[1], 9))  # sends nothing
    address = probe.getsockname()[0]
first = 20000 + int(sys.argv[2]) % 10000
for port in range(first, first + 100):
    try:
        socket.create_server((address, port)).close()
        break
    except OSError:
        pass
else:
    sys.exit(f"slurm.sh: no port from {first} to {port} is free on {address}")
print(f"{address}:{port}")
' "$last" "$SLURM_JOB_ID")

echo "zero2r1: job $SLURM_JOB_ID, $nodes hosts, Ray at $head, runs in $runs"
export SLURM_CPU_BIND=none # Ray divides the cores of a host: where a task is bound to one, all stages would be
export RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}"
exec srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    ray symmetric-run --address "$head" --min-nodes "$nodes" -- \
    zero2r1 run "$@" --runs "$runs" --cluster auto
