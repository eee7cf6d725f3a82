"""The library's windows: their numbers against the rule of docs/rainfusion.md, box by box."""

from __future__ import annotations

import itertools
import math
import random
import re
from fractions import Fraction

import pytest

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator import native, native_types
from rainfusion_trt.operator.geometry import Kind
from rainfusion_trt.plugin.build import source_directory

BUDGETS = {64: (192, 128), 96: (192, 96), 128: (192, 80)}


@pytest.fixture(scope="module")
def library(plugin_library):
    return native.load_library(plugin_library)


def problem(grid, head_size=64, text_tokens=0, **changes):
    values = {
        "batch": 1,
        "heads": 2,
        "tokens": math.prod(grid) + text_tokens,
        "head_size": head_size,
        "grid_t": grid[0],
        "grid_h": grid[1],
        "grid_w": grid[2],
        "alpha": 0.9,
        "text": native.Text.LAST,
        "method": native.Method.PIECEWISE,
        **changes,
    }
    return native.Problem(**values)


def counts_of(grid, box):
    return [math.ceil(Fraction(extent, size)) for extent, size in zip(grid, box, strict=True)]


def cost(grid, box):
    t, h, w = box
    stretch = Fraction(3, 2) if max(h, w) > 8 * min(h, w) else 1
    return math.prod(counts_of(grid, box)) * (1 + Fraction(9, 20 * t)) * stretch


def best_box(grid, budget, frames=16):
    """By trying every box, in fractions."""
    boxes = [
        (t, h, w)
        for t in range(1, min(budget, frames) + 1)
        for h in range(1, budget // t + 1)
        for w in range(1, budget // (t * h) + 1)
    ]
    t, h, w = min(boxes, key=lambda box: (cost(grid, box), box[1] + box[2], -box[0], -box[2]))
    return tuple(
        math.ceil(Fraction(extent, count))
        for extent, count in zip(grid, counts_of(grid, (t, h, w)), strict=True)
    )


def runs(tokens, budget):
    return -(-tokens // budget)


def random_clips(count):
    generator = random.Random(3)
    for _ in range(count):
        grid = [generator.randint(1, most) for most in (24, 40, 40)]
        text = generator.choice(list(native.Text))
        text_tokens = 0 if text == native.Text.NONE else generator.randint(0, 300)
        sinks = generator.randint(0, 2), generator.randint(0, 2)
        exact = generator.choice([(), ((0, 1),), ((grid[0] - 1, grid[0]),)])
        yield grid, text, text_tokens, sinks, exact, generator.choice([64, 96, 128])


@pytest.mark.parametrize("clip", list(random_clips(12)), ids=str)
def test_counts_of_blocks(library, clip):
    grid, text, text_tokens, (sink_frames, last_sink_frames), exact, head_size = clip
    free = (max(0, grid[0] - sink_frames - last_sink_frames), *grid[1:])
    frame = grid[1] * grid[2]
    before = min(grid[0], sink_frames) * frame
    behind = (grid[0] - free[0]) * frame - before
    if text == native.Text.FIRST:
        before += text_tokens
    else:
        behind += text_tokens
    short = any(end > sink_frames and begin < grid[0] - last_sink_frames for begin, end in exact)
    wanted = []
    for budget in BUDGETS[head_size]:
        box = best_box(free, budget, 2 if short else 16) if free[0] else None
        windows = math.prod(counts_of(free, box)) if box else 0
        wanted.append(windows + runs(before, budget) + runs(behind, budget))
    sinks = {"sink_frames": sink_frames, "last_sink_frames": last_sink_frames}
    frames = native_types.exact_frames(exact)
    clip = problem(grid, head_size, text_tokens, text=text, exact_frames=frames, **sinks)
    assert library.block_counts(clip) == tuple(wanted)


def test_boxes_of_the_document(library):
    text = (source_directory() / "docs" / "rainfusion.md").read_text()
    rows = re.findall(
        r"^\| (\d+) x (\d+) x (\d+), [^|]*\| (\d+) "
        r"\| (\d+) x (\d+) x (\d+) \| (\d+) x (\d+) x (\d+) \|$",
        text,
        re.MULTILINE,
    )
    assert len(rows) >= 5
    for row in rows:
        numbers = [int(x) for x in row]
        grid, head_size, boxes = tuple(numbers[:3]), numbers[3], (numbers[4:7], numbers[7:])
        counts = tuple(math.prod(counts_of(grid, box)) for box in boxes)
        assert library.block_counts(problem(grid, head_size)) == counts
        for box, budget in zip(boxes, BUDGETS[head_size], strict=True):
            assert math.prod(box) <= budget
            assert best_box(grid, budget) == tuple(box)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_q": 1056}, r"block_q = 1056 is more than a window of method piecewise .* 1024"),
        ({"block_k": 1025}, r"block_k = 1025 is more than a window of method piecewise .* 1024"),
        ({"block_k": 1, "grid_t": 200}, r"tokens = \d+ make \d+ key blocks of 1; at most 8192"),
    ],
)
def test_windows_that_the_kernels_do_not_take(library, changes, words):
    grid = (changes.pop("grid_t", 5), 9, 11)
    with pytest.raises(UnsupportedError, match=words):
        library.check(problem(grid, **changes))


def test_budgets_up_to_the_largest_are_taken(library):
    for block_q, block_k in itertools.product((64, 1024), (1, 1024)):
        library.check(problem((5, 9, 11), block_q=block_q, block_k=block_k))


def test_there_is_no_block_rule_for_windows(library):
    with pytest.raises(InvalidInputError, match=r"method = 4 \(piecewise\) .* another method"):
        library.block_mask_host(problem((5, 9, 11)), Kind.SPATIAL, 0.5)
