"""Makes fixtures/eval/MODEL.json: what llama-perplexity measures with --kl-divergence on quantized files of a model.

usage: evaluations.py LLAMA_BIN MODEL-F32.gguf TEXT CALIBRATION_TEXT OUT.json CHUNKS

LLAMA_BIN is a folder with llama-perplexity, llama-imatrix and llama-quantize. Every file is quantized from the F32 one, which is also the
base of the divergences; types that need an importance matrix get one of CALIBRATION_TEXT. All options but the length are defaults.

"running" figures are what it prints after each chunk, over all chunks so far; pairs are a figure and its standard error.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ3_XXS", "IQ2_XXS"]
WITH_IMATRIX = {"IQ3_XXS", "IQ2_XXS"}
CALIBRATION_CHUNKS = 64
THREADS = ["-t", "4"]
# The error of an RMS of 0 is not a number.
FLOAT = r"([-+]?\d+\.\d+|-?nan)"


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, encoding="utf-8", errors="replace")
    if result.returncode != 0:
        sys.exit(f"{command}\n{result.stderr[-4000:]}")
    return result.stdout + result.stderr


def divergence(output):
    def one(name):
        return float(re.search(rf"{name}\s*:\s*{FLOAT}", output)[1])

    def two(name):
        return [float(value) for value in re.search(rf"{name}\s*:\s*{FLOAT} ± +{FLOAT}", output).groups()]

    number = rf"\s+{FLOAT} ±\s+{FLOAT}"
    chunks = re.findall(rf"^ *(\d+){number}{number}{number}{number} %{number} %", output, re.M)
    return {
        "ppl": two(r"Mean PPL\(Q\)"),
        "ppl_base": two(r"Mean PPL\(base\)"),
        "ln_ratio": two(r"Mean ln\(PPL\(Q\)/PPL\(base\)\)"),
        "mean": two("Mean    KLD"),
        "median": one("Median  KLD"),
        "p90": one(r"90\.0%   KLD"),
        "p95": one(r"95\.0%   KLD"),
        "p99": one(r"99\.0%   KLD"),
        "p99.9": one(r"99\.9%   KLD"),
        "max": one("Maximum KLD"),
        "mean_dp_percent": two("Mean    Δp"),
        "rms_dp_percent": two("RMS Δp"),
        "same_top_percent": two("Same top p"),
        "running_ppl": [float(chunk[1]) for chunk in chunks],
        "running_mean": [float(chunk[5]) for chunk in chunks],
    }


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def main():
    binaries, base, text, calibration, out = map(Path, sys.argv[1:6])
    chunks = sys.argv[6]
    report = {
        "llama.cpp": re.search(r"version: (.*)", run(binaries / "llama-perplexity", "--version"))[1],
        "arguments": ["-f", text.name, "--chunks", chunks],
        "text_sha256": sha256(text),
        "imatrix": {"for": sorted(WITH_IMATRIX), "arguments": ["-f", calibration.name, "--chunks", str(CALIBRATION_CHUNKS)]},
        "files": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        imatrix, logits = Path(scratch) / "imatrix.gguf", Path(scratch) / "logits"
        run(binaries / "llama-imatrix", "-m", base, "-f", calibration, "--chunks", CALIBRATION_CHUNKS, "-o", imatrix, *THREADS)
        measure = [binaries / "llama-perplexity", "-f", text, "--chunks", chunks, *THREADS, "--kl-divergence-base", logits]
        run(*measure, "-m", base)
        for name in TYPES:
            model = Path(scratch) / f"{name}.gguf"
            run(binaries / "llama-quantize", *(["--imatrix", imatrix] if name in WITH_IMATRIX else []), base, model, name)
            report["files"][name] = divergence(run(*measure, "-m", model, "--kl-divergence"))
            model.unlink()
            print(name, report["files"][name]["ppl"], report["files"][name]["mean"], flush=True)
    # Lists of numbers on one line each.
    text = re.sub(r"\[([^][]*)\]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(report, indent=1))
    out.write_text(text + "\n")


main()
