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
if [ -z "${COMPOSE_FILE:-}" ]; then
    COMPOSE_FILE=$PWD/deploy/docker/compose.yaml
    for _each in "$PWD"/deploy/docker/compose.override.y*ml; do
        [ ! -e "$_each" ] || COMPOSE_FILE+=:$_each # as Compose takes it in that folder
    done
fi
export COMPOSE_FILE REDIS_HOST=redis REDIS_PORT=6379
export RUNBOOK_COMMANDS=deploy/docker/commands.sh

# The engine is asked, for Compose reads its files anew for each command, which takes half a second.
_config=$(docker compose config)
_project=$(command sed -n 's/^name: //p' <<<"$_config")
_published=$(command sed -n 's/^ *published: "\(.*\)"$/\1/p' <<<"$_config" | command tr '\n' ' ')
_container() { # SERVICE [K]: the K-th container of a service that runs, or the first
    local found
    found=$(docker ps -aq --filter "label=com.docker.compose.project=$_project" \
        --filter "label=com.docker.compose.service=$1" --filter label=com.docker.compose.oneoff=False \
        ${2:+--filter "label=com.docker.compose.container-number=$2"})
    # The list may lag behind a stop that has just ended: each is asked for its own state.
    # shellcheck disable=SC2086 # one word for each
    [ -z "$found" ] || docker inspect --format '{{if .State.Running}}{{.Id}}{{end}}' $found | command sed '/^$/d' | command tail -1
}
_exec() {
    local terminal=-i
    if [ -t 0 ] && [ -t 1 ]; then terminal=-it; fi
    docker exec $terminal "$@"
}
_run() {
    local container terminal=()
    container=$(_container "$1")
    if [ -n "$container" ]; then
        _exec "$container" "${@:2}"
    else
        [ -t 0 ] || terminal=(-T)
        docker compose run --rm --no-deps "${terminal[@]}" "$@"
    fi
}
_run_in_worker() {
    local container
    container=$(_container worker "$1")
    if [ -z "$container" ]; then
        echo "there is no container of a worker $1 that runs" >&2
        return 1
    fi
    _exec "$container" "${@:2}"
}
# Compose puts codes for a terminal before the lines, also where there is none.
_logs() { docker compose logs --no-color --no-log-prefix "$1" | command sed $'s/^\e\\[2K//'; }
_start() {
    local workers=${1:-$(docker compose ps -q worker | wc -l)} profile=()
    if [ -n "$(docker compose --profile sandbox ps -aq sandbox)" ]; then
        profile=(--profile sandbox)
        # It lies in the network of the producer, and a producer that is started anew has another one.
        [ -n "$(_container producer)" ] || docker compose --profile sandbox stop sandbox || return
    fi
    docker compose "${profile[@]}" up -d --wait --scale "worker=$((workers > 0 ? workers : 1))"
}
_stop() { docker compose --profile sandbox stop producer worker web sandbox; }
_restart_redis() { docker compose restart redis; }
_processes() { docker compose top; }

. "$PWD/deploy/docker/runbook_commands.sh"
