#!/usr/bin/env bash
# Run diffusers' own tests of its video transformers with RainFusion in each of them.
#
#   scripts/diffusers_tests.sh CHECKOUT [pytest options]
#
# CHECKOUT is diffusers' repository at the commit of the installed version, or near it.
# RAINFUSION_SPARSITY=0.5 runs them sparse; those that compare values fail then.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
cd "${1:?give the folder of the repository of diffusers}"
shift
tests=()
for name in wan wan_vace cogvideox hunyuan_video hunyuan_1_5 allegro; do
  file=tests/models/transformers/test_models_transformer_$name.py
  [[ ! -f $file ]] || tests+=("$file")
done
PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH} exec python -m pytest -q -p no:cacheprovider \
  -p tests.helpers.enabled_in_diffusers --rootdir=. "${tests[@]}" "$@"
