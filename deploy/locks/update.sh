#!/usr/bin/env bash
# Makes the lock files that the images are built from: exact versions, with the hashes of all files.
# Needs uv (pip install uv). Run it after a change of pyproject.toml's dependencies, or to upgrade.
#
#   CONSTRAINTS=FILE    hold some packages back
#   TORCH_WHEELS=DIR    make train-cpu.txt as well, from a folder with PyTorch's own CPU build, which
#                       no public package index but PyTorch's own has
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
  # Without torchvision, which must be of the same build; only --download needs it.
  lock train-cpu pyproject.toml --extra cpu --extra train $X86_64 --no-emit-package torchvision \
    --find-links "$TORCH_WHEELS" -c <(cd "$TORCH_WHEELS" && ls | sed -nE 's/^torch-([^-]+)-cp311.*/torch==\1/p')
fi
