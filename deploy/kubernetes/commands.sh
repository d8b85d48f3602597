# shellcheck shell=bash
# The runbooks' commands for pods. In the project's folder: . deploy/kubernetes/commands.sh
# What the pages type as `email-ingestion`, `redis-cli` and `python` then runs in the producer's pod. Besides:
#   ./scripts/start.sh               kubectl scale deployment/producer --replicas=1; kubectl scale deployment/worker --replicas=2
#   ./scripts/stop.sh                kubectl scale deployment/producer deployment/worker --replicas=0
#   tail -f logs/*.log               kubectl logs -f -l app=worker --all-containers --prefix
#   curl localhost:8080/…            kubectl port-forward deployment/producer 8080 9090
kubectl config set-context --current --namespace=email-ingestion >/dev/null
export REDIS_HOST=redis REDIS_PORT=6379
email-ingestion() { kubectl exec deployment/producer -- email-ingestion "$@"; }
redis-cli() { kubectl exec deployment/producer -- redis-cli "$@"; }
python() { kubectl exec deployment/producer -- python "$@"; }
