#!/usr/bin/env bash
# Generates FOLDER/mnist_client/stubs from proto/: ./generate_stubs.sh PYTHON FOLDER
set -euo pipefail
python=$(realpath --no-symlinks "$1") folder=$(realpath "$2")
bin=$(dirname "$python")
cd "$(dirname "$0")/../../proto"
sources=$(mktemp -d)
trap 'rm -r "$sources"' EXIT
for file in digits/v1/digits.proto inference/inference.proto inference/model_config.proto; do
  mkdir -p "$sources/mnist_client/stubs/$(dirname "$file")"
  sed 's|^import "inference/|import "mnist_client/stubs/inference/|' "$file" >"$sources/mnist_client/stubs/$file"
done
cd "$sources"
find . -name '*.proto' | sed 's|^\./||' | sort | xargs "$python" -m grpc_tools.protoc -I. \
  --python_out="$folder" --plugin="protoc-gen-mypy=$bin/protoc-gen-mypy" --mypy_out="$folder"
# A pool of their own; mnist_client/stubs/__init__.py says why.
find "$folder/mnist_client/stubs" -name '*_pb2.py' -exec sed -i \
  -e 's|^from google.protobuf import descriptor_pool as _descriptor_pool$|from mnist_client.stubs import POOL|' \
  -e 's|_descriptor_pool\.Default()|POOL|' {} +
