# Sourced by the other scripts: makes the virtual environment .venv and installs the package into it.
# Usage: prepare_environment [GROUP]   (a dependency group of pyproject.toml, such as dev)

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

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
    local group="${1:-}" venv="$root/.venv" python stamp
    stamp="$venv/.installed${group:+-$group}"
    # The installation is editable: only a change of pyproject.toml needs a new one.
    if cmp -s "$root/pyproject.toml" "$stamp" && "$venv/bin/nst-jax" --version &>/dev/null; then
        return
    fi
    echo "Preparing the environment $venv (only the first time) ..." >&2
    # An incomplete or moved environment is replaced.
    "$venv/bin/python" -m pip --version &>/dev/null || [ -e "$venv/.uv" ] || rm -rf "$venv"
    if command -v uv >/dev/null; then
        if ! "$venv/bin/python" --version &>/dev/null; then
            uv venv --quiet --clear --python '>=3.11' "$venv" >&2
            touch "$venv/.uv"
        fi
        (cd "$root" && uv pip install --quiet --python "$venv/bin/python" --editable . \
            ${group:+--group "$group"} >&2)
    else
        python="$(find_python)"
        [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --upgrade 'pip>=25.1' >&2
        (cd "$root" && "$venv/bin/python" -m pip install --quiet --editable . \
            ${group:+--group "$group"} >&2)
    fi
    cp "$root/pyproject.toml" "$stamp"
}
