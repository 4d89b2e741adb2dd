"""Writes a GGUF file with PyPI's gguf: a value of every kind, tensors of one to four dimensions."""

import sys

import gguf
import numpy as np

writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_custom_alignment(64)
writer.add_uint8("t.u8", 255)
writer.add_int8("t.i8", -128)
writer.add_uint16("t.u16", 65535)
writer.add_int16("t.i16", -32768)
writer.add_uint32("t.u32", 2**32 - 1)
writer.add_int32("t.i32", -(2**31))
writer.add_float32("t.f32", 1e-5)
writer.add_bool("t.bool", True)
writer.add_uint64("t.u64", 2**64 - 1)
writer.add_int64("t.i64", -(2**63))
writer.add_float64("t.f64", -0.1)
writer.add_string("t.string", "\u00e4\u65e5")
writer.add_array("t.strings", ["", "a", "\U0001f980"])
writer.add_array("t.ints", [-1, 0, 1])
writer.add_array("t.floats", [0.5, -1e30])
writer.add_array("t.bools", [True, False])
for rank in range(1, 5):
    shape = list(range(5 - rank, 5))
    writer.add_tensor(f"f32.{rank}", np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    writer.add_tensor(f"f16.{rank}", np.arange(np.prod(shape), dtype=np.float16).reshape(shape))
q8_0 = np.arange(3 * 2 * 34, dtype=np.uint8).reshape(3, 2 * 34)
writer.add_tensor("q8_0", q8_0, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
