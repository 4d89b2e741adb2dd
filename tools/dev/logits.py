"""Makes fixtures/model/NAME.json and NAME.f32: transformers' float32 logits for a text, and the greedy continuation of a prompt.

usage: logits.py MODEL_DIR... (needs torch and transformers)

NAME.json: the token ids of the text, the positions whose logits are kept, and the greedy continuation of `Once upon a time` as
{"prompt": [ids], "tokens": [ids], "gap": the smallest distance between the two largest logits on the way}. NAME.f32: the kept logits,
[positions, vocabulary], little-endian.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).parents[2] / "fixtures/model"
TEXT = (
    "Once upon a time there was a small machine that could read. Every morning it opened a book, counted the words, and wrote down how "
    "many of them it had foretold. On the first day it foretold 3 of 100; on the tenth, 41. \"Is that good?\" asked the cat. The machine "
    "did not know. So they went to the river, where the old bridge was, and asked the miller's daughter, who had counted sacks of flour "
    "all her life. She said that a number alone is never good or bad: you have to ask what it was measured against."
)
N_GREEDY = 64


def main(folder):
    name = Path(folder).name
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    model = read(folder)
    ids = tokenizer.encode(TEXT).ids[:192]
    positions = [0, len(ids) // 2, len(ids) - 1]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
        greedy = continuation(model, tokenizer.encode("Once upon a time").ids)
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.f32").write_bytes(logits[positions].contiguous().numpy().astype("<f4").tobytes())
    described = {"tokens": ids, "positions": positions, "greedy": greedy}
    (OUT / f"{name}.json").write_text(json.dumps(described, separators=(",", ":")) + "\n")


def read(folder):
    """Not from_pretrained: it leaves a tied model empty whose one matrix is stored as lm_head.weight."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()
    weights = {name: tensor.float() for name, tensor in load_file(f"{folder}/model.safetensors").items()}
    if model.config.tie_word_embeddings:
        one = weights.get("model.embed_tokens.weight", weights.get("lm_head.weight"))
        weights |= {"model.embed_tokens.weight": one, "lm_head.weight": one}
    model.load_state_dict(weights)
    return model


def continuation(model, prompt):
    tokens, gap, cache = list(prompt), float("inf"), None
    for _ in range(N_GREEDY):
        new = tokens if cache is None else tokens[-1:]
        out = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        top = torch.topk(out.logits[0, -1], 2)
        gap = min(gap, (top.values[0] - top.values[1]).item())
        tokens.append(top.indices[0].item())
        if tokens[-1] == model.config.eos_token_id:
            break
    return {"prompt": prompt, "tokens": tokens[len(prompt) :], "gap": round(gap, 6)}


torch.set_num_threads(1)  # the same sums on every machine
for folder in sys.argv[1:]:
    main(folder)
