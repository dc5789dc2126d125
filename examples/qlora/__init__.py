"""The parts of the QLoRA demo; `examples/qlora_demo.py` runs them in order."""
