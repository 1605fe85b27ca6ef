#!/usr/bin/env bash
# A Ray cluster on the nodes of a Slurm job, and one run of a recipe on it:
#
#   HBI_VENV=/shared/hbi/.venv sbatch --nodes=3 cluster/slurm.sh --config jobs/recipes/msrvtt_retrieval.yaml \
#     --workspace /shared/workspace --data.annotations /shared/msrvtt --data.videos /shared/msrvtt/videos
#
# Submit from the folder of this project, which all nodes see, as they see the virtual environment. The same
# command continues a job that ran out of time; with --requeue Slurm does that itself.
#
#SBATCH --job-name=hbi
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
# Ray takes whole nodes: it counts their CPUs and GPUs itself.
#SBATCH --exclusive
#SBATCH --open-mode=append
# Sent 120 s before the time limit: time to record that the run was stopped, and to release its locks.
#SBATCH --signal=B:TERM@120

set -euo pipefail

: "${HBI_VENV:?set it to the virtual environment of this project, on a file system that all nodes see}"
# shellcheck disable=SC1091
. "$HBI_VENV/bin/activate"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# Two jobs may follow each other on a node; the port is below those that Linux gives to clients.
port=$((20000 + SLURM_JOB_ID % 10000))

# Without the token nobody else on the network can use this cluster.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
# Ray's sockets need a short path that is the node's own.
scratch=/tmp/ray-$SLURM_JOB_ID

steps=()
start_nodes() { # count, list of nodes, arguments of ray start
    local count=$1 list=$2
    shift 2
    # --block, because Slurm kills what a step has started when its command returns. --cpu-bind=none, because Ray's
    # workers are to use all cores of the node.
    srun --nodes="$count" --ntasks="$count" --nodelist="$list" --overlap --cpu-bind=none --kill-on-bad-exit=1 \
        ray start "$@" --block --disable-usage-stats &
    steps+=($!)
}

driver=
stopped=
clean_up() {
    # The steps end Ray on every node; what a step leaves in the scratch folder is Ray's logs.
    kill "${steps[@]}" 2>/dev/null || true
    wait "${steps[@]}" 2>/dev/null || true
}
trap clean_up EXIT
# The signal is only passed on: the run ends itself, then this script goes on to its end and cleans up.
trap 'if [ -n "$driver" ]; then kill -TERM "$driver"; else stopped=1; fi' TERM INT

start_nodes 1 "$head" --head --port="$port" --dashboard-host=127.0.0.1 --temp-dir="$scratch"
until ray status --address="$head:$port" >/dev/null 2>&1; do sleep 1; done
if [ "${#nodes[@]}" -gt 1 ]; then
    rest=$(IFS=,; echo "${nodes[*]:1}")
    start_nodes "$((${#nodes[@]} - 1))" "$rest" --address="$head:$port"
fi
# All nodes, because a run derives the numbers of actors and of GPUs from those that are there.
python - "${#nodes[@]}" "$head:$port" <<'WAIT'
import sys, time, ray

ray.init(address=sys.argv[2], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(1)
WAIT

python -m jobs.run --resources.ray_address "$head:$port" "$@" &
driver=$!
# The signal came before there was a run to pass it on to.
if [ -n "$stopped" ]; then kill -TERM "$driver"; fi
# A signal ends the first wait early; the run still needs the time to end itself.
wait "$driver" || wait "$driver"
