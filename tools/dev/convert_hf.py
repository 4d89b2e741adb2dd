"""Runs llama.cpp's convert_hf_to_gguf.py for models whose tokenizer it does not know by hash.

usage: convert_hf.py PATH/TO/llama.cpp [arguments of convert_hf_to_gguf.py]

The script looks a byte-level BPE vocabulary up by a hash of its output. The models trained for this project are not in its
table; their split pattern is Llama 3's, so the look-up answers `llama-bpe` for whatever it would refuse. Nothing else changes.
"""

import runpy
import sys

folder = sys.argv[1]
sys.path[:0] = [folder, f"{folder}/gguf-py"]
sys.argv = [f"{folder}/convert_hf_to_gguf.py", *sys.argv[2:]]

from conversion import base  # noqa: E402  (the path is set above)

look_up = base.TextModel.get_vocab_base_pre


def look_up_or_llama_bpe(self, tokenizer):
    try:
        return look_up(self, tokenizer)
    except NotImplementedError:
        return "llama-bpe"


base.TextModel.get_vocab_base_pre = look_up_or_llama_bpe
runpy.run_path(sys.argv[0], run_name="__main__")
