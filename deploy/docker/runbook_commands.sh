# shellcheck shell=bash
# What the runbooks type, for processes that run in containers. Not for itself: commands.sh and
# ../kubernetes/commands.sh source it, and say how a command is run there:
#   _run PROCESS WORDS…    in the container of a process, or in a new one like it while it is stopped
#   _run_in_worker K WORDS…   in the container of the K-th worker
#   _logs PROCESS          print what all containers of a process have logged
#   _start [WORKERS] · _stop · _restart_redis · _processes
#   _published             the ports that this machine reaches
# Sourced by bash, in the project's folder. The folders data, logs, pids and backups are those of the containers.

email-ingestion() {
    case ${1:-} in
    # Containers log to a stream, which only the engine can read: it is handed in.
    logs | errors | evidence)
        local folder status
        folder=$(_logs_in_a_folder)
        # shellcheck disable=SC2016 # for the shell in the container
        command tar -C "$folder" -c . | _run producer bash -c \
            'umask 077; mkdir -p /tmp/logs && tar -C /tmp/logs -x && LOG_DIR=/tmp/logs exec email-ingestion "$@"' bash "$@"
        status=$?
        command rm -r "$folder"
        return $status
        ;;
    # Each container is a machine of its own: an order is for all of them.
    pause | resume | degrade | priority)
        case " $* " in *" --all "* | *" --help "*) ;; *) set -- "$@" --all ;; esac
        _run producer email-ingestion "$@"
        ;;
    start) _start "$(_workers_of "$@")" ;; # what an installed package has in the place of the scripts
    stop) _stop ;;
    web) _run web email-ingestion "$@" ;; # a login link is of the process that takes it
    *) _run producer email-ingestion "$@" ;;
    esac
}

redis-cli() { _run producer env ${REDISCLI_AUTH:+"REDISCLI_AUTH=$REDISCLI_AUTH"} redis-cli "$@"; }

python() {
    case "$*" in
    worker.py) _start ;;
    "worker.py --instance "*) _start "$3" ;;
    "producer.py --auth-setup") _run producer python "$@" --no-browser ;;
    *) _run producer python "$@" ;;
    esac
}

# A port that this machine does not reach is asked in the container it belongs to; there is no curl.
curl() {
    local word port="" fails=""
    for word in "$@"; do
        case $word in
        -*f*) fails=yes ;;
        *localhost:80[78]? | *localhost:80[78]?/* | *localhost:909? | *localhost:909?/*)
            port=${word##*localhost:} port=${port%%/*}
            ;;
        esac
    done
    if [ -z "$port" ] || [[ " $_published " == *" $port "* ]]; then
        command curl "$@"
        return
    fi
    local number=${port#???} url=http://localhost:${port%?}$((port % 10 ? 1 : 0))
    for word in "$@"; do
        case $word in *"localhost:$port"*) url+=${word##*"localhost:$port"} ;; esac
    done
    local words=(python -c "import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=10)
except urllib.error.HTTPError as error:
    answer = error
except OSError as error:
    sys.exit(f'curl: {sys.argv[1]}: {error}')
sys.exit(22) if sys.argv[2:] and answer.status >= 400 else sys.stdout.write(answer.read().decode())" "$url" ${fails:+fails})
    case $port in
    8070) _run web "${words[@]}" ;;
    *0) _run producer "${words[@]}" ;;
    *) _run_in_worker "$number" "${words[@]}" ;;
    esac
}

ps() { _processes; }

systemctl() {
    if [ "$*" = "restart redis" ]; then _restart_redis; else command systemctl "$@"; fi
}

# Programs that look at files: where a word names one of the containers' folders, they run there.
for _each in cat df du find grep ls rm sha256sum stat sed tail tar; do
    eval "$_each() { _files $_each \"\$@\"; }"
done
unset _each

_files() {
    local word line="" inside="" logged="" folder status
    for word in "${@:2}"; do
        case $word in
        logs/audit.log | data | data/* | pids | pids/* | backups | backups/*) inside=yes ;;
        logs | logs/* | /var/log/redis/*) logged=yes ;;
        /tmp/*) [ -e "$word" ] || inside=yes ;; # written by a command in the container
        esac
    done
    if [ -z "$inside$logged" ]; then
        command "$@"
        return
    fi
    if [ -z "$inside" ]; then
        folder=$(_logs_in_a_folder)
        line="command $1"
        for word in "${@:2}"; do
            case $word in
            logs/* | /var/log/redis/*) line+=" $folder/$(_quoted "${word##*/}")" ;;
            logs) line+=" $folder" ;;
            *) line+=" $(printf %q "$word")" ;;
            esac
        done
        eval "$line"
        status=$?
        command rm -r "$folder"
        return $status
    fi
    line="exec $1"
    for word in "${@:2}"; do
        case $word in
        pids/worker-*.pid) line+=" pids/worker.pid" ;; # each container has one worker
        *) line+=" $(_quoted "$word")" ;;
        esac
    done
    word=$*
    case $word in
    *pids/worker-*) word=${word#*pids/worker-} && _run_in_worker "${word%%.*}" bash -c "$line" ;;
    *pids/worker.pid) _run worker bash -c "$line" ;;
    *) _run producer bash -c "$line" ;;
    esac
}

# A word for another shell, which finds the files of its pattern.
_quoted() {
    local quoted
    quoted=$(printf %q "$1")
    case $1 in data/* | logs/* | pids/* | backups/* | *.log*) quoted=${quoted//'\*'/*} ;; esac
    printf '%s\n' "$quoted"
}

_logs_in_a_folder() {
    local folder each
    folder=$(mktemp -d)
    for each in producer worker web; do _logs "$each" >"$folder/$each.log"; done
    _logs redis >"$folder/redis-server.log"
    echo "$folder"
}

# `--workers N` of the words of scripts/start.sh
_workers_of() {
    while [ $# -gt 0 ]; do
        case $1 in
        --workers) echo "${2:-}" ;;
        --workers=*) echo "${1#*=}" ;;
        esac
        shift
    done
}
