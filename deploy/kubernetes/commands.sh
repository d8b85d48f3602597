# shellcheck shell=bash
# The runbooks' commands for pods. In the project's folder, in bash:
#   . deploy/kubernetes/commands.sh
# What the pages type then means the pods: `email-ingestion`, `redis-cli` and `python` run in the producer's, `curl` asks
# the producer at 8080 and 9090 and the K-th worker at 8081, 8082, …, the files of data, logs, pids and backups are the producer's,
# `ps` lists the pods, and `./scripts/start.sh` and `./scripts/stop.sh` scale. Besides:
#   breaker, log-level of a worker    kubectl exec deployment/worker -- email-ingestion breaker list
#   tail -f logs/*.log                kubectl logs -f -l app=worker --all-containers --prefix
#   kill $(cat pids/worker-2.pid)     kubectl scale deployment/worker --replicas=1
#   CONFIG SET of Redis               redis-config.yaml, then systemctl restart redis
#   curl -X POST localhost:8080/…     kubectl port-forward deployment/producer 8080 9090, then `command curl`
#   a restore, a backup's folder      docs/kubernetes.md: while the producer is stopped nothing can be run in it
kubectl config set-context --current --namespace=email-ingestion >/dev/null
export REDIS_HOST=redis REDIS_PORT=6379 RUNBOOK_COMMANDS=deploy/kubernetes/commands.sh
_published=""

# Without -i nothing comes in through a pipe.
_run() {
    local terminal=-i
    if [ -t 0 ] && [ -t 1 ]; then terminal=-it; fi
    kubectl exec $terminal "deployment/$1" -- "${@:2}"
}
_run_in_worker() {
    local terminal=-i pod
    if [ -t 0 ] && [ -t 1 ]; then terminal=-it; fi
    pod=$(kubectl get pods -l app=worker -o name | sed -n "${1}p")
    if [ -z "$pod" ]; then
        echo "there is no pod of a worker $1" >&2
        return 1
    fi
    kubectl exec $terminal "$pod" -- "${@:2}"
}
_logs() { kubectl logs -l "app=$1" --all-containers --tail=-1; }
_web() { kubectl get deployment/web -o name --ignore-not-found; }
_start() {
    local web
    web=$(_web)
    kubectl scale deployment/producer ${web:+"$web"} --replicas=1 && kubectl scale deployment/worker --replicas="${1:-2}" &&
        kubectl rollout status deployment/producer && kubectl rollout status deployment/worker &&
        { [ -z "$web" ] || kubectl rollout status "$web"; }
}
_stop() {
    local web
    web=$(_web)
    kubectl scale deployment/producer deployment/worker ${web:+"$web"} --replicas=0
}
_restart_redis() { kubectl rollout restart statefulset/redis && kubectl rollout status statefulset/redis; }
_processes() { kubectl get pods -o wide; }

. "$PWD/deploy/docker/runbook_commands.sh"
