"""Prints the figures of `ggforge error` as JSON, computed with numpy and the dequantizers of PyPI's gguf.

    figures.py BASE.gguf QUANT.gguf IMATRIX.gguf

Per tensor: relative_mse, cosine, alpha, max_error, the same three weighted by the importance of the columns, and the worst row.
"""
import json
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


def weights(path):
    def rows(tensor):
        w = dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        return w.reshape(-1, int(tensor.shape[0]))
    return {tensor.name: rows(tensor) for tensor in GGUFReader(path).tensors}


def importances(path):
    tensors = {tensor.name: np.array(tensor.data, dtype=np.float32).ravel() for tensor in GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    return {name: (tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"]).astype(np.float64) for name in names}


def figures(w, q, c):
    ww, qq, wq, ee = (np.sum(c * x) for x in (w * w, q * q, w * q, (w - q) ** 2))
    if ee == 0:
        return {"relative_mse": 0.0, "cosine": 1.0, "alpha": 1.0}
    return {"relative_mse": ee / ww, "cosine": wq / np.sqrt(ww * qq), "alpha": ww / wq}


def tensor(w, q, c):
    found = figures(w, q, np.ones(w.shape[1]))
    found["max_error"] = np.max(np.abs(w - q))
    found["weighted"] = None if c is None else figures(w, q, c)
    by_row = np.sum((w - q) ** 2, axis=1) / np.maximum(np.sum(w * w, axis=1), 1e-300)
    found["worst_row"] = int(np.argmax(by_row))
    found["worst_row_relative_mse"] = by_row[found["worst_row"]]
    return found


base, quant, importance = weights(sys.argv[1]), weights(sys.argv[2]), importances(sys.argv[3])
print(json.dumps({name: tensor(w, quant[name], importance.get(name)) for name, w in base.items()}))
