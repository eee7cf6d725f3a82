#!/usr/bin/env bash
# Environment, plugin, linters, types and tests; with a GPU also the tests that need one.
#   bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh

setup_venv "export,pipeline,rtx,build,study,film,test"
install_aside
say "building the plugin"
rainfusion-trt build-plugin
say "checking style and types"
ruff check .
ruff format --check .
find plugins -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' |
  xargs clang-format --dry-run -Werror
mypy
say "running tests"
# Rehearsals of benchmarks take ten minutes: `pytest -m rehearsal`.
if has_gpu; then
  exec python -m pytest -m "not rehearsal" "$@"
else
  exec python -m pytest -m "not rehearsal and not gpu" "$@"
fi
