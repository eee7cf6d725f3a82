#!/usr/bin/env bash
# A wheel with the compiled plugin, for x86-64 Linux and any Python; prints its path.
#   bash scripts/build_wheel.sh [FOLDER]        (default: dist)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh

platform="manylinux_2_34_x86_64" # glibc 2.34: the oldest that has it is RHEL 9's
max_mb=60
output="${1:-dist}"
libraries="$PWD/build/wheel" # the stamp beside them spares a second build

{
  setup_venv "build,wheel"
  say "compiling for every GPU"
  RAINFUSION_CUDA_ARCHITECTURES="$(python -c \
    'from rainfusion_trt.plugin.architectures import DEFAULT_ARCHITECTURES as a; print(a)')" \
    rainfusion-trt build-plugin --output "$libraries/librainfusion_trt.so"
  say "making the wheel"
  scratch="$(mktemp -d)"
  trap 'rm -rf "$scratch"' EXIT
  RAINFUSION_TRT_WHEEL_LIBRARIES="$libraries" python -m pip wheel \
    --disable-pip-version-check --no-deps --wheel-dir "$scratch/raw" .
  # Refuses symbols and libraries that such systems do not have, and names the wheel after them.
  auditwheel repair --plat "$platform" --wheel-dir "$scratch/done" "$scratch"/raw/*.whl
} >&2
wheel="$(basename "$scratch"/done/*.whl)"
[[ "$wheel" == *-py3-none-*"$platform"* ]] || die "$wheel is not of the platform $platform"
size=$(($(stat -c %s "$scratch/done/$wheel") / 1000000))
((size <= max_mb)) || die "$wheel has $size MB, more than $max_mb"
mkdir -p "$output"
mv "$scratch/done/$wheel" "$output/"
say "$size MB"
echo "$output/$wheel"
