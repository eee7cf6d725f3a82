#!/usr/bin/env bash
# Run diffusers' own tests of its video transformers without RainFusion, with it at sparsity 0 and
# at 0.5, and write what passed to benchmarks/results/diffusers_tests.json.
#
#   scripts/diffusers_tests.sh CHECKOUT [pytest options]
#
# CHECKOUT is diffusers' repository at the commit of the installed version, or near it; the tests
# run the installed one. At 0.5 those that compare values with dense attention fail.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
checkout=$(cd "${1:?give the folder of the repository of diffusers}" && pwd)
shift
outcomes=$(mktemp -d)
trap 'rm -rf "$outcomes"' EXIT
cd "$checkout"
tests=()
for name in wan wan_vace cogvideox hunyuan_video hunyuan_1_5 allegro; do
  file=tests/models/transformers/test_models_transformer_$name.py
  [[ ! -f $file ]] || tests+=("$file")
done
export PYTHONPATH=$project/tests/helpers:$project${PYTHONPATH:+:$PYTHONPATH}
for sparsity in without 0 0.5; do
  # Status 1: some tests failed, which the file will say.
  RAINFUSION_SPARSITY=$sparsity python -m pytest -q -p no:cacheprovider \
    -p enabled_in_diffusers --rootdir=. --rainfusion-outcomes "$outcomes" \
    "${tests[@]}" "$@" || [[ $? == 1 ]]
done
cd "$project"
python -m benchmarks.diffusers_tests "$checkout" "$outcomes"
