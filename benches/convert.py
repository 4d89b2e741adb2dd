"""Times `ggforge convert` beside convert_hf_to_gguf.py + llama-quantize on one model folder, in turn, on the same machine.

usage: convert.py PEERS MODEL_DIR [--type Q4_K_M] [--rounds 3] [--threads N] (needs `tools/dev/peers full` and `cargo build --release`)

Prints a Markdown table for benches/record/: wall and CPU seconds (median of the rounds), peak anonymous memory, and what the disk
needs to write and sync a file of the same size.
"""

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def anonymous_kib(pid):
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def measure(command):
    """Runs a command; returns wall seconds, CPU seconds and peak anonymous KiB."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = [0]

    def sample():
        while process.poll() is None:
            peak[0] = max(peak[0], anonymous_kib(process.pid))
            time.sleep(0.01)

    sampler = threading.Thread(target=sample)
    sampler.start()
    _, errors = process.communicate()
    sampler.join()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(f"{command}: exit {process.returncode}\n{errors.decode()}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak[0]


def disk_seconds(path, size_bytes):
    chunk = os.urandom(1 << 24)
    start = time.perf_counter()
    with open(path, "wb") as file:
        for _ in range(size_bytes // len(chunk)):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("peers", type=Path)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--type", default="Q4_K_M")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--scratch", type=Path, default=ROOT / "target/bench")
    options = arguments.parse_args()
    scratch = options.scratch
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    ours, middle, theirs = scratch / "ggforge.gguf", scratch / "bf16.gguf", scratch / "llama.gguf"

    convert = [sys.executable, ROOT / "tools/dev/convert_hf.py", options.peers / "llama.cpp", options.model]
    convert += ["--outtype", "bf16", "--outfile", middle]
    quantize = [options.peers / "build/bin/llama-quantize", middle, theirs, options.type, str(options.threads)]
    three = ["--type", "Q8_0", "--type", "Q4_K_M", "--type", "Q6_K", "--output", scratch / "{type}.gguf"]
    ggforge = [ROOT / "target/release/ggforge", "--threads", str(options.threads), "convert", options.model]
    commands = {
        f"ggforge convert --type {options.type}": ggforge + ["--type", options.type, "--output", ours, "--force"],
        "ggforge convert --type Q8_0 --type Q4_K_M --type Q6_K": ggforge + three + ["--force"],
        "convert_hf_to_gguf.py --outtype bf16": convert,
        f"llama-quantize {options.type}": quantize,
    }
    figures = {name: [] for name in commands}
    disk = []
    for _ in range(options.rounds):
        for name, command in commands.items():
            figures[name].append(measure(command))
        disk.append(disk_seconds(scratch / "disk", ours.stat().st_size))

    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    print(f"{cpu}, {os.cpu_count()} cores, {options.threads} threads, {platform.system()} {platform.release()}; ", end="")
    print(f"median of {options.rounds} rounds, run in turn\n")
    print("| command | wall s | CPU s | anonymous MiB |\n|---|---|---|---|")
    medians = {}
    for name, runs in figures.items():
        medians[name] = wall, used, memory = [statistics.median(column) for column in zip(*runs)]
        print(f"| `{name}` | {wall:.2f} | {used:.1f} | {memory / 1024:.0f} |")
    print(f"| write + fsync of {ours.stat().st_size} bytes | {statistics.median(disk):.2f} | | |")
    names = list(commands)
    two_step = medians[names[2]][0] + medians[names[3]][0]
    print(f"\ntwo steps / one step: {two_step / medians[names[0]][0]:.1f}x wall time")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
