"""Documents are cut into pieces that hold all of them, and no more than asked."""

import pytest
from datasets import Dataset

from hf_sllm.data import cut_documents, spread
from hf_sllm.data.pieces import pieces

TEXTS = ["One.\n\nTwo two.\n\n\nThree.", "a" * 50, "word " * 20, "line one\nline two\n" * 3, "\n\n \n", "ä🙂" * 9, "x"]


@pytest.mark.parametrize("max_bytes", [4, 9, 25, 1000])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_and_each_fits(text, max_bytes):
    found = pieces(text, max_bytes)
    assert "".join(found) == text
    assert all(0 < len(piece.encode()) <= max_bytes for piece in found)


def test_a_text_is_cut_where_its_largest_units_end():
    assert pieces(TEXTS[0], 12) == ["One.\n\n", "Two two.\n\n\n", "Three."]
    assert pieces("word " * 4, 12) == ["word word ", "word word "]
    assert pieces("line one\nline two\n", 12) == ["line one\n", "line two\n"]


def test_documents_become_their_pieces_and_a_sample_is_spread_over_all():
    documents = Dataset.from_dict({"text": ["one two", "three"], "bits": [1.0, 2.0]})
    cut = cut_documents(documents, 5)
    assert cut["text"][:] == ["one ", "two", "three"] and cut.column_names == ["text"]
    assert spread(Dataset.from_dict({"text": list("abcdefg")}), 3)["text"][:] == ["a", "c", "e"]
    assert spread(documents, None) is documents
    with pytest.raises(ValueError, match="`max_bytes` is 3"):
        cut_documents(documents, 3)
