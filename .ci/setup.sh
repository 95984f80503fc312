#!/bin/sh
# Create .venv and install the project into it. Called by make; safe to run again.
#   TORCH   requirement to install for torch, chosen below when empty
#   PYTHON  interpreter to make .venv from, the first suitable one when empty
set -eu
cd "$(dirname "$0")/.."
VENV=.venv
PY=$VENV/bin/python
say() { printf 'setup: %s\n' "$*" >&2; }
suitable() { "$1" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }

UV=$(command -v uv || true)
if ! [ -x "$PY" ]; then
    if [ -n "${PYTHON:-}" ]; then
        suitable "$PYTHON" || { say "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 with the venv module."; exit 1; }
    else
        for candidate in python3 python3.13 python3.12 python3.11 python; do
            if suitable "$candidate"; then PYTHON=$candidate; break; fi
        done
    fi
    if [ -n "$UV" ]; then
        say "creating $VENV with uv"
        "$UV" venv --quiet --seed --python "${PYTHON:-3.12}" "$VENV"
    elif [ -n "${PYTHON:-}" ]; then
        say "creating $VENV with $PYTHON -m venv"
        "$PYTHON" -m venv "$VENV"
    else
        say "found no Python 3.11, 3.12 or 3.13 with the venv module: install one, or uv, or name one with PYTHON=..."
        exit 1
    fi
fi
"$PY" -m pip --version >/dev/null 2>&1 || "$PY" -m ensurepip --upgrade >/dev/null 2>&1 || true

# uv installs several times faster than pip; pip can bring it, and does the work itself where it cannot.
if [ -z "$UV" ] && [ -z "${NO_UV:-}" ] && "$PY" -m pip install --quiet uv; then UV=$VENV/bin/uv; fi
install() {
    if [ -n "$UV" ]; then "$UV" pip install --python "$PY" "$@"; else "$PY" -m pip install "$@"; fi
}

PINNED=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints-cpu.txt)
if [ -n "${TORCH:-}" ]; then
    install "$TORCH"
elif "$PY" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    :
elif [ "$(uname -s)" != Linux ] || nvidia-smi -L 2>/dev/null | grep -q GPU; then
    install "$PINNED"
elif "$PY" -m pip install --quiet "$PINNED+cpu" 2>/dev/null; then # pip is configured with a place that has CPU builds
    :
elif [ -n "$UV" ] && "$UV" pip install --python "$PY" --torch-backend=cpu "$PINNED"; then # uv knows where they are
    :
else
    say "no CPU build of torch could be installed. 'make setup TORCH=$PINNED' takes the default build (on Linux" \
        "several GB of GPU libraries); TORCH may also name a wheel file."
    exit 1
fi

say "installing the project and its dependencies"
install --constraint constraints-cpu.txt --editable '.[all]'
"$PY" -c 'import torch; print("setup: torch", torch.__version__, "built for", torch.version.cuda or "CPU")' >&2
