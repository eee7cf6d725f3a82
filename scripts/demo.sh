#!/usr/bin/env bash
# From a checkout to out/demo.mp4: environment, export, plugin, engine, run. Repeats are quick.
#   bash scripts/demo.sh [--output DIR] [--steps N] [--seed N]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh

setup_venv "export,pipeline,rtx,build"
exec python -m rainfusion_trt.demo "$@"
