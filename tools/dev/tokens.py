"""Makes fixtures/tokenizer/*.tsv: what llama.cpp and Hugging Face make of texts.

usage: tokens.py PEERS SHARED (needs `tools/dev/peers full`; PEERS is target/peers, SHARED the data beside the project)

words.tsv         per pre-tokenizer of llama.cpp: SHA-256 of where it cuts 500 painted texts into words
llama.tsv         per vocabulary and text: number and SHA-256 of the ids that llama-tokenize prints
huggingface.tsv   per tokenizer and text: the same of Hugging Face's tokenizers library, or SentencePiece where only its model is there

Painted texts come from a formula over fixtures/tokenizer/pools.json, which tests/tokenize.rs knows too.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures" / "tokenizer"
MASK = (1 << 64) - 1
N_PAINTED = 500
TEXTS = ["wikitext-2-raw/wiki.test.raw", "tinystories_eval.txt", "tinyshakespeare.txt"]
SCRIPTS = ["Arabic", "Chinese", "Emoji", "Hebrew", "Hindi", "Japanese", "Korean", "Russian"]


def numbers(seed):
    """SplitMix64."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def painted(seed, pools, specials):
    """One text; with a special token at its end now and then where asked for."""
    random = numbers(seed)
    n, chosen = 1 + next(random) % 80, next(random)
    active = [pool for i, pool in enumerate(pools["pools"]) if chosen >> i & 1] or pools["pools"]
    text = ""
    for _ in range(n):
        r = next(random)
        pool = active[(r >> 8) % len(active)]
        char = pool[(r >> 24) % len(pool)]
        kind = r % 16
        if kind == 0:
            text += pools["snippets"][(r >> 8) % len(pools["snippets"])]
        elif kind == 1 and not 0xD800 <= (r >> 8) % 0x110000 < 0xE000:
            text += chr((r >> 8) % 0x110000)
        elif kind == 2:
            text += char * (2 + (r >> 40) % 30)
        else:
            text += char
    r = next(random)
    if specials and r % 3 == 0:
        text += pools["specials"][(r >> 8) % len(pools["specials"])]
    return text


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def ids_line(ids):
    return f"{len(ids)}\t{sha256(' '.join(map(str, ids)))}"


def expressions(source):
    """llama.cpp's own expressions, by the name of the pre-tokenizer."""
    code = source.read_text()
    unescaped = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
    table, labels, found = {}, [], []
    begin = code.index("switch (vocab.get_pre_type())")
    for line in map(str.strip, code[begin : code.index("std::vector<std::string> regex_exprs;", begin)].splitlines()):
        if label := re.match(r"case LLAMA_VOCAB_PRE_TYPE_(\w+):|(default):", line):
            labels.append(label[1] or label[2])
        elif string := re.match(r'"((?:[^"\\]|\\.)*)"', line):
            found.append(re.sub(r"\\(.)", lambda m: unescaped[m[1]], string[1]))
        elif line == "break;":
            table |= dict.fromkeys(labels, found)
            labels, found = [], []
    names, pending = {}, []
    begin = code.index("only BPE models have pre-tokenizers")
    for line in code[begin : code.index("unknown pre-tokenizer type", begin)].splitlines():
        pending += re.findall(r'tokenizer_pre == "([^"]+)"', line)
        if kind := re.search(r"pre_type = LLAMA_VOCAB_PRE_TYPE_(\w+);", line):
            names |= {name: table.get(kind[1], table["default"]) for name in pending}
            pending = []
    return names


def words(peers, pools):
    texts = [painted(seed, pools, specials=False) for seed in range(N_PAINTED)]
    source = peers / "llama.cpp" / "src"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "words"
        files = [ROOT / "tools/dev/words.cpp", source / "unicode.cpp", source / "unicode-data.cpp"]
        subprocess.run(["g++", "-O2", "-std=c++17", f"-I{source}", *files, "-o", program], check=True)
        for name, patterns in sorted(expressions(source / "llama-vocab.cpp").items()):
            parts = [str(len(patterns)), *patterns, str(len(texts)), *texts]
            encoded = b"".join(b"%d\n%s" % (len(part.encode()), part.encode()) for part in parts)
            ends = subprocess.run([program], input=encoded, stdout=subprocess.PIPE, check=True).stdout.decode()
            yield f"{name}\t{sha256(ends)}"


def llama(peers, shared, pools):
    def run(model, text, *flags):
        command = [peers / "build/bin/llama-tokenize", "-m", model, "-f", text, "--no-escape", "--ids", "--log-disable", *flags]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout)

    with tempfile.NamedTemporaryFile("w", newline="") as file:
        file.write("".join(painted(seed, pools, specials=True) for seed in range(N_PAINTED)).replace("\0", ""))
        file.flush()
        for model in sorted((shared / "vocab").glob("*.gguf")):
            for text in [*TEXTS, *(f"multilingual-lipsum/{script}-Lipsum.txt" for script in SCRIPTS)]:
                yield f"{model.stem}\t{text}\tparse\t{ids_line(run(model, shared / 'text' / text))}"
            yield f"{model.stem}\tpainted\tparse\t{ids_line(run(model, file.name))}"
            yield f"{model.stem}\tpainted\tliteral\t{ids_line(run(model, file.name, '--no-parse-special', '--no-bos'))}"


def huggingface(shared):
    def from_json(path):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    def from_folder(path):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True).backend_tokenizer
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    def from_model(path):
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_file=str(path)).encode

    sources = {
        "tokenizers/falcon": ("tokenizer.json", from_json),
        "tokenizers/gpt2": ("tokenizer.json", from_json),
        "tokenizers/llama2": ("tokenizer.model", from_model),
        "tokenizers/phi-3-mini": ("tokenizer.json", from_json),
        "tokenizers/qwen3": (".", from_folder),
        "tokenizers/smollm": ("tokenizer.json", from_json),
        "models/forge-3m": ("tokenizer.json", from_json),
        "models/forge-23m": ("tokenizer.json", from_json),
        "models/stories260K": ("tokenizer.json", from_json),
        "models/tinystories-656K": ("tokenizer.json", from_json),
    }
    for folder, (file, load) in sources.items():
        encode = load(shared / folder / file)
        for text in [*TEXTS, *(f"multilingual-lipsum/{script}-Lipsum.txt" for script in SCRIPTS)]:
            ids = encode((shared / "text" / text).read_bytes().decode())
            yield f"{folder}\t{text}\t{ids_line(ids)}"


def write(name, lines):
    (FIXTURES / name).write_text("".join(f"{line}\n" for line in lines))


def main():
    peers, shared = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    pools = json.loads((FIXTURES / "pools.json").read_text())
    write("words.tsv", words(peers, pools))
    write("llama.tsv", llama(peers, shared, pools))
    write("huggingface.tsv", huggingface(shared))


if __name__ == "__main__":
    main()
