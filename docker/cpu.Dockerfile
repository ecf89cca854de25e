# zero2r1 on CPUs, in the versions of constraints/core.txt. In a checkout:
#
#   docker build -f docker/cpu.Dockerfile -t zero2r1:cpu .
#   docker run --rm -v "$PWD/runs:/data/runs" zero2r1:cpu run nano/r1
#
# pip brings torch's CUDA build unless it is given an index with the CPU build: --build-arg PIP_EXTRA_INDEX_URL=…
FROM python:3.11-slim-bookworm

# The sandbox of the reward `code`, which wants user namespaces: docker run --security-opt seccomp=unconfined …
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# The version that the image is of: what git knows about it stays outside.
ARG VERSION=0.1.0.dev0

WORKDIR /opt/zero2r1
COPY pyproject.toml README.md LICENSE ./
COPY constraints constraints
COPY configs configs
COPY model model
COPY pipeline pipeline
COPY recipes recipes
COPY rewards rewards
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_ZERO2R1="$VERSION" PIP_BUILD_CONSTRAINT=constraints/core.txt \
    pip install --no-cache-dir . -c constraints/core.txt

RUN useradd --create-home --uid 1000 zero2r1 && install -d -o zero2r1 /data/runs
USER 1000
WORKDIR /data
ENTRYPOINT ["zero2r1"]
CMD ["--help"]
