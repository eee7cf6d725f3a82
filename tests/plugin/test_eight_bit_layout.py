"""How 8-bit tiles lie, against the tensor cores' own layouts as NVIDIA's PTX manual has them.

The offsets are those of the kernels' header, compiled for the host. No GPU takes part: this is the
proof that a probability meets the value of its own key.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess

import pytest

from rainfusion_trt.operator.geometry import block_shape
from rainfusion_trt.plugin.build import source_directory

HEAD_SIZES = (64, 128)
PROGRAM = """
#include <cstdio>
#include "common/eight_bit.h"
using namespace rainfusion::eight_bit;
int main() {
  for (int size : kHeadSizes) {
    std::printf("shape %d %d %d\\n", size, kQueries, keys_of(size));
    for (int row = 0; row < kQueries; ++row)
      for (int chunk = 0; chunk < size / 16; ++chunk)
        std::printf("row %d %d %d %d\\n", size, row, chunk, row_offset(size, row, chunk));
    for (int channel = 0; channel < size; ++channel)
      for (int key = 0; key < keys_of(size); ++key)
        std::printf("value %d %d %d %d\\n", size, channel, key, value_offset(size, channel, key));
  }
  for (int reg = 0; reg < 4; ++reg)
    for (int byte = 0; byte < 4; ++byte)
      std::printf("score %d %d %d\\n", reg, byte, packed_score(reg, byte));
  for (int lane = 0; lane < 32; ++lane)
    std::printf("a %d %d %d\\nb %d %d %d\\n", lane, lane_row_a(0, lane), lane_chunk_a(lane),
                lane, lane_row_b(0, lane), lane_chunk_b(lane));
  for (int size : kHeadSizes)
    for (int step = 0; step < keys_of(size) / kStepKeys; ++step)
      for (int channel = 0; channel < size; ++channel)
        for (int chunk = 0; chunk < 2; ++chunk)
          std::printf("values %d %d %d %d %d\\n", size, step, channel, chunk,
                      value_row_offset(size, step, channel, chunk));
}
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """dict of dict: by name of a function, its values by arguments."""
    folder = tmp_path_factory.mktemp("layout")
    (folder / "print.cc").write_text(PROGRAM)
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    kernels = source_directory() / "plugins" / "kernels"
    program = folder / "print"
    command = [compiler, "-std=c++17", f"-I{kernels}", folder / "print.cc", "-o", program]
    subprocess.run(command, check=True)
    found: dict[str, dict[tuple[int, ...], int]] = {}
    for line in subprocess.run([program], check=True, capture_output=True, text=True).stdout.split(
        "\n"
    )[:-1]:
        name, *numbers = line.split()
        *arguments, value = map(int, numbers)
        found.setdefault(name, {})[tuple(arguments)] = value
    return found


def loaded(tables, operand: str) -> dict[tuple[int, int, int], tuple[int, int]]:
    """(row, column) of the byte that ldmatrix gives a lane, by lane, register and byte of it.

    Of operand `a` or `b` as kernels load it, 16 rows of 32 bytes. Lane l names the row of matrix
    l / 8 with number l % 8; lane 4 g + t gets bytes 4 t to 4 t + 3 of row g of every matrix, in
    the register of its number.
    """
    places = {lane: (row, chunk) for (lane, row), chunk in tables[operand].items()}
    found = {}
    for lane, register, byte in itertools.product(range(32), range(4), range(4)):
        row, chunk = places[8 * register + lane // 4]
        found[lane, register, byte] = (row, 16 * chunk + 4 * (lane % 4) + byte)
    return found


def swizzled(address: int, row_bytes: int) -> int:
    """Address bits 4 to 6 (128-byte rows), 4 to 5 (64) or 4 (32) xor those three higher."""
    mask = row_bytes // 16 - 1 << 4
    return address ^ (address >> 3 & mask)


def test_tiles_are_as_large_as_the_blocks(tables):
    for (head_size, queries), keys in tables["shape"].items():
        assert (queries, keys) == block_shape(head_size, "8bit")


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_rows_lie_as_descriptors_say(tables, head_size):
    """Rows one after the other, swizzled: operand element (row, byte) at row * D + byte."""
    for row, chunk in itertools.product(range(192), range(head_size // 16)):
        wanted = swizzled(row * head_size + chunk * 16, head_size)
        assert tables["row"][head_size, row, chunk] == wanted


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_values_meet_the_probabilities_of_their_keys(tables, head_size):
    """m64nNk32 of 8-bit operands: A in registers, accumulators of the product before.

    Register i, byte b of lane 4 g + t holds row g + 8 (i % 2), column 16 (i // 2) + 4 t + b of A;
    accumulator 4 n + 2 r + j holds row g + 8 r, column 8 n + 2 t + j.
    """
    keys = block_shape(head_size, "8bit").k
    met = set()
    for step, t, register, byte in itertools.product(range(keys // 32), *[range(4)] * 3):
        score = step * 16 + tables["score"][register, byte]
        n, r, j = score // 4, score % 4 // 2, score % 2
        assert r == register % 2
        key = 8 * n + 2 * t + j
        column = 16 * (register // 2) + 4 * t + byte
        for channel in range(head_size):
            base = step * head_size * 32
            wanted = base + swizzled(channel * 32 + column, 32)
            assert tables["value"][head_size, channel, key] == wanted
        met.add((key, r))
    assert met == set(itertools.product(range(keys), range(2)))


def test_lanes_load_the_operands_of_mma_sync(tables):
    """m16n8k32 of 8-bit operands, of which B is loaded twice, eight columns beside eight.

    A: register i, byte b of lane 4 g + t holds row g + 8 (i % 2), column 16 (i // 2) + 4 t + b.
    B: register i, byte b holds row 16 i + 4 t + b, column g.
    """
    a, b = loaded(tables, "a"), loaded(tables, "b")
    for lane, register, byte in itertools.product(range(32), range(4), range(4)):
        g, t = divmod(lane, 4)
        column = 16 * (register // 2) + 4 * t + byte
        assert a[lane, register, byte] == (g + 8 * (register % 2), column)
        inner = 16 * (register % 2) + 4 * t + byte
        assert b[lane, register, byte] == (g + 8 * (register // 2), inner)


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_mma_sync_multiplies_what_belongs_together(tables, head_size):
    """q with k by channel, and p with v by key, in every lane.

    Which key or channel a byte of a tile is of, the offsets say that the rounding passes write by.
    """
    keys = block_shape(head_size, "8bit").k
    values = {
        offset: (channel, key)
        for (size, channel, key), offset in tables["value"].items()
        if size == head_size
    }
    a, b = loaded(tables, "a"), loaded(tables, "b")
    for lane, register, byte in itertools.product(range(32), range(4), range(4)):
        # Queries and keys: a row's chunks are those of the tile, two a step.
        for place in (a, b):
            row, column = place[lane, register, byte]
            for chunk in range(0, head_size // 16, 2):
                offset = tables["row"][head_size, row, chunk + column // 16] + column % 16
                assert swizzled(offset, head_size) == row * head_size + chunk * 16 + column
    for step, t, register, byte in itertools.product(range(keys // 32), *[range(4)] * 3):
        score = step * 16 + tables["score"][register, byte]  # of what the lane computed
        key_of_p = 8 * (score // 4) + 2 * t + score % 2
        inner = 16 * (register // 2) + 4 * t + byte  # where A has it
        for channels, g, half in itertools.product(range(0, head_size, 16), range(8), range(2)):
            lane = 4 * g + inner % 16 // 4  # who has row `inner` and column g of B
            row, column = b[lane, 2 * half + inner // 16, inner % 4]
            assert column == inner
            offset = tables["values"][head_size, step, channels + row, column // 16] + column % 16
            assert values[offset] == (channels + 8 * half + g, key_of_p)


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_lanes_of_a_matrix_read_all_banks(tables, head_size):
    """Eight rows at one chunk are 128 bytes of shared memory, each bank once."""
    reads = [
        [tables["row"][head_size, row, chunk] for row in range(first, first + 8)]
        for first in range(0, 192, 8)
        for chunk in range(head_size // 16)
    ]
    reads += [
        [tables["values"][head_size, step, channel, chunk] for channel in range(first, first + 8)]
        for step in range(block_shape(head_size, "8bit").k // 32)
        for first in range(0, head_size, 8)
        for chunk in range(2)
    ]
    for offsets in reads:
        assert len({offset // 16 % 8 for offset in offsets}) == 8


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_every_byte_of_a_tile_is_one_value(tables, head_size):
    offsets = [v for (size, *_), v in tables["value"].items() if size == head_size]
    assert sorted(offsets) == list(range(head_size * block_shape(head_size, "8bit").k))
