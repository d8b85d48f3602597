# Sourced by the other scripts: finds a Python and makes a virtual environment of the locked dependencies.
# shellcheck shell=bash

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "email-ingestion needs Python 3.11 or newer: install it, or name it with PYTHON=/path/to/python3" >&2
    return 78
}

# make_venv DIRECTORY LOCK: quick when the environment already holds what the lock says.
make_venv() {
    local venv=$1 lock=$2 python stamp
    stamp="$venv/.installed"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(cksum "$lock" pyproject.toml)" ] && [ -x "$venv/bin/python" ]; then
        return
    fi
    python=$(find_python)
    echo "installing the locked dependencies into $venv (once)"
    if ! "$python" -m venv "$venv"; then
        echo "cannot make $venv: install the venv module of $python (Debian: apt-get install python3-venv)" >&2
        return 78
    fi
    # uv is many times quicker, but only pip knows of an index that pip.conf names.
    if ! { [ -x "${UV:-}" ] && "$UV" pip install --quiet --compile-bytecode --python "$venv/bin/python" --require-hashes -r "$lock" 2>/dev/null; }; then
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes -r "$lock"
    fi
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
    cksum "$lock" pyproject.toml >"$stamp"
}
