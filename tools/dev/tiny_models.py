"""Makes fixtures/families/CASE.json: what transformers and llama.cpp's converter make of a tiny model of every class that converts.

usage: tiny_models.py PEERS [CASE...]   (needs `tools/dev/peers full`; PEERS is target/peers)

The models have weights by a formula (`grid` of formula.py, which tests/common/checkpoint.rs computes too), so a fixture holds only

    class, tokenizer, stored     its class, the folder of its tokenizer below fixtures/families, the type of its weights
    gain                         what the gains of norms are around: 1, and 0 where the model adds the 1 itself
    n_tokens                     ids below it are evaluated
    layouts                      every way in which the same model is saved: {one of LAYOUTS below: {
                                     "config": config.json, "source": {name: [shape] or [shape, names of its equal parts]}}}
                                 without "source" where it is that of the layout before
    renames                      what is replaced in a tensor's name before the formula sees it
    logits                       transformers' float32 scores of the first chunk: {position: [per token]}
    nll                          the mean negative log-likelihood of the 63 tokens that have a past in 12 chunks of 64
    metadata, tensors            what convert_hf_to_gguf.py writes with --outtype f32, in its order; long arrays and weights as SHA-256

Everything is done by both versions of transformers, each for what it saved; differences between the two are printed.
"""

import json
import math
import os
import runpy
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from formula import grid, hashes
from tiny_cases import CASES, N_CHUNKS, N_CTX, POSITIONS, canonical, parts_of

ROOT = Path(__file__).parents[2]
OUT = ROOT / "fixtures/families"
# Who saves a layout, and how: under the names that a model was published with, under those of its code, with more in config.json.
LAYOUTS = {
    "transformers 4": ("venv", "as published"),
    "transformers 5": ("venv5", "as published"),
    "packed experts": ("venv5", "as in memory"),
    "with n_ctx": ("venv", "with more"),
    "in MXFP4": ("venv5", "in MXFP4"),
}


def tokens(n_tokens):
    return [int(x) for x in hashes("tokens", N_CHUNKS * N_CTX) % np.uint64(n_tokens)]


def read_header(path):
    """Names, shapes and types of a safetensors file, in its order."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    return header


def bytes_of(name, shape):
    """Codes and scales of MXFP4, so large that SwiGLU's bounds are reached; None for what is stored as floats."""
    hashed = hashes(name, math.prod(shape))
    if name.endswith("_blocks"):
        return (hashed >> np.uint64(56)).astype(np.uint8)
    return (122 + (hashed >> np.uint64(62))).astype(np.uint8) if name.endswith("_scales") else None


def write_weights(path, source, case):
    """What tests/common/checkpoint.rs writes."""
    encoded, offset, blobs = {}, 0, []
    for name, (shape, *parts) in source.items():
        if (blob := bytes_of(name, shape)) is not None:
            encoded[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [offset, offset + len(blob)]}
            offset += len(blob)
            blobs.append(blob.tobytes())
            continue
        parts = parts[0] if parts else [name]
        part_shape = case.part_shape(shape, len(parts))
        values = np.concatenate([grid(canonical(part, case), part_shape, case.gain).reshape(-1) for part in parts])
        blob = {
            "F32": lambda: values.astype("<f4"),
            "F16": lambda: values.astype("<f2"),
            "BF16": lambda: (values.astype("<f4").view("<u4") >> 16).astype("<u2"),
        }[case.stored]().tobytes()
        encoded[name] = {"dtype": case.stored, "shape": list(shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps({"__metadata__": {"format": "pt"}} | encoded).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def save(folder, case, how):
    """config.json and the names and shapes of the tensors, as the transformers of this process saves them."""
    import torch
    import transformers

    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[case.stored]
    model = getattr(transformers, case.class_name)(case.config(transformers)).to(dtype)
    model.save_pretrained(folder, **({"save_original_format": False} if how == "as in memory" else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    header = read_header(folder / "model.safetensors")
    source = {}
    for name in sorted(header):
        parts = parts_of(name, header[name]["shape"]) if case.has_parts else None
        source[name] = [header[name]["shape"], parts] if parts else [header[name]["shape"]]
    if how == "in MXFP4":
        source = in_mxfp4(source)
        config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if case.draft_like is not None:
        source |= draft(source, f"model.layers.{case.draft_like}.", case.sizes["hidden_size"])
    if how == "with more":
        config = json.loads((folder / "config.json").read_text()) | case.more
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_weights(folder / "model.safetensors", source, case)
    return source


def in_mxfp4(source):
    """The tensors with those of experts as gpt-oss was published: upright, codes and scales apart."""
    stored = {}
    for name, (shape, *_) in source.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = [shape]
            continue
        n_experts, n_in, n_out = shape
        stored[f"{name}_blocks"] = [[n_experts, n_out, n_in // 32, 16]]
        stored[f"{name}_scales"] = [[n_experts, n_out, n_in // 32]]
    return dict(sorted(stored.items()))


def dequantized(folder):
    """The same model with experts in BF16, which holds the values of MXFP4, as transformers dequantizes them."""
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    plain = folder.with_name(f"{folder.name}-dequantized")
    shutil.copytree(folder, plain)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_blocks")]:
        scales = tensors.pop(name.replace("_blocks", "_scales"))
        tensors[name.removesuffix("_blocks")] = convert_moe_packed_tensors(tensors.pop(name), scales).contiguous()
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    return plain


def draft(source, layer, width):
    """The tensors of a block that foretells more tokens: a layer, what brings its two inputs together, three norms."""
    own = {"fc": [width, 2 * width]} | dict.fromkeys(["norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"], [width])
    block = {name.replace(layer, "mtp.layers.0."): described for name, described in source.items() if name.startswith(layer)}
    return block | {f"mtp.{name}.weight": [shape] for name, shape in own.items()}


def evaluate(folder, case):
    """Scores by the transformers of this process, in float32 with the plainest attention."""
    import torch
    import transformers

    torch.set_num_threads(1)  # the same sums on every machine
    if "in MXFP4" in case.layouts:
        folder = dequantized(folder)
    model_class = getattr(transformers, case.class_name)
    model, report = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    tied = {"lm_head.weight"} if case.is_tied else set()
    lost = {kind: set(report[kind]) - tied for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(lost.values()), lost
    model.eval()
    ids = tokens(case.n_tokens)
    kept, total = {}, 0.0
    with torch.no_grad():
        for chunk in range(N_CHUNKS):
            part = ids[N_CTX * chunk :][:N_CTX]
            output = model(torch.tensor([part]))
            if hasattr(output, "logits"):
                logits = output.logits[0]
            else:  # a model without a head: its embedding is one
                logits = output.last_hidden_state[0] @ model.get_input_embeddings().weight.T
            likelihood = logits[:-1, : case.n_tokens].double().log_softmax(-1)
            total -= likelihood[torch.arange(N_CTX - 1), torch.tensor(part[1:])].sum().item()
            if chunk == 0:
                kept = {str(at): [float(f"{x:.7g}") for x in logits[at, : case.n_tokens].tolist()] for at in POSITIONS}
    return {"logits": kept, "nll": total / (N_CHUNKS * (N_CTX - 1))}


def convert(peers, folder, path, options):
    """llama.cpp's converter on a folder."""
    sys.argv = ["convert_hf.py", f"{peers}/llama.cpp", f"{folder}", "--outtype", "f32", "--outfile", f"{path}", *options]
    runpy.run_path(str(Path(__file__).parent / "convert_hf.py"), run_name="__main__")


def described(path):
    from gguf import GGUFReader

    from reference import metadata, tensors

    reader = GGUFReader(path)
    keys = metadata(reader)
    for key, value in keys.items():
        if isinstance(value.get("value"), float) and not math.isfinite(value["value"]):
            raise ValueError(f"{key} is {value['value']}")
    return {"metadata": keys, "tensors": tensors(reader)}


def differences(a, b):
    keys = {key for key in a["metadata"].keys() | b["metadata"].keys() if a["metadata"].get(key) != b["metadata"].get(key)}
    names = {name for name in a["tensors"].keys() | b["tensors"].keys() if a["tensors"].get(name) != b["tensors"].get(name)}
    short = {key: (a["metadata"].get(key, {}).get("value"), b["metadata"].get(key, {}).get("value")) for key in sorted(keys)}
    order = list(a["metadata"]) != list(b["metadata"]) and not keys
    return short, sorted(names), order


def largest(a, b):
    pairs = [(x, y) for at in a["logits"] for x, y in zip(a["logits"][at], b["logits"][at], strict=True)]
    return max(abs(x - y) for x, y in pairs), abs(a["nll"] / b["nll"] - 1)


def complaint(task, *arguments):
    """The last line of what an exception says, or what the task returns."""
    try:
        return {"result": task(*arguments)}
    except Exception as error:  # whatever the other program raises is what is to be known
        return {"fault": f"{type(error).__name__}: {str(error).strip()[-300:]}"}


def worker(peers, scratch, task, venv, names):
    """One process of one version does one thing for all cases: starting it takes longer than any of them."""
    found = {}
    for name in names:
        for layout in CASES[name].layouts:
            folder = scratch / layout / name
            saved_by, how = LAYOUTS[layout]
            if task == "save" and saved_by == venv:
                found[f"{name}/{layout}"] = complaint(save, folder, CASES[name], how)
            elif task == "evaluate" and (saved_by == venv or venv == "venv5"):
                found[f"{name}/{layout}"] = complaint(evaluate, folder, CASES[name])
            elif task == "convert":
                found[f"{name}/{layout}"] = complaint(
                    convert, peers, folder, scratch / layout / f"{name}.gguf", CASES[name].options
                )
    (scratch / f"{task}-{venv}.json").write_text(json.dumps(found))


def in_version(peers, scratch, task, venv, names):
    command = [peers / venv / "bin/python", __file__, peers, "--worker", scratch, task, venv, *names]
    environment = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    with open(scratch / f"{task}-{venv}.log", "w") as log:
        if subprocess.run(command, stdout=log, stderr=log, env=environment).returncode:
            sys.exit(Path(log.name).read_text())
    return json.loads((scratch / f"{task}-{venv}.json").read_text())


def report(name, outputs, references):
    """Prints where the two versions, or two layouts, differ."""
    first = next(iter(outputs.values()))
    for (layout, reader), output in outputs.items():
        by_logits, by_nll = largest(first, output)
        if by_logits > 1e-5 or by_nll > 1e-7:
            print(f"{name} ({layout}, {reader}): logits differ by {by_logits:.2g}, nll by {by_nll:.2g}")
    reference = next(iter(references.values()))
    for layout, other in list(references.items())[1:]:
        keys, names, order = differences(reference, other)
        if keys or names or order:
            print(f"{name} ({layout}): converted otherwise: {keys} {names[:4]} {order}")
    print(f"{name}: nll {first['nll']:.6f}, {len(reference['tensors'])} tensors, {', '.join(references)}")


def gather(name, scratch, done):
    """A fixture's content, from what the workers wrote."""
    case = CASES[name]
    layouts, outputs, references, previous = {}, {}, {}, None
    for (task, venv, at), outcome in done.items():
        if "fault" in outcome and at.startswith(f"{name}/"):
            print(f"{name} ({at.partition('/')[2]}): {task} fails in {venv}: {outcome['fault']}")
    for layout in case.layouts:
        at = f"{name}/{layout}"
        saved = done["save", LAYOUTS[layout][0], at]
        if "result" not in saved:
            continue
        layouts[layout] = {"config": json.loads((scratch / layout / name / "config.json").read_text())}
        if saved["result"] != previous:
            layouts[layout]["source"] = previous = saved["result"]
        evaluated = {(layout, venv): done.get(("evaluate", venv, at), {}).get("result") for venv in ("venv", "venv5")}
        outputs |= {key: output for key, output in evaluated.items() if output}
        if "result" in done["convert", "venv", at]:
            references[layout] = described(scratch / layout / f"{name}.gguf")
    report(name, outputs, references)
    return {
        "class": case.class_name,
        "tokenizer": case.tokenizer,
        "stored": case.stored,
        "gain": case.gain,
        "n_tokens": case.n_tokens,
        "renames": case.renames,
        "layouts": layouts,
        **next(iter(outputs.values())),
        **next(iter(references.values())),
    }


def text(value):
    """JSON with a tensor, a key or a list of scores on each line."""

    def item(value, indent, depth):
        if not depth or not isinstance(value, dict) or not value:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        inner = ",\n".join(f"{indent} {json.dumps(key)}: {item(x, indent + ' ', depth - 1)}" for key, x in value.items())
        return f"{{\n{inner}\n{indent}}}"

    lines = [f" {json.dumps(key)}: {item(x, ' ', DEPTHS.get(key, 0))}" for key, x in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


# How deep the parts of a fixture are laid out over several lines.
DEPTHS = {"layouts": 3, "logits": 1, "metadata": 1, "tensors": 1}


def main():
    peers, *names = sys.argv[1:]
    peers = Path(peers).absolute()
    if names[:1] == ["--worker"]:
        scratch, task, venv, *names = names[1:]
        return worker(peers, Path(scratch), task, venv, names)
    names = names or list(CASES)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for name in names:
            for layout in CASES[name].layouts:
                (scratch / layout).mkdir(exist_ok=True)
                shutil.copytree(OUT / CASES[name].tokenizer, scratch / layout / name)
        done = {}
        for task, venv in [("save", "venv"), ("save", "venv5"), ("evaluate", "venv"), ("evaluate", "venv5"), ("convert", "venv")]:
            done |= {(task, venv, at): outcome for at, outcome in in_version(peers, scratch, task, venv, names).items()}
        for name in names:
            (OUT / f"{name}.json").write_text(text(gather(name, scratch, done)))


if __name__ == "__main__":
    main()
