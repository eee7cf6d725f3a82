#!/usr/bin/env bash
# Installs a wheel of build_wheel.sh, with its dependencies, where there is neither a compiler nor
# nvcc, and builds engines there.
#   bash scripts/check_wheel.sh WHEEL
set -euo pipefail
wheel="$(realpath "${1:?usage: check_wheel.sh WHEEL}")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh

checks="$PWD/scripts/installed_wheel.py"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
venv="$scratch/venv"

say "installing $(basename "$wheel") into an empty environment"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet \
  "rainfusion-trt[export,pipeline,rtx] @ file://$wheel" "$(torch_requirement)"

# Nothing of this machine: no variable, no program but the environment's, no checkout.
mkdir "$scratch/home" "$scratch/work"
cd "$scratch/work"
clean() { env -i HOME="$scratch/home" PATH="$venv/bin" HF_HUB_OFFLINE=1 "$@"; }

say "looking at what is installed"
clean python "$checks" "$venv"
clean rainfusion-trt info
say "building an engine from a recipe of the package"
clean rainfusion-trt export --model cogvideox-5b --config tiny --random-weights --dtype fp16 \
  --dynamic --frames 25 --height 128 --width 192 --output tiny.onnx
clean rainfusion-trt build-engine tiny.onnx --recipe tiny-cogvideox --target sm80
say "running the demo"
clean python -m rainfusion_trt.demo --steps 2
for file in tiny.engine/engine.plan out/demo-fp16.engine/engine.plan out/demo.mp4; do
  [[ -s "$file" ]] || die "no $file was written"
done
[[ ! -e "$scratch/home/.cache/rainfusion-trt/plugin" ]] || die "the plugin was compiled anew"
say "the wheel works"
