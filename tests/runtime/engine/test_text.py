from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.completions import StopText
from runtime.sequence import SettingError
from runtime.tokenizer import ByteTokenizer, DirectoryTokenizer, decode

TOKENIZER = ByteTokenizer()


@given(st.text())
def test_bytes_survive_the_round_trip(text: str) -> None:
    assert decode(TOKENIZER, TOKENIZER.encode(text)) == text


def test_a_character_is_given_out_when_its_last_byte_arrives() -> None:
    stream = TOKENIZER.stream()
    assert [stream.push(byte) for byte in "é€".encode()] == ["", "é", "", "", "€"]


def test_ids_beyond_bytes_show_as_unknown_and_end_a_broken_character() -> None:
    assert decode(TOKENIZER, [0x41, 0xE2, 700, 0x42]) == "A\ufffd\ufffdB"


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_text_cuts_where_a_search_of_the_whole_text_would(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    stop, given_out, position = StopText(tuple(stops)), "", 0
    while position < len(text) and not stop.found:
        size = data.draw(st.integers(1, 5))
        given_out += stop.push(text[position : position + size])
        position += size
    if not stop.found:
        given_out += stop.flush()
    # Pieces decide which of two overlapping stops is seen first, so look at the text that had arrived.
    arrived = text[:position]
    cuts = [at for s in stops if (at := arrived.find(s)) >= 0]
    assert given_out == (arrived[: min(cuts)] if cuts else text)
    assert stop.found == bool(cuts)


def test_a_real_tokenizer_streams_the_text_it_decodes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(["the cat sat on the mat"], trainers.BpeTrainer(initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=bpe).save_pretrained(tmp_path)
    tokenizer = DirectoryTokenizer(tmp_path)
    text = "the cat\n  sat — 日本 on the mat"
    tokens = tokenizer.encode(text)
    assert decode(tokenizer, tokens) == text
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) == text
    assert sum(bool(piece) for piece in pieces) > 5, "text comes as it grows"


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is not a directory"):
        DirectoryTokenizer(tmp_path / "none")
    with pytest.raises(SettingError, match="no tokenizer could be read"):
        DirectoryTokenizer(tmp_path)
