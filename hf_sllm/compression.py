"""Files and lists of texts, compressed by a language model without loss; see docs/text-codec.md."""

import gzip
import hashlib
import json
import lzma
import math
import shutil
import subprocess
import time
import zlib
from collections import Counter
from typing import TYPE_CHECKING

from .modeling.modeling_text_codec import TextCodecModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAGIC = b"SLTC1"
PART = 4000  # characters; parts are coded apart, side by side


def compress(data: bytes, model: TextCodecModel, tokenizer: "PreTrainedTokenizerBase", batch_size: int = 16) -> bytes:
    """A file's bytes, compressed: text or not, they come back exactly.

    Args:
        data: The file.
        model: The codec; the same one reads the result.
        tokenizer: Its tokenizer.
        batch_size: How many windows are read at once; another one reads the result as well.
    """
    text = data.decode("utf-8", "surrogateescape")
    parts = [text[begin : begin + PART] for begin in range(0, len(text), PART)]
    return pack(parts, model, tokenizer, zlib.crc32(data), batch_size)


def pack(
    texts: list[str], model: TextCodecModel, tokenizer: "PreTrainedTokenizerBase", checksum: int, batch_size: int = 16
) -> bytes:
    """Texts as one string of bytes: a head, which model wrote it, a checksum, and each text after its length."""
    points = model.encode(texts, tokenizer, 1, batch_size)
    body = b"".join(varint(len(digits)) + digits for (digits,) in points)
    return MAGIC + fingerprint(model) + checksum.to_bytes(4, "big") + body


def decompress(
    packed: bytes, model: TextCodecModel, tokenizer: "PreTrainedTokenizerBase", batch_size: int = 64
) -> bytes:
    """The bytes that `compress` was given.

    Raises:
        ValueError: If `packed` is nothing of its kind, is damaged, or was written by another model.
    """
    texts, checksum = unpack(packed, model, tokenizer, batch_size)
    data = "".join(texts).encode("utf-8", "surrogateescape")
    if zlib.crc32(data) != checksum:
        raise ValueError("`packed` does not have the checksum of what was compressed: it is damaged. Copy it again.")
    return data


def unpack(
    packed: bytes, model: TextCodecModel, tokenizer: "PreTrainedTokenizerBase", batch_size: int = 64
) -> tuple[list[str], int]:
    """The texts and the checksum that `pack` was given."""
    if not packed.startswith(MAGIC) or len(packed) < 13:
        raise ValueError("`packed` does not begin as what `hf-sllm compress` writes: give it such a file.")
    if packed[5:9] != fingerprint(model):
        raise ValueError("`packed` was written by another model: decompress it with the one that compressed it.")
    points: list[tuple[bytes, ...]] = []
    place = 13
    while place < len(packed):
        length, place = read_varint(packed, place)
        points.append((packed[place : place + length],))
        place += length
    return model.decode(points, tokenizer, batch_size=batch_size), int.from_bytes(packed[9:13], "big")


def fingerprint(model: TextCodecModel) -> bytes:
    """Four bytes that tell a codec's weights and settings from another's."""
    config = model.config
    settings = [config.temperature, config.context_length, config.logit_step, config.start_token_id]
    digest = hashlib.sha256(repr([*settings, config.end_token_id]).encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode() + weights.double().cpu().contiguous().numpy().tobytes())
    return digest.digest()[:4]


def varint(value: int) -> bytes:
    """A number in bytes of seven bits, the last ones first."""
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def read_varint(packed: bytes, place: int) -> tuple[int, int]:
    """A number that `varint` wrote, and the place after it."""
    value = shift = 0
    while place < len(packed):
        byte = packed[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            break
    return value, place


def compare(
    texts: list[str], model: TextCodecModel, tokenizer: "PreTrainedTokenizerBase", batch_size: int = 16
) -> dict:
    """How many bytes texts take, by the codec and by what is usual, and whether they come back.

    gzip, xz and zstd compress all texts as one file, a zero byte between; the codec each text alone. `unigram` is the
    entropy of the texts' own token counts: what a codec without context could reach at best.
    """
    whole = "\0".join(texts).encode()
    start = time.perf_counter()
    packed = pack(texts, model, tokenizer, zlib.crc32(whole), batch_size)
    encoded = time.perf_counter()
    comes_back = unpack(packed, model, tokenizer)[0] == texts
    seconds = {"encode": encoded - start, "decode": time.perf_counter() - encoded}
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    counts = Counter(token for row in ids for token in [*row, -1])
    total = sum(counts.values())
    codec = len(packed)
    xz = len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME))
    sizes = {
        "text": len(whole),
        "unigram": math.ceil(-sum(count * math.log2(count / total) for count in counts.values()) / 8),
        "gzip": len(gzip.compress(whole, 9)),
        "xz": xz,
        "zstd": zstd_size(whole),
        "codec": codec,
    }
    kilobytes = len(whole) / 1000
    return {
        "bytes": sizes,
        "xz_over_codec": xz / codec,
        "comes_back": comes_back,
        "seconds_per_kilobyte": {name: value / kilobytes for name, value in seconds.items()},
    }


def zstd_size(data: bytes) -> int | None:
    """What the program `zstd` makes of it; none where it is not installed."""
    program = shutil.which("zstd")
    if program is None:
        return None
    return len(subprocess.run([program, "--ultra", "-22", "-c"], input=data, capture_output=True, check=True).stdout)


def point_to_json(point: tuple[bytes, ...]) -> str:
    """A point as a line: the digits of each coordinate in hexadecimal."""
    return json.dumps([digits.hex() for digits in point])


def point_from_json(line: str) -> tuple[bytes, ...]:
    """What `point_to_json` wrote.

    Raises:
        ValueError: If it is something else.
    """
    found = json.loads(line)
    if not isinstance(found, list) or not found or not all(isinstance(digits, str) for digits in found):
        raise ValueError(f"the point is {line[:60]!r}: it must be a list of digits in hexadecimal.")
    return tuple(bytes.fromhex(digits) for digits in found)
