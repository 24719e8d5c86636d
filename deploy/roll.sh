#!/usr/bin/env bash
# Replaces the replicas of `serve` one by one with the current docker-compose.yml and images. An old
# replica stops after a new one is ready, and Envoy sends requests only to ready replicas. Run it next
# to docker-compose.yml, with the same .env and flags as `docker compose up`:
#
#   TAG=1.2.3 deploy/roll.sh [flags of docker-compose, such as -f docker-compose.gpu.yml]
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
[ ${#old[@]} -gt 0 ] || { echo "roll: no replica of serve is running; start one with: docker compose up" >&2; exit 1; }
for replaced in "${old[@]}"; do
  before=$(replicas | sort)
  "${compose[@]}" up -d --no-build --no-deps --no-recreate --scale serve=$((${#old[@]} + 1)) serve
  new=$(comm -13 <(echo "$before") <(replicas | sort))
  [ -n "$new" ] || { echo "roll: docker-compose started no new replica." >&2; exit 1; }
  end=$((SECONDS + READY_WITHIN_S))
  until [ "$("$docker" inspect -f '{{.State.Health.Status}}' "$new")" = healthy ]; do
    if [ $SECONDS -ge $end ] || [ "$("$docker" inspect -f '{{.State.Status}}' "$new")" != running ]; then
      "$docker" logs --tail 20 "$new" >&2 || true
      "$docker" rm -f "$new" >/dev/null
      echo "roll: the new replica did not become healthy (its log is above) and was removed;" \
        "the remaining old replicas keep running." >&2
      exit 1
    fi
    sleep 0.5
  done
  # Envoy resolves the replicas' addresses every second and checks a new one's health at once.
  sleep 3
  # SIGTERM: it finishes the requests it accepted, and new ones go to the other replicas.
  "$docker" stop -t 40 "$replaced" >/dev/null
  "$docker" rm "$replaced" >/dev/null
  echo "roll: replaced ${replaced:0:12} with ${new:0:12}."
done
