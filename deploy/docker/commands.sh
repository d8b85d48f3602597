# shellcheck shell=bash
# The runbooks' commands for processes that run under Compose. In the project's folder, in bash:
#   . deploy/docker/commands.sh
# What the pages type then means the containers: `email-ingestion`, `redis-cli` and `python` run in the producer's, `curl`
# asks the K-th worker at 8081, 8082, …, the files of data, logs, pids and backups are theirs, `ps` lists what runs in them, and
# `./scripts/start.sh` and `./scripts/stop.sh` start and stop them. Besides:
#   breaker, log-level of a worker    docker compose exec --index 1 worker email-ingestion breaker list
#   tail -f logs/*.log                docker compose logs -f producer worker
#   kill $(cat pids/worker-2.pid)     docker compose up -d --wait --scale worker=1
#   CONFIG SET of Redis               config/redis.conf, then docker compose restart redis
#   (cd backups/…; …)                 docker compose exec producer bash
#   logrotate, journalctl             Docker keeps and rotates the logs
export COMPOSE_FILE=$PWD/deploy/docker/compose.yaml REDIS_HOST=redis REDIS_PORT=6379
export RUNBOOK_COMMANDS=deploy/docker/commands.sh
_published="8070 8080 9090 9690 9693"

# Compose asks for a terminal whenever it writes to one, and refuses then to be in the middle of a pipe.
_run() {
    local terminal=()
    [ -t 0 ] || terminal=(-T)
    if [ -n "$(docker compose ps -q --status running "$1")" ]; then
        docker compose exec "${terminal[@]}" "$@"
    else
        docker compose run --rm --no-deps "${terminal[@]}" "$@"
    fi
}
_run_in_worker() {
    local terminal=()
    [ -t 0 ] || terminal=(-T)
    docker compose exec "${terminal[@]}" --index "$1" worker "${@:2}"
}
# Compose puts codes for a terminal before the lines, also where there is none.
_logs() { docker compose logs --no-color --no-log-prefix "$1" | command sed $'s/^\e\\[2K//'; }
_start() {
    local workers=${1:-$(docker compose ps -q worker | wc -l)} was_running
    was_running=$(docker compose ps -q --status running producer)
    docker compose up -d --wait --scale "worker=$((workers > 0 ? workers : 1))" || return
    # The sandbox lies in the network that the producer had.
    if [ -z "$was_running" ] && [ -n "$(docker compose --profile sandbox ps -aq sandbox)" ]; then
        docker compose --profile sandbox restart sandbox
    fi
}
_stop() { docker compose stop producer worker web; }
_restart_redis() { docker compose restart redis; }
_processes() { docker compose top; }

. "$PWD/deploy/docker/runbook_commands.sh"
