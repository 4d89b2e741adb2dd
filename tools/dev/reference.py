"""Makes fixtures/reference/MODEL.json: what llama.cpp's converter and quantizer write for a model, and MODEL-imatrix.json: what its
quantizer writes with the importance matrices of fixtures/imatrix, where there are any.

usage: reference.py PEERS MODEL_DIR... (needs `tools/dev/peers full`; PEERS is target/peers)

Per model: the metadata of the F32 conversion (long arrays as a hash over the bytes in the file), and for each file type every
tensor's type, dimensions (fastest first) and SHA-256. F32, F16, BF16 and Q8_0 come from convert_hf_to_gguf.py, the others from
llama-quantize applied to its F32 file.

A tied model that stores its one matrix as `lm_head.weight` only is given to the converter with that tensor renamed to
`model.embed_tokens.weight`: from the original it makes a file without `token_embd.weight`, which llama.cpp does not load.
"""

import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf import GGUFReader, GGUFValueType

CONVERTED = ["F32", "F16", "BF16", "Q8_0"]
QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"]
# With an importance matrix: one file type for each format, and the mixtures that differ most.
WEIGHTED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q2_K_S", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ1_S", "IQ1_M"]
WEIGHTED += ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0"]
ARRAY_ITEMS_KEPT = 16


def array(field):
    items = [bytes(field.parts[i]) for i in field.data]
    if field.types[-1] == GGUFValueType.STRING:
        content = b"".join(struct.pack("<Q", len(item)) + item for item in items)
        values = [item.decode() for item in items] if len(items) <= ARRAY_ITEMS_KEPT else None
    else:
        content = b"".join(items)
        values = [field.parts[i][0].item() for i in field.data] if len(items) <= ARRAY_ITEMS_KEPT else None
    described = {"type": f"[{field.types[-1].name}]", "count": len(items), "sha256": hashlib.sha256(content).hexdigest()}
    return described | ({"value": values} if values is not None else {})


def metadata(reader):
    described = {}
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        if field.types[0] == GGUFValueType.ARRAY:
            described[key] = array(field)
        elif field.types[0] == GGUFValueType.STRING:
            described[key] = {"type": "STRING", "value": bytes(field.parts[field.data[0]]).decode()}
        else:
            described[key] = {"type": field.types[0].name, "value": field.parts[field.data[0]][0].item()}
    return described


def tensors(reader):
    return {
        tensor.name: [
            tensor.tensor_type.name,
            [int(dim) for dim in tensor.shape],
            hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        ]
        for tensor in reader.tensors
    }


def with_token_embedding(model, scratch):
    content = (model / "model.safetensors").read_bytes()
    header_bytes = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + header_bytes])
    if "model.embed_tokens.weight" in header:
        return model
    copy = scratch / model.name
    shutil.copytree(model, copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    renamed = {{"lm_head.weight": "model.embed_tokens.weight"}.get(name, name): tensor for name, tensor in header.items()}
    encoded = json.dumps(renamed).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + header_bytes :])
    return copy


def weighted(peers, f32, matrix, scratch):
    """What llama-quantize makes of the F32 file with one importance matrix."""
    made = {}
    # The older format only rounds differently, so one file type shows it.
    for file_type in WEIGHTED if matrix.suffix == ".gguf" else ["Q4_K_M"]:
        path = scratch / "weighted.gguf"
        quantize = [peers / "build/bin/llama-quantize", "--imatrix", matrix.name, f32, path, file_type]
        subprocess.run(quantize, check=True, capture_output=True, cwd=matrix.parent)
        reader = GGUFReader(path)
        made["metadata"] = {key: value for key, value in metadata(reader).items() if key.startswith("quantize.imatrix.")}
        made.setdefault("file_types", {})[file_type] = tensors(reader)
    return made


def reference(peers, model):
    with tempfile.TemporaryDirectory() as scratch:

        model = with_token_embedding(model, Path(scratch))

        def path(file_type):
            return Path(scratch) / f"{file_type}.gguf"

        for file_type in CONVERTED:
            subprocess.run(
                [sys.executable, Path(__file__).parent / "convert_hf.py", peers / "llama.cpp", model]
                + ["--outtype", file_type.lower(), "--outfile", path(file_type)],
                check=True,
                capture_output=True,
            )
        for file_type in QUANTIZED:
            quantize = [peers / "build/bin/llama-quantize", path("F32"), path(file_type), file_type]
            subprocess.run(quantize, check=True, capture_output=True)
        readers = {file_type: GGUFReader(path(file_type)) for file_type in CONVERTED + QUANTIZED}
        matrices = [Path(__file__).parents[2] / f"fixtures/imatrix/{model.name}{ending}" for ending in [".gguf", ".dat"]]
        with_matrix = {m.name: weighted(peers, path("F32"), m, Path(scratch)) for m in matrices if m.exists()}
        return with_matrix, {
            "metadata": metadata(readers["F32"]),
            "quantized_metadata": metadata(readers["Q4_K_M"]),
            "file_types": {file_type: tensors(reader) for file_type, reader in readers.items()},
        }


def main():
    peers = Path(sys.argv[1])
    folder = Path(__file__).parents[2] / "fixtures/reference"
    folder.mkdir(exist_ok=True)
    for model in map(Path, sys.argv[2:]):
        with_matrix, plain = reference(peers, model)
        for name, made in [(model.name, plain), (f"{model.name}-imatrix", with_matrix)]:
            if made:
                text = json.dumps(made, indent=1, ensure_ascii=False)
                (folder / f"{name}.json").write_text(fold_lists(text) + "\n")
                print(folder / f"{name}.json")


def fold_lists(text):
    """Puts each innermost list on one line, so that a tensor is a line."""
    for _ in range(2):
        text = re.sub(r"\[\n *([^][{}]*?)\n *\]", lambda m: "[" + re.sub(r"\n *", " ", m[1]) + "]", text)
        text = re.sub(r"\[\n *((?:[^][{}]|\[[^][\n]*\])*?)\n *\]", lambda m: "[" + re.sub(r"\n *", " ", m[1]) + "]", text)
    return text


if __name__ == "__main__":
    main()
