"""Tokenizers as CogVideoX, LTX-Video and Allegro have them: a `spiece.model` and no JSON."""

from __future__ import annotations

import json

import pytest

from rainfusion_trt.console import explain


def load(folder):
    from transformers import T5Tokenizer

    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return T5Tokenizer.from_pretrained(str(folder))


def test_it_is_read_with_what_the_extra_brings(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red fox in the snow"] * 9),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=24,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    tokens = load(tmp_path)("a fox").input_ids
    assert tokens[-1] == 1 and 2 not in tokens


def test_one_that_cannot_be_read_is_one_line(tmp_path):
    """Transformers then asks for tiktoken, which is not what is missing."""
    (tmp_path / "spiece.model").write_bytes(b"no tokenizer")
    with pytest.raises(ValueError, match="tiktoken") as caught:
        load(tmp_path)
    line = explain(caught.value)
    assert line is not None and line.startswith("a tokenizer cannot be read")
    assert "pip install sentencepiece protobuf" in line
