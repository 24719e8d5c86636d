#!/usr/bin/env bash
# Replaces the replicas of `serve` one by one by what docker-compose.yml and its images say now, each
# old one after a new one is ready; Envoy takes requests to whoever is ready. Run it where
# docker-compose.yml is, with the same .env and flags as `docker compose up`:
#
#   TAG=1.2.3 deploy/roll.sh [docker-compose flags, as -f docker-compose.gpu.yml]
set -euo pipefail
docker=${DOCKER:-docker}
if [ -n "${COMPOSE:-}" ]; then
  read -ra compose <<<"$COMPOSE"
elif "$docker" compose version >/dev/null 2>&1; then
  compose=("$docker" compose)
else
  compose=(docker-compose)
fi
compose+=("$@")
readonly READY_WITHIN_S=${READY_WITHIN_S:-120}

replicas() { "${compose[@]}" ps -q serve; }

mapfile -t old < <(replicas)
[ ${#old[@]} -gt 0 ] || { echo "roll: no replica of serve runs; start it with: docker compose up" >&2; exit 1; }
for gone in "${old[@]}"; do
  before=$(replicas | sort)
  "${compose[@]}" up -d --no-build --no-deps --no-recreate --scale serve=$((${#old[@]} + 1)) serve
  new=$(comm -13 <(echo "$before") <(replicas | sort))
  [ -n "$new" ] || { echo "roll: no new replica was started." >&2; exit 1; }
  end=$((SECONDS + READY_WITHIN_S))
  until [ "$("$docker" inspect -f '{{.State.Health.Status}}' "$new")" = healthy ]; do
    if [ $SECONDS -ge $end ] || [ "$("$docker" inspect -f '{{.State.Status}}' "$new")" != running ]; then
      "$docker" logs --tail 20 "$new" >&2 || true
      "$docker" rm -f "$new" >/dev/null
      echo "roll: the new replica did not get ready (its log is above) and is removed;" \
        "the old ones that are left go on." >&2
      exit 1
    fi
    sleep 0.5
  done
  # Envoy asks for the replicas' addresses every second, and a new one's health at once.
  sleep 3
  # SIGTERM: it finishes what it accepted, and what comes meanwhile goes to the others.
  "$docker" stop -t 40 "$gone" >/dev/null
  "$docker" rm "$gone" >/dev/null
  echo "roll: ${gone:0:12} is replaced by ${new:0:12}."
done
