"""Checkpoints in, quantized checkpoints out, a few rows of one tensor at a time.

    sources (safetensors_file, gguf_model) -> hf_model (what becomes of each tensor)
    -> layout (where each result lies) -> encode (its bytes) -> work (files and journal)

`bitsanywhere.convert.quantize.quantize` joins these.
"""
