#!/usr/bin/env bash
# Writes the lock files of the images: exact versions with the hashes of all files. Needs uv
# (pip install uv). Run it after a change of the dependencies in pyproject.toml, or to upgrade.
#
#   CONSTRAINTS=FILE    limit the versions of some packages
#   TORCH_WHEELS=DIR    also write train-cpu.txt, from a folder with PyTorch's CPU build, which is
#                       only in PyTorch's own package index
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly X86_64='--python-platform x86_64-manylinux_2_28'
lock() {
  local name=$1
  shift
  uv pip compile "$@" --generate-hashes --python-version 3.11 --upgrade --quiet \
    --custom-compile-command deploy/locks/update.sh -o "deploy/locks/$name.txt"
}
lock build deploy/locks/build.in --universal
lock serve pyproject.toml --extra cpu --universal
lock serve-gpu pyproject.toml --extra gpu $X86_64
lock train pyproject.toml --extra cpu --extra train $X86_64 ${CONSTRAINTS:+-c "$CONSTRAINTS"}
if [ -n "${TORCH_WHEELS:-}" ]; then
  # Without torchvision, which would have to be of the same build; only --download needs it.
  lock train-cpu pyproject.toml --extra cpu --extra train $X86_64 --no-emit-package torchvision \
    --find-links "$TORCH_WHEELS" -c <(cd "$TORCH_WHEELS" && ls | sed -nE 's/^torch-([^-]+)-cp311.*/torch==\1/p')
fi
