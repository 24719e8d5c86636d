# Two images from one file: `serve` (no torch in it) and `train`.
FROM python:3.11-slim AS base
WORKDIR /app
COPY pyproject.toml README.md NOTICE ./
COPY service service
COPY clients clients
COPY training training

FROM base AS train
RUN pip install --no-cache-dir '.[cpu,train]'
RUN useradd --uid 10001 mnist && mkdir -p /models /runs && chown mnist /models /runs
USER mnist
ENTRYPOINT ["mnist-train", "--models", "/models", "--runs", "/runs"]

FROM base AS serve
RUN pip install --no-cache-dir '.[cpu]'
RUN useradd --uid 10001 mnist
USER mnist
ENV MNIST_HOST=0.0.0.0 MNIST_MODELS=/models
EXPOSE 8000 8001
ENTRYPOINT ["mnist-serve"]
