# Sourced by the other scripts, from the repository's root: makes .venv, installs this package
# with the extras given as arguments, and activates it. Does nothing where that is up to date.

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

# Without a GPU the exact version is installed that the project is tested with: of that one many
# package indexes have a small CPU build.
torch_requirement() { if has_gpu; then echo torch; else echo "torch==2.13.0"; fi; }

setup_venv() {
  local extras="$1" python="${PYTHON:-python3}" stamp
  command -v "$python" >/dev/null || die "no $python: apt-get install python3 python3-venv"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$("$python" --version) is too old: set PYTHON to Python 3.10 or newer"
  command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
    die "no C++ compiler, which the plugin needs: apt-get install g++"
  local torch
  torch="$(torch_requirement)"
  if has_gpu; then extras="$extras,cuda"; fi

  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    "$python" -c 'import ensurepip' 2>/dev/null ||
      die "$python cannot make virtual environments: apt-get install python3-venv"
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
  fi
  export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH"

  stamp="$extras $torch $(sha256sum pyproject.toml | cut -d' ' -f1) $(.venv/bin/python --version)"
  # One mark per set of extras, so that the demo and the tests do not undo each other's.
  stamp=".venv/installed-$(sha256sum <<<"$stamp" | cut -c1-16)"
  if [[ ! -e "$stamp" ]]; then
    say "installing rainfusion-trt[$extras] into .venv"
    .venv/bin/python -m pip install --disable-pip-version-check -e ".[$extras]" "$torch"
    touch "$stamp"
  fi
}

# What tests need that cannot be in the environment itself, each list in a folder of its own: the lean
# runtimes of TensorRT 10 and 11 have the same modules, and diffusers loads every quantiser it finds.
install_aside() {
  local list folder
  for list in tests/requirements/*.txt; do
    folder=".venv/aside/$(basename "$list" .txt)"
    if cmp -s "$list" "$folder/requirements.txt"; then continue; fi
    say "installing $list into $folder"
    rm -rf "$folder"
    .venv/bin/python -m pip install --disable-pip-version-check --no-deps --target "$folder" -r "$list"
    cp "$list" "$folder/requirements.txt"
  done
}
