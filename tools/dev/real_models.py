"""Makes fixtures/configs/real.json: the tensors of real models, and the keys and tensors that llama.cpp's converter makes of them.

usage: real_models.py PEERS CONFIGS [CONFIG.JSON...]   (needs `tools/dev/peers full`; CONFIGS is ../shared/data/configs)

Nothing is downloaded: transformers builds each model of a config.json without memory for its weights, and the converter is run on
safetensors files that are holes but for their headers. {config.json's path below CONFIGS: {
    "source": {name: shape}                 as published; `*` stands for every number of layer, `+` for every number of expert;
                                            `*attention` and `*recurrent` for those of layers that are one or the other
    "metadata": {key: value}                the architecture's keys
    "tensors": {name: [dims, fastest first]}}}
"""

import json
import re
import runpy
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[2]
CONFIGS = [
    "aiconfigurator/Qwen--Qwen3-0.6B.config.json",
    "aiconfigurator/Qwen--Qwen3-1.7B.config.json",
    "aiconfigurator/Qwen--Qwen3-8B.config.json",
    "aiconfigurator/Qwen--Qwen3-32B.config.json",
    "aiconfigurator/Qwen--Qwen3-30B-A3B.config.json",
    "aiconfigurator/Qwen--Qwen3-235B-A22B.config.json",
    "aiconfigurator/Qwen--Qwen3-Coder-480B-A35B-Instruct.config.json",
    "aiconfigurator/Qwen--Qwen3-Next-80B-A3B-Thinking.config.json",
    "aiconfigurator/Qwen--Qwen3.5-27B.config.json",
    "aiconfigurator/Qwen--Qwen3.5-35B-A3B.config.json",
    "aiconfigurator/meta-llama--Meta-Llama-3.1-8B.config.json",
    "aiconfigurator/meta-llama--Meta-Llama-3.1-70B.config.json",
    "aiconfigurator/meta-llama--Meta-Llama-3.1-405B.config.json",
    "aiconfigurator/mistralai--Mixtral-8x7B-v0.1.config.json",
    "aiconfigurator/mistralai--Mixtral-8x22B-v0.1.config.json",
    "aiconfigurator/nvidia--Llama-3.1-70B-Instruct-FP8.config.json",
    "aiconfigurator/nvidia--Qwen3-235B-A22B-NVFP4.config.json",
    "aiconfigurator/openai--gpt-oss-20b.config.json",
    "aiconfigurator/openai--gpt-oss-120b.config.json",
    "gemma3-27b-it-medgemma/config.json",
    "gpt2-large/config.json",
    "phi3-mini-128k-ollama/config.json",
    "phi3-mini-4k-merge/config.json",
    "safetensors2GGUF/llama-3.1-8b.config.json",
    "safetensors2GGUF/qwen2.5-vl-7b.config.json",
    "safetensors2GGUF/qwen3-4b.config.json",
    "safetensors2GGUF/qwen3-8b.config.json",
    "qwen3-mlx-quantised/config.json",
    "tinyllama-1.1b-chat/config.json",
]
# Names in transformers' code, and those that models were published with.
PUBLISHED = {
    "Gemma3ForConditionalGeneration": [
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.(?!language_model)", ""),
    ],
    "Qwen2_5_VLForConditionalGeneration": [(r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual.")],
}


def source(folder, class_name, peers):
    """Names and shapes of the tensors that a checkpoint holds, of its first layers: the others are like them."""
    if not hasattr(transformers, class_name):
        # A class that only the newer transformers knows.
        command = [f"{peers}/venv5/bin/python", __file__, "--source", f"{folder}", class_name]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    config = transformers.AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    is_hybrid = "linear_attention" in (getattr(text, "layer_types", None) or [])
    text.num_hidden_layers = 4 if is_hybrid else 2
    if is_hybrid:
        text.layer_types = text.layer_types[:4]
    with torch.device("meta"):
        model = getattr(transformers, class_name)(config)
    tied = set(getattr(model, "_tied_weights_keys", None) or []) if config.get_text_config().tie_word_embeddings else set()
    found = {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        for pattern, new in PUBLISHED.get(class_name, []):
            name = re.sub(pattern, new, name)
        found[name] = list(tensor.shape)
    return dict(sorted(found.items()))


def write_holes(path, tensors):
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def converted(peers, folder, options):
    """What the converter would write, up to the weights."""
    sys.path[:0] = [f"{peers}/llama.cpp", f"{peers}/llama.cpp/gguf-py"]
    from conversion import base, load_all_models

    load_all_models()
    made = {}

    def prepare(self):
        self.prepare_tensors()
        self.set_vocab = lambda: None
        self.prepare_metadata(vocab_only=False)
        made["metadata"] = {key: entry.value for key, entry in self.gguf_writer.kv_data[0].items()}
        made["tensors"] = {
            name: [int(dim) for dim in reversed(tensor.shape)] for name, tensor in self.gguf_writer.tensors[0].items()
        }

    base.ModelBase.write = prepare
    sys.argv = ["convert_hf_to_gguf.py", f"{folder}", "--outtype", "f32", "--outfile", f"{folder}.gguf", *options]
    runpy.run_path(f"{peers}/llama.cpp/convert_hf_to_gguf.py", run_name="__main__")
    architecture = made["metadata"]["general.architecture"]
    kept = {key: value for key, value in made["metadata"].items() if key.startswith(f"{architecture}.")}
    return {"metadata": {"general.architecture": architecture} | kept, "tensors": made["tensors"]}


def folded(tensors, recurrent):
    """One entry for all layers and experts, whose shapes must be the same."""
    found = {}

    def star(match):
        is_hybrid = recurrent and "visual" not in match[1]
        kind = ("recurrent" if recurrent[int(match[2])] else "attention") if is_hybrid else ""
        return f"{match[1]}*{kind}"

    for name, shape in tensors.items():
        name = re.sub(r"(^(?:.*\.)?(?:layers|blk|h|blocks)\.)(\d+)(?=\.)", star, name)
        name = re.sub(r"(\.experts\.)\d+(?=\.)", r"\1+", name)
        assert found.setdefault(name, shape) == shape, name
    return found


def make(peers, configs, path):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        config = json.loads((configs / path).read_text())
        (folder / "config.json").write_text(json.dumps(config))
        tensors = source(folder, config["architectures"][0], peers)
        write_holes(folder / "model.safetensors", tensors)
        # Gemma 3's embedding is cut to the tokens of a tokenizer.json, not to those of a tokenizer.model.
        shutil.copy(ROOT / "fixtures/families/spm/tokenizer.model", folder)
        is_hybrid = any("linear_attn" in name for name in tensors)
        reference = converted(peers, folder, ["--no-mtp"] if is_hybrid else [])
    metadata = reference["metadata"]
    recurrent = metadata.get(f"{metadata['general.architecture']}.attention.recurrent_layers")
    return {"source": folded(tensors, recurrent), "metadata": metadata, "tensors": folded(reference["tensors"], recurrent)}


def text(made):
    lines = []
    for path, parts in made.items():
        inner = []
        for part, entries in parts.items():
            rows = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in entries.items())
            inner.append(f'  "{part}": {{\n{rows}\n  }}')
        lines.append(f' "{path}": {{\n' + ",\n".join(inner) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main():
    if sys.argv[1] == "--source":
        return print(json.dumps(source(Path(sys.argv[2]), sys.argv[3], None)))
    peers, configs, *paths = [Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute(), *sys.argv[3:]]
    out = ROOT / "fixtures/configs/real.json"
    out.parent.mkdir(exist_ok=True)
    made = json.loads(out.read_text()) if paths else {}
    for path in paths or CONFIGS:
        made[path] = make(peers, configs, path)
        out.write_text(text(made))


if __name__ == "__main__":
    main()
