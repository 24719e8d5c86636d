#!/usr/bin/env bash
# Writes the lock files: exact versions with the hashes of all their files. Run it after a change of
# the dependencies in pyproject.toml: versions that still fit stay. Needs uv; `make locks` has it.
#
#   deploy/locks/update.sh [--upgrade]
#
#   --upgrade           take the newest versions
#   CONSTRAINTS=FILE    limit the versions of some packages
#   TORCH_WHEELS=DIR    also write train-cpu.txt, from a folder with PyTorch's CPU build, which is
#                       only in PyTorch's own package index
set -euo pipefail
cd "$(dirname "$0")/../.."
upgrade=$([ "${1:-}" != --upgrade ] || echo --upgrade)
readonly X86_64='--python-platform x86_64-manylinux_2_28'
python=3.11
lock_into() {
  local file=$1
  shift
  uv pip compile "$@" --python-version $python --generate-hashes --no-emit-index-url --quiet \
    --custom-compile-command deploy/locks/update.sh -o "$file"
}
lock() {
  local name=$1
  shift
  lock_into "deploy/locks/$name.txt" "$@"
}
lock build deploy/locks/build.in --universal $upgrade
lock tools deploy/locks/tools.in --universal $upgrade
lock serve pyproject.toml --extra cpu --extra traces --universal $upgrade
lock serve-gpu pyproject.toml --extra gpu --extra traces $X86_64 $upgrade
lock train pyproject.toml --extra cpu --extra train $X86_64 $upgrade \
  ${CONSTRAINTS:+-c "$CONSTRAINTS"}
if [ -n "${TORCH_WHEELS:-}" ]; then
  # Without torchvision, which would have to be of the same build; only --download needs it.
  lock train-cpu pyproject.toml --extra cpu --extra train $X86_64 --no-emit-package torchvision $upgrade \
    --find-links "$TORCH_WHEELS" -c <(cd "$TORCH_WHEELS" && ls | sed -nE 's/^torch-([^-]+)-cp311.*/torch==\1/p')
fi
# What `make setup LOCKED=1` installs, for the two Pythons of CI, in the versions of the image that
# trains where they fit: without --upgrade, uv keeps what it finds in its output.
for python in 3.11 3.14; do
  [ -z "$upgrade" ] || cp deploy/locks/train.txt "deploy/locks/dev-$python.txt"
  lock "dev-$python" pyproject.toml clients/python/pyproject.toml deploy/locks/dev.in \
    --extra cpu --extra traces --extra train --extra dev --extra docs --extra kubernetes --extra grpc --extra images \
    --python-platform x86_64-manylinux_2_36
done
# What `make test-triton` installs into environments of their own.
python=3.11
lock_into tests/triton/kserve.txt tests/triton/kserve.in --universal $upgrade
lock_into tests/triton/perf_analyzer.txt tests/triton/perf_analyzer.in --universal --no-deps
# What `make bench` installs for each rival: the versions that are pinned there, whatever is newest.
for rival in benchmarks/rivals/*/requirements.in; do
  lock_into "${rival%.in}.txt" "$rival" --python-platform x86_64-manylinux_2_36 --no-deps --no-annotate
done
