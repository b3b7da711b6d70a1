# Sourced by the other scripts: makes the virtual environment .venv and installs the package in it.
# Usage: prepare_environment [GROUP]   (a dependency group of pyproject.toml, such as dev)

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer was not found: install it, or name it in the variable PYTHON" >&2
    return 1
}

prepare_environment() {
    local group="${1:-}" python stamp
    stamp=".venv/.installed${group:+-$group}"
    # Installed in place: only a change of the project's metadata needs a new installation.
    if [ -x .venv/bin/nst-jax ] && [ -e "$stamp" ] && cmp -s pyproject.toml "$stamp"; then
        return
    fi
    echo "Preparing the environment .venv (only the first time) ..." >&2
    if command -v uv >/dev/null; then
        [ -x .venv/bin/python ] || uv venv --quiet --python '>=3.11' .venv >&2
        uv pip install --quiet --python .venv/bin/python --editable . ${group:+--group "$group"} >&2
    else
        python="$(find_python)"
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet --upgrade 'pip>=25.1' >&2
        .venv/bin/python -m pip install --quiet --editable . ${group:+--group "$group"} >&2
    fi
    cp pyproject.toml "$stamp"
}
