"""When processes that have left a call by an error are in step."""

from __future__ import annotations

import pytest

from rainfusion_trt.parallel.ends import End, in_step

WORLD, PAIR, OTHER = (0, 1, 2, 3), (0, 1), (2, 3)


def end(failed: bool = True, pair: tuple[int, ...] = PAIR, done: int = 7, **changes) -> End:
    """Of a process that has exchanged `done` times with its pair."""
    return End(failed, 3, 2, {WORLD: (5,), pair: (done,)})._replace(**changes)


@pytest.mark.parametrize(
    ("ends", "are"),
    [
        ([end(), end()], True),
        ([end(), end(), end(pair=OTHER, done=9), end(pair=OTHER, done=9)], True),
        ([end(), end(failed=False)], True),  # behind the last step, where the first works alone
        ([end(failed=False), end()], False),
        ([end(), end(done=8)], False),
        ([end(), end(agreed=4)], False),
        ([end(), end(enqueued=3)], False),
        ([end(enqueued=None), end(enqueued=None)], False),
        ([end(), end(exchanged={WORLD: (6,), PAIR: (7,)})], False),
    ],
)
def test_they_are_after_the_same_exchanges(ends, are):
    assert in_step(ends) == are
