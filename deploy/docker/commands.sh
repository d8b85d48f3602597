# shellcheck shell=bash
# The runbooks' commands for processes that run under Compose. In the project's folder: . deploy/docker/commands.sh
# What the pages type as `email-ingestion`, `redis-cli` and `python` then runs in the container of the producer. Besides:
#   ./scripts/start.sh               docker compose up -d --wait
#   ./scripts/stop.sh                docker compose stop producer worker
#   tail -f logs/*.log               docker compose logs -f producer worker
#   curl localhost:8081/…            docker compose exec worker python -c …; the producer's ports are published
export COMPOSE_FILE=$PWD/deploy/docker/compose.yaml REDIS_HOST=redis REDIS_PORT=6379
email-ingestion() { docker compose exec producer email-ingestion "$@"; }
redis-cli() { docker compose exec producer redis-cli "$@"; }
python() { docker compose exec producer python "$@"; }
