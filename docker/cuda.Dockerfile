# zero2r1 on CUDA GPUs with vLLM, in the versions of constraints/vllm.txt. In a checkout:
#
#   docker build -f docker/cuda.Dockerfile -t zero2r1:cuda .
#   docker run --rm --gpus all --ipc host -v "$PWD/runs:/data/runs" zero2r1:cuda run gsm8k/r1-zero
#
# CUDA's libraries come with torch; of the host only the driver is used (and NVIDIA's container toolkit).
FROM python:3.12-slim-bookworm

# A compiler for the kernels that Triton builds, and the sandbox of the reward `code`, which wants user namespaces:
# docker run --security-opt seccomp=unconfined …
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# The version that the image is of: what git knows about it stays outside.
ARG VERSION=0.1.0.dev0
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /opt/zero2r1
COPY pyproject.toml README.md LICENSE ./
COPY constraints constraints
COPY configs configs
COPY model model
COPY pipeline pipeline
COPY recipes recipes
COPY rewards rewards
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_ZERO2R1="$VERSION" PIP_BUILD_CONSTRAINT=constraints/vllm.txt \
    pip install --no-cache-dir ".[vllm,qlora,kernels]" -c constraints/vllm.txt

RUN useradd --create-home --uid 1000 zero2r1 && install -d -o zero2r1 /data/runs
USER 1000
WORKDIR /data
ENTRYPOINT ["zero2r1"]
CMD ["--help"]
