# Three images from one file: `serve` (CPU), `serve-gpu` and `train`. Needs BuildKit.
#
#   docker build --target serve -t mnist-serve .
#
# deploy/locks pins every Python package with its hashes. A secret with the id `pip` becomes pip's
# configuration: for a mirror, or for your own wheels.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The environment has the same path in all images, and no pip: nothing is installed at run time.
RUN python3 -m venv --without-pip /opt/venv && install -d -o 10001 -g 10001 /empty

# Our own wheel.
FROM build AS wheel
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=bind,source=deploy/locks/build.txt,target=/lock.txt \
    python3 -m venv /opt/tools && \
    /opt/tools/bin/python -m pip install --require-hashes --no-deps -r /lock.txt
COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY models/mnist/2 models/mnist/2
COPY service service
COPY training training
# The same sources, version and epoch make the same file.
ARG VERSION=0+source
ARG SOURCE_DATE_EPOCH=0
RUN SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH}" \
    /opt/tools/bin/python -m pip wheel --no-deps --no-build-isolation --no-index -w /wheels .

FROM build AS installed-serve
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=bind,source=deploy/locks/serve.txt,target=/lock.txt \
    python3 -m pip --python /opt/venv/bin/python install --require-hashes --no-deps -r /lock.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m pip --python /opt/venv/bin/python install --no-deps --no-index /wheels/*.whl && \
    cd /opt/venv && rm -r lib/python3*/site-packages/training \
      lib/python3*/site-packages/service/shipped_models \
      bin/mnist-train bin/mnist-search bin/mnist-evaluate

FROM build AS installed-serve-gpu
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=bind,source=deploy/locks/serve-gpu.txt,target=/lock.txt \
    python3 -m pip --python /opt/venv/bin/python install --require-hashes --no-deps -r /lock.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m pip --python /opt/venv/bin/python install --no-deps --no-index /wheels/*.whl && \
    cd /opt/venv && rm -r lib/python3*/site-packages/training \
      lib/python3*/site-packages/service/shipped_models \
      bin/mnist-train bin/mnist-search bin/mnist-evaluate

FROM build AS installed-train
# train: PyTorch with CUDA, which also trains on the CPU. train-cpu: a fifth of the size. Its PyTorch
# is only in PyTorch's own package index, which the pip configuration (the secret above) must name.
ARG TRAIN_LOCK=train
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=bind,source=deploy/locks,target=/locks \
    python3 -m pip --python /opt/venv/bin/python install --require-hashes --no-deps \
      -r "/locks/${TRAIN_LOCK}.txt"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 -m pip --python /opt/venv/bin/python install --no-deps --no-index /wheels/*.whl

FROM ${PYTHON_IMAGE} AS runtime
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# An empty volume mounted here gets the owner of this folder, whichever image mounts it first.
COPY --from=build --chown=10001:10001 /empty /models
ARG VERSION=0+source
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="mnist-service" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

FROM runtime AS train
LABEL org.opencontainers.image.description="Trains a digit classifier and publishes it as ONNX."
COPY --from=build --chown=10001:10001 /empty /runs
COPY --from=installed-train /opt/venv /opt/venv
# Matplotlib and PyTorch write their caches there.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
WORKDIR /runs
ENTRYPOINT ["mnist-train", "--models", "/models", "--runs", "/runs"]

FROM runtime AS serving
# Docker gives an empty volume the owner of the folder that it is mounted on.
COPY --from=build --chown=10001:10001 /empty /keys
# ONNX Runtime changes the case of texts (StringNormalizer) in the locale en_US.UTF-8, unless a model
# names another. For that, it is the same as C.UTF-8, which every Debian has: a link instead of 3 MB.
RUN ln -s C.utf8 /usr/lib/locale/en_US.utf8
# ONNX Runtime otherwise sends telemetry to its vendor.
ENV MNIST_HOST=0.0.0.0 MNIST_MODELS=/models MNIST_LOG_FORMAT=json ORT_DISABLE_TELEMETRY=1
USER 10001:10001
# 8002 if MNIST_HEALTH_PORT is set to it.
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["mnist-probe"]
ENTRYPOINT ["mnist-serve"]

FROM serving AS serve-gpu
LABEL org.opencontainers.image.description="Serves digit classifiers on NVIDIA GPUs over HTTP and gRPC."
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=installed-serve-gpu /opt/venv /opt/venv

# Last, so that `docker build .` builds it.
FROM serving AS serve
LABEL org.opencontainers.image.description="Serves digit classifiers over HTTP and gRPC."
COPY --from=installed-serve /opt/venv /opt/venv
