"""The text codec: exact on any text, batch and number of threads; uniform points are samples."""

import json
import random

import numpy as np
import pytest
import torch
from models import tiny_backbone
from transformers import AutoModel, AutoTokenizer

from hf_sllm.compression import compress, decompress
from hf_sllm.modeling import codec_windows
from hf_sllm.modeling.codec_ranges import RangeDecoder, RangeEncoder
from hf_sllm.modeling.modeling_text_codec import TextCodecModel, fraction_of, interpolate

SCRIPTS = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x600), (0x900, 0xA00), (0x3040, 0x3100), (0x4E00, 0x9FFF)]
SCRIPTS += [(0x1F300, 0x1F700), (0, 0x20), (0xAC00, 0xD7A0), (0x10000, 0x10400)]
ODD = ["", " ", "a", "<s>x</s><unk>", "\r\n\t\x00", "\ufffd", "\udcff\x80", "e\u0301", "Once upon a time. " * 60]


def texts_of(count: int, longest: int, seed: int = 0) -> list[str]:
    """Texts of random letters, each of one script."""
    draw = random.Random(seed)
    return ["".join(chr(draw.randrange(*script)) for _ in range(draw.randrange(longest))) for script in
            (draw.choice(SCRIPTS) for _ in range(count))]  # fmt: skip


@pytest.fixture(scope="module")
def pair(shared):
    """The codec of a small real model, with a short context so that texts have several windows."""
    folder = shared / "models" / "stories260K"
    codec = TextCodecModel.from_language_model(str(folder), context_length=32, dimensions=3)
    return codec, AutoTokenizer.from_pretrained(folder)


def bigram(seed: int = 0) -> TextCodecModel:
    """A codec whose language model sees one token: it reads two, the start token and the one before."""
    backbone = tiny_backbone("llama", seed, vocab_size=6, num_hidden_layers=1)
    return TextCodecModel.from_language_model(backbone, context_length=4)


class Letters:
    """A tokenizer of letters: token i is the letter i places after `a`."""

    def __call__(self, texts, **kwargs):
        return {"input_ids": [[ord(letter) - 97 for letter in text] for text in texts]}

    def decode(self, ids, **kwargs):
        return "".join(chr(97 + token) for token in ids)


def test_ranges_hold_any_choices():
    draw = random.Random(0)
    choices = []
    for _ in range(2000):
        total = draw.choice([2, 3, 257, 2**20 + 1, 2**49])
        start = draw.randrange(total)
        choices.append((start, draw.choice([1, total - start]), total))
    encoder = RangeEncoder()
    for choice in choices:
        encoder.narrow(*choice)
    digits, (low, width) = encoder.finish(), encoder.interval()
    assert low <= fraction_of(digits) < low + width
    decoder = RangeDecoder(digits)
    for start, size, total in choices:
        assert start <= decoder.place(total) < start + size
        decoder.narrow(start, size, total)


@pytest.mark.parametrize("shortest", [False, True])
def test_texts_come_back_on_other_batches_and_threads(pair, shortest):
    codec, tokenizer = pair
    texts = [*ODD, *texts_of(30, 30)]
    points = codec.encode(texts, tokenizer, batch_size=7, shortest=shortest)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert codec.decode(points, tokenizer, batch_size=5) == texts
    finally:
        torch.set_num_threads(threads)


def test_ties_carry_texts_through_noise_and_nothing_else_does(pair, monkeypatch):
    """Two runs that differ by less than the margin agree; without a margin they do not."""
    codec, tokenizer = pair
    texts, read = texts_of(4, 20, seed=3), codec_windows.TokenReader.next_logits
    generator = torch.Generator().manual_seed(0)

    def noisy(self):
        logits = read(self)
        return logits + 1e-5 * (2 * torch.rand(logits.shape, generator=generator, dtype=logits.dtype) - 1)

    monkeypatch.setattr(codec_windows.TokenReader, "next_logits", noisy)
    found = {}
    for margin in (2e-5, 0.0):
        monkeypatch.setattr(codec.config, "logit_margin", margin)
        found[margin] = codec.decode(codec.encode(texts, tokenizer, shortest=False), tokenizer, 90) == texts
    assert found == {2e-5: True, 0.0: False}


def test_float_points_hold_what_fits(pair):
    """Float64 tells which texts come back; float32 in one dimension loses some, and says which."""
    codec, letters = bigram(), Letters()
    draw = random.Random(1)
    texts = ["".join(draw.choice("abdef") for _ in range(draw.randrange(12))) for _ in range(60)]
    shares = {}
    for dtype, dimensions in ((torch.float64, 4), (torch.float32, 1)):
        points, fits = codec.encode_floats(texts, letters, dimensions, dtype)
        back = [given == found for given, found in zip(texts, codec.decode_floats(points, letters), strict=True)]
        assert all(came for came, fit in zip(back, fits.tolist(), strict=True) if fit)
        shares[dtype] = sum(back) / len(back)
    assert shares[torch.float64] == 1 and shares[torch.float32] < 1


def test_volume_is_code_length():
    codec, letters = bigram(), Letters()
    texts = ["", "ab", "fedab", "aaaa"]
    lengths = codec.code_lengths(texts, letters)
    for row, bits in zip(codec._encoders(texts, letters, 2, 4, False), lengths, strict=True):
        volume = row[0].interval()[1] * row[1].interval()[1]
        assert -np.log2(float(volume)) == pytest.approx(bits, abs=1e-6)


def test_uniform_points_are_samples_and_clipped_gaussians_are_not():
    codec, letters, rows = bigram(), Letters(), 20_000
    generator = torch.Generator().manual_seed(0)
    pairs = [a + b for a in "abdef" for b in "abdef"]  # `c` ends a text
    with torch.no_grad():
        first = codec(torch.tensor([[1]])).logits[0, -1].softmax(-1)
        second = codec(torch.tensor([[1, token] for token in range(6)])).logits[:, -1].softmax(-1)
    expected = np.array([float(first[ord(a) - 97] * second[ord(a) - 97, ord(b) - 97]) for a, b in pairs])
    figures = {}
    draws = {
        "uniform": torch.rand(rows, 4, generator=generator, dtype=torch.float64),
        "clipped": torch.randn(rows, 4, generator=generator, dtype=torch.float64).clamp(0, 1 - 1e-9),
    }
    for name, points in draws.items():
        texts = codec.decode_floats(points, letters, max_length=2, batch_size=2000)
        counts = np.array([texts.count(text) for text in pairs])
        rest = (rows * (1 - expected.sum()) - (rows - counts.sum())) ** 2 / (rows * (1 - expected.sum()))
        figures[name] = ((counts - rows * expected) ** 2 / (rows * expected)).sum() + rest
    assert figures["uniform"] < 52.6 < 103 < figures["clipped"]  # 25 degrees: p = .001, and 1e-11


def test_a_straight_line_goes_from_text_to_text(pair):
    codec, tokenizer = pair
    texts = ["Once upon a time.", "The dog was happy."]
    line = interpolate(*codec.encode(texts, tokenizer), 4)
    written = codec.decode(line, tokenizer, max_length=30)
    assert len(line) == 5 and [written[0], written[-1]] == texts


def test_a_saved_codec_reads_what_was_written(pair, tmp_path):
    codec, tokenizer = pair
    codec.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "text_codec"
    data = b"Once upon a time.\xff\xfe" + "漢字 \r\n".encode()
    packed = compress(data, codec, tokenizer)
    assert decompress(packed, loaded, tokenizer) == data
    with pytest.raises(ValueError, match="another model"):
        loaded.config.temperature = 0.5
        decompress(packed, loaded, tokenizer)
    with pytest.raises(ValueError, match="checksum"):
        decompress(packed[:-1] + bytes([packed[-1] ^ 64]), codec, tokenizer)


@pytest.mark.slow
def test_ten_thousand_texts_of_any_script_come_back(shared):
    folder = shared / "models" / "stories260K"
    codec, tokenizer = TextCodecModel.from_language_model(str(folder)), AutoTokenizer.from_pretrained(folder)
    long = ["Once upon a time, a dog ran. " * 3600, "".join(texts_of(9_000, 20, seed=6))]
    assert min(len(text.encode()) for text in long) > 100_000
    texts = [*ODD, *texts_of(10_000, 20, seed=5), *long]
    points = codec.encode(texts, tokenizer, 1, batch_size=32)
    torch.set_num_threads(2)
    try:
        assert codec.decode(points, tokenizer, batch_size=300) == texts
    finally:
        torch.set_num_threads(1)
