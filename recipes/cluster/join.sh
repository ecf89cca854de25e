#!/bin/sh
# Several hosts without Ray: this on every further host, and `zero2r1 run` on the first. The stage that they share has
#
#   launch: {accelerate: hosts.yaml}      # num_machines, num_processes of all hosts, main_process_ip, main_process_port
#
#   first host:   zero2r1 run recipe.yaml --runs /shared/runs
#   second host:  sh join.sh /shared/runs/NAME STAGE hosts.yaml 1
#   third host:   sh join.sh /shared/runs/NAME STAGE hosts.yaml 2
#
# Runs, recipe, data and zero2r1 are at the same paths on all of them. This waits for the stage to begin, takes part in
# each attempt, and ends when the stage is published. What `launch.env` gives the stage is set here by hand.
set -eu

stop() {
    echo "join.sh: $1" >&2
    exit 2
}

[ $# -eq 4 ] || stop "sh join.sh RUN STAGE ACCELERATE_CONFIG RANK"
run=$1 stage=$2 config=$3 rank=$4
[ -f "$config" ] || stop "there is no accelerate config $config"
[ "$rank" -ge 1 ] 2>/dev/null || stop "RANK is 1 on the second host, 2 on the third; the first runs zero2r1 itself"
hosts=$(sed -n 's/^num_machines: *\([0-9]*\).*/\1/p' "$config")
[ -z "$hosts" ] || [ "$rank" -lt "$hosts" ] || stop "RANK $rank is too many: $config has num_machines: $hosts"

export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false TRL_EXPERIMENTAL_SILENCE=1

newest() { # the job of the stage that was written last
    find "$run/scratch" -mindepth 2 -maxdepth 2 -name job.json -printf '%T@ %i %p\n' 2>/dev/null |
        grep -E "/$stage-[0-9a-f]+/job\.json\$" | sort -n | tail -n 1
}

known='' told=''
while :; do
    found=$(newest)
    if [ -n "$found" ] && [ "$found" != "$known" ]; then
        known=$found told=''
        job=${found#* * }
        scratch=$(dirname "$job")
        echo "join.sh: host $rank takes part in $scratch"
        code=0
        "${PYTHON:-python}" -m pipeline.runner.launcher "$scratch" --config_file "$config" --machine_rank "$rank" \
            -m pipeline.runner.worker "$job" $$ || code=$?
        [ "$code" -ne 78 ] || stop "mend this, and give the same command: the first host waits for this one"
        [ "$code" -eq 0 ] || echo "join.sh: the attempt has failed here; the first host says why"
        artifact="$run/stages/$stage/$(basename "$scratch" | sed "s/^$stage-//")"
    elif [ -n "$known" ] && [ -f "$artifact/manifest.json" ]; then
        echo "join.sh: $artifact is published"
        exit 0
    elif [ -z "$told" ]; then
        echo "join.sh: waiting for stage $stage of $run to begin"
        for manifest in "$run/stages/$stage"/*/manifest.json; do
            [ ! -f "$manifest" ] || echo "join.sh: it was published before; if the first host has nothing to do, end this"
        done
        told=yes
    fi
    sleep 2
done
