# Two images of one recipe: gpu, with torch as PyPI has it and CUDA's libraries beside it, and cpu.
#
#   docker build --target gpu --tag REGISTRY/raytag:0.1.0-gpu .
#   docker build --target cpu --tag REGISTRY/raytag:0.1.0-cpu .
#
# All nodes of a cluster run the same image: Ray wants one version of Python and of itself.
FROM python:3.11.14-slim-bookworm AS base

# g++: DeepSpeed and Triton compile on the node they run on. openssh-client and rsync: the cluster
# launcher's head reaches workers with them. wget: KubeRay's probes. Debian takes old versions
# away, so these are pinned by the release alone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes g++ openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

# 1000 is the user of the hosts that the launcher starts, so mounted files have the right owner.
# Docker makes what is missing above a mounted folder root's: .cache is the user's beforehand.
RUN useradd --uid 1000 --create-home --shell /bin/bash ray \
    && install --directory --owner ray --group ray --mode 700 /home/ray/.ray /home/ray/.cache

# HOME: the launcher reads it here. Without a token, Ray in this image does not start. The head asks
# every host each second whether it lives, and gives up on one that fails to answer five times:
# a host that falls silent is missed within half a minute, where Ray's own values take a whole one.
ENV HOME=/home/ray \
    PIP_NO_CACHE_DIR=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_health_check_period_ms=1000 \
    RAY_health_check_timeout_ms=2000 \
    RAY_health_check_failure_threshold=5
WORKDIR /home/ray/raytag

# What installing needs: packages change seldom and the code often, so each has a layer.
COPY pyproject.toml constraints.txt README.md ./
COPY deploy/install.py deploy/
COPY platform/raytag/__init__.py platform/raytag/


FROM base AS cpu
RUN python deploy/install.py --torch-cpu-index https://download.pytorch.org/whl/cpu .
COPY platform platform
COPY jobs jobs
COPY sample sample
USER 1000:1000
CMD ["bash"]


FROM base AS gpu
RUN python deploy/install.py .
COPY platform platform
COPY jobs jobs
COPY sample sample
USER 1000:1000
CMD ["bash"]
