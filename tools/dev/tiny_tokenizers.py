"""Makes fixtures/families/{bpe,bpe-gpt2,spm,merged}: the small tokenizers of the tiny models of tiny_models.py.

usage: tiny_tokenizers.py   (needs transformers and protobuf)

bpe is byte-level BPE with Llama 3's split: 256 bytes, the beginnings of a few words, 4 special tokens. bpe-gpt2 is the same under the name
of GPT-2's class, by which llama.cpp's converter tells Phi-4 from Phi-3. spm is a SentencePiece model with bytes to fall back on, merged
what Gemma 4 has instead: merges of characters, spaces among them, lines as words, and bytes to fall back on.
"""

import json
from pathlib import Path

from transformers.utils import sentencepiece_model_pb2_new as model

OUT = Path(__file__).parents[2] / "fixtures/families"
WORDS = ["the", "and", "of", "in", "to", "that", "was", "with", "for", "model", "number", "weights", "layer"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
N_MERGES, N_PIECES, N_MERGED = 41, 49, 308


def printable():
    """The characters that stand for bytes 0 to 255 in byte-level BPE."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def beginnings(space, n):
    """(left, right) of the merges that grow each word by a character, shortest words' first."""
    found = []
    for word in WORDS:
        for end in range(1, len(word) + 1):
            text = space + word
            pair = (text[:end], text[end])
            if pair not in found:
                found.append(pair)
    assert len(found) >= n, len(found)
    return found[:n]


def bpe(tokenizer_class, last):
    characters = printable()
    merges = beginnings(characters[ord(" ")], N_MERGES)
    vocab = {character: i for i, character in enumerate(sorted(characters.values()))}
    for left, right in merges:
        vocab[left + right] = len(vocab)
    added = [
        dict(id=len(vocab) + i, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for i, text in enumerate([*SPECIAL, last])
    ]
    bos = SPECIAL[0]
    first = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": first + second,
            "special_tokens": {bos: {"id": bos, "ids": [len(vocab)], "tokens": [bos]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }
    config = {
        "tokenizer_class": tokenizer_class,
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[2],
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    return tokenizer, config


def spm():
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    letters = ["\u2581", *sorted({letter for word in WORDS for letter in word})]
    texts = ["".join(pair) for pair in beginnings("\u2581", N_PIECES - len(letters))] + letters
    pieces += [(text, -float(rank), 1) for rank, text in enumerate(texts)]
    proto = model.ModelProto()
    for text, score, kind in pieces:
        proto.pieces.add(piece=text, score=score, type=kind)
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.vocab_size = len(pieces)
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id, proto.trainer_spec.pad_id = 0, 1, 2, -1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
    }
    return proto.SerializeToString(deterministic=True), config


def merged():
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<|tool_call>"]
    letters = ["\u2581", *sorted({letter for word in WORDS for letter in word})]
    tokens = [*special, "\n", "\n\n", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges = [("\n", "\n"), *beginnings("\u2581", N_MERGED - len(tokens))]
    tokens += ["".join(pair) for pair in merges[1:]]
    vocab = {token: i for i, token in enumerate(tokens)}
    added = [
        dict(id=i, content=text, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for i, text in enumerate(special)
    ]
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    first, second = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, bos, second],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "extra_special_tokens": {"sot_token": "<|turn>", "eot_token": "<turn|>", "soc_token": "<|channel>"},
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
    }
    return tokenizer, config


def write(name, files):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        data = content if isinstance(content, bytes) else (json.dumps(content, ensure_ascii=False) + "\n").encode()
        (folder / file).write_bytes(data)


# GPT-2's class adds the token if it is not there.
for name, tokenizer_class, last in [("bpe", "PreTrainedTokenizerFast", "<|user|>"), ("bpe-gpt2", "GPT2Tokenizer", "<|endoftext|>")]:
    tokenizer, config = bpe(tokenizer_class, last)
    write(name, {"tokenizer.json": tokenizer, "tokenizer_config.json": config})
proto, config = spm()
write("spm", {"tokenizer.model": proto, "tokenizer_config.json": config})
tokenizer, config = merged()
write("merged", {"tokenizer.json": tokenizer, "tokenizer_config.json": config})
