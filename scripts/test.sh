#!/usr/bin/env bash
# Environment, plugin, linters, types and tests; with a GPU also the tests that need one.
#   bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh

setup_venv "export,pipeline,rtx,build,study,film,serve,page,test"
install_aside
say "building the plugin"
rainfusion-trt build-plugin
say "checking style and types"
ruff check .
ruff format --check .
find plugins benchmarks -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' |
  xargs clang-format --dry-run -Werror
mypy
say "running tests"
# Rehearsals of benchmarks take ten minutes: `pytest -m rehearsal`.
if has_gpu; then
  exec python -m pytest -m "not rehearsal" "$@"
fi
# A worker for each core, with one thread each, since tests are of tiny tensors. Files stay whole for
# the sake of their fixtures, in the order of tests/conftest.py.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"
exec python -m pytest -m "not rehearsal and not gpu" --numprocesses auto --dist loadfile \
  --no-loadscope-reorder "$@"
