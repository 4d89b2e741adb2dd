"""Reads a GGUF file with PyPI's gguf and prints what it sees as JSON."""

import json
import sys

import gguf

reader = gguf.GGUFReader(sys.argv[1])
json.dump(
    {
        "fields": [
            [name, [kind.name for kind in field.types], field.contents()]
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        ],
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.tensor_type.name,
                "dims": [int(dim) for dim in tensor.shape],
                "offset": int(tensor.data_offset),
                "bytes": tensor.data.tobytes().hex(),
            }
            for tensor in reader.tensors
        ],
        "types": {kind.name: list(gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType},
    },
    sys.stdout,
)
