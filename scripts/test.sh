#!/usr/bin/env bash
# Install what the tests need and run the static checks and the whole suite on the newest Python from 3.11 to 3.13 that
# this machine has.
#   scripts/test.sh [--older | --quick | --soak | --delays | --deploy] [pytest options]
# --older runs what may depend on the Python on the older ones instead. --quick runs the static checks and the unit tests on the newest Python alone, and installs no servers: two minutes.
# --soak adds the long runs; without options it writes docs/drills.md and docs/images. --delays runs the suite on one Python with answers,
# commits and events that come late (tests/delays), which brings races to light. --deploy tries the ways of docs/install.md
# for real, in containers and machines made from Debian's packages: ten minutes, and nothing is left behind.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh

marker="not soak and not deploy" delays="" quick="" older="" deploy=""
if [ "${1:-}" = "--older" ]; then
    older=yes
    shift
elif [ "${1:-}" = "--quick" ]; then
    quick=yes
    shift
elif [ "${1:-}" = "--delays" ]; then
    delays="$PWD/tests/delays"
    shift
elif [ "${1:-}" = "--deploy" ]; then
    marker="deploy" deploy=yes
    shift
elif [ "${1:-}" = "--soak" ]; then
    marker="not deploy"
    shift
    if [ $# -eq 0 ]; then
        DRILLS_RESULTS=$(mktemp -d)
        export DRILLS_RESULTS SCREENSHOTS=docs/images
        trap '[ -z "${bin:-}" ] || "$bin/python" -m tests.drills.page "$DRILLS_RESULTS" docs/drills.md; rm -r "$DRILLS_RESULTS"' EXIT
    fi
fi

# Programs the tests run for real, each with its Debian package.
packages=()
need() { PATH="$PATH:/usr/sbin:/usr/local/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || packages+=("${@:2}"); }
need redis-server redis-server
need dovecot dovecot-imapd dovecot-lmtpd
need promtool prometheus
need prometheus-alertmanager prometheus-alertmanager
need shellcheck shellcheck
need logrotate logrotate
need curl curl
need openssl openssl
need ps procps
need nft nftables
need ip iproute2
need systemd-analyze systemd
need chromium chromium fonts-dejavu-core
compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || need initdb postgresql
if [ -n "$deploy" ]; then
    need podman podman catatonit netavark aardvark-dns
    need runc runc
    need iptables iptables
    need mmdebstrap mmdebstrap
    need systemd-nspawn systemd-container
    need kubectl kubernetes-client
    need git git
fi
if [ -z "$quick" ] && [ ${#packages[@]} -gt 0 ]; then
    if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq || [ -n "$deploy" ]
        # The services themselves are not wanted: every test starts its own.
        if ! RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null; then
            [ -n "$deploy" ] || exit 1
            echo "not tried: what needs ${packages[*]}, which cannot be installed here" >&2
        fi
    else
        echo "missing, and the tests that need them are skipped: ${packages[*]} (Debian: apt-get install ${packages[*]})" >&2
    fi
fi

# Cyrus and Dovecot exclude each other as packages, not as programs: the one is unpacked beside what it needs.
cyrus=/var/tmp/email-ingestion-cyrus
has_cyrus() { [ -x /usr/lib/cyrus/bin/master ] && { [ -x /usr/lib/cyrus/bin/imapd ] || [ -x $cyrus/usr/lib/cyrus/bin/imapd ]; }; }
get_cyrus() {
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq &&
        apt-get install -y -qq --no-install-recommends cyrus-common sasl2-bin libsasl2-modules >/dev/null &&
        mkdir -p $cyrus && cd $cyrus && apt-get download -qq -o APT::Sandbox::User=root cyrus-imapd &&
        dpkg -x cyrus-imapd_*.deb . && rm cyrus-imapd_*.deb
}
if [ -z "$quick$deploy" ] && ! has_cyrus; then
    if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ] || ! (get_cyrus); then
        echo "Cyrus is missing, and the tests that need it are skipped: as root on Debian this script gets it" >&2
    fi
fi

# Every Python we promise, by what it says of itself: a shim on the PATH may be dead.
pythons=()
for version in 3.13 3.12 3.11; do
    for candidate in "python$version" "$HOME/.pyenv/versions/$version."*/bin/python "/opt/python/$version/bin/python"; do
        if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
            pythons+=("$version=$candidate")
            break
        fi
    done
done
if [ ${#pythons[@]} -eq 0 ]; then
    find_python >/dev/null
fi

# The tests wait more than they compute: two processes more than there are cores.
# Each begins with a part of the whole, and one that is done takes from the others (worksteal).
workers=$(($(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1) + 2))
if [ -n "$older" ]; then
    pythons=("${pythons[@]:1}")
    [ ${#pythons[@]} -gt 0 ] || echo "there is no older Python on this machine: nothing was run" >&2
else
    pythons=("${pythons[0]}")
fi
for entry in ${pythons[@]+"${pythons[@]}"}; do
    version=${entry%%=*}
    venv=".venv-test-$version"
    PYTHON=${entry#*=} make_venv "$venv" requirements-dev.lock
    bin="$PWD/$venv/bin"
    export UV="$bin/uv"
    if [ -n "$deploy" ]; then
        echo "== the deployment stage on Python $version"
        # One after the other, each with its minutes; what was not tried stands at the end, with the reason.
        PATH="$bin:$PATH" "$bin/python" -m pytest -m "$marker" -p no:xdist -rs -v --durations=12 tests/deploy "$@"
        break
    fi
    if [ -z "$older" ]; then
        echo "== static checks"
        # mypy takes half a minute of one core: it goes on beside the suite, which waits more than it computes, and what
        # it finds is shown at once. The tests are collected meanwhile: on a fresh checkout each of the processes would
        # compile all of them.
        failed=""
        "$bin/mypy" --python-executable "$bin/python" --no-error-summary &
        types=$!
        "$bin/ruff" check --quiet . || failed=yes
        "$bin/ruff" format --check --quiet . || failed=yes
        "$bin/lint-imports" --no-logo >/dev/null || "$bin/lint-imports" --no-logo || failed=yes
        if command -v shellcheck >/dev/null 2>&1; then shellcheck -x scripts/*.sh deploy/*/commands.sh .ci/run || failed=yes; fi
        if [ -z "$failed$quick" ] && ! "$bin/python" -m pytest --collect-only -qqq >"$venv/collected"; then
            cat "$venv/collected"
            failed=yes
        fi
        if [ -n "$failed$quick" ]; then wait "$types" || failed=yes; fi
        [ -z "$failed" ] || exit 1
        chosen=()
        [ -z "$quick" ] || chosen=(tests/unit)
    else
        # What only tries whole processes, files, rules and Redis meets the same whatever Python runs it: once is enough.
        # What talks to servers and databases is left to the newest and the oldest, for the hour that all of CI may take;
        # what tries a browser, the site of the documentation or a benchmark, to the newest.
        chosen=(tests/unit tests/sandbox tests/acceptance/test_main_job.py)
        if [ "$version" != 3.12 ]; then
            chosen+=(tests/contract tests/integration)
            for once in stream_machine hostile_html docs_site bench; do
                chosen+=("--ignore=tests/integration/test_$once.py")
            done
        fi
    fi
    echo "== the suite on Python $version ${chosen[*]:-}"
    status=0
    PATH="$bin:$PATH" ${delays:+env "PYTHONPATH=$delays"} "$bin/python" -m pytest -n "$workers" --dist worksteal ${marker:+-m "$marker"} "${chosen[@]}" "$@" || status=$?
    if [ -z "$older$quick" ] && ! wait "$types"; then
        echo "mypy found what stands above" >&2
        status=1
    fi
    [ "$status" = 0 ] || exit "$status"
done
