"""An exported graph on several GPUs, played in NumPy: a thread a GPU, onnx's reference evaluator.

What the plugins do is written here once more, by whole tensors: the parts of all threads are put
together, attention is dense, and each thread takes its part.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

DOMAIN = "rainfusion"


class Gpus:
    """P threads that hand each other what they have."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self.local = threading.local()
        self._barrier = threading.Barrier(parts, timeout=120)
        self._given: list[Any] = [None] * parts

    @property
    def rank(self) -> int:
        return self.local.rank

    def all(self, mine: Any) -> list[Any]:
        """What every thread gives here."""
        self._given[self.rank] = mine
        self._barrier.wait()
        given = list(self._given)
        self._barrier.wait()
        return given

    def run(self, path: Any, feed: Mapping[str, np.ndarray], tokens: int) -> list[np.ndarray]:
        """The output of each GPU for a clip of so many video tokens."""
        model = onnx.load(path)
        outputs: list[Any] = [None] * self.parts
        errors: list[BaseException] = []

        def work(rank: int) -> None:
            self.local.rank = rank
            try:
                part = np.array_split(np.zeros(tokens, np.float32), self.parts)[rank]
                evaluator = ReferenceEvaluator(model, new_ops=self._operators())
                outputs[rank] = evaluator.run(None, {**feed, "part": part})[0]
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.parts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return outputs

    def _operators(self) -> list[type[OpRun]]:
        gpus = self

        class RainFusionSplit(OpRun):
            op_domain = DOMAIN

            def _run(self, whole: Any, part: Any, axis: int = 0, **_: Any) -> tuple[Any]:
                mine = np.array_split(whole, gpus.parts, axis=axis)[gpus.rank]
                assert mine.shape[axis] == len(part)
                return (mine,)

        class RainFusionGather(OpRun):
            op_domain = DOMAIN

            def _run(self, tokens: Any, grid: Any, axis: int = 0, **_: Any) -> tuple[Any]:
                whole = np.concatenate(gpus.all(tokens), axis=axis)
                assert whole.shape[axis] == np.prod(grid.shape)
                return (whole,)

        class RainFusionAttention(OpRun):
            op_domain = DOMAIN

            def _run(
                self,
                query: Any,
                key: Any,
                value: Any,
                grid: Any,
                sparsity: Any,
                kv_len: Any = None,
                text: str = "none",
                scale: float = 0.0,
                parallel: int = 0,
                **_: Any,
            ) -> tuple[Any]:
                assert parallel == 1
                video = int(np.prod(grid.shape))
                parts = np.array_split(np.arange(video), gpus.parts)
                mine = len(parts[gpus.rank])
                count = query.shape[2] - mine  # of text
                own = slice(count, None) if text == "first" else slice(0, mine)
                words = slice(0, count) if text == "first" else slice(mine, None)
                whole = []
                for tensor in (query, key, value):
                    tokens = np.concatenate(gpus.all(tensor[:, :, own]), axis=2)
                    pair = [tensor[:, :, words], tokens]
                    whole.append(np.concatenate(pair if text == "first" else pair[::-1], axis=2))
                output = _dense(*whole, kv_len, scale or query.shape[3] ** -0.5)
                at = (count if text == "first" else 0) + parts[gpus.rank]
                end = np.arange(count) + (0 if text == "first" else video)
                rows = [end, at] if text == "first" else [at, end]
                return (output[:, :, np.concatenate(rows)],)

        return [RainFusionSplit, RainFusionGather, RainFusionAttention]


def _dense(q: Any, k: Any, v: Any, kv_len: Any, scale: float) -> Any:
    scores = np.einsum("bnsd,bntd->bnst", q, k) * scale
    if kv_len is not None:
        hidden = np.arange(k.shape[2]) >= kv_len[:, None, None, None]
        scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnst,bntd->bnsd", weights / weights.sum(-1, keepdims=True), v)
