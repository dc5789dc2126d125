"""transformers, peft, trl and accelerate on our layers and on bitsandbytes' with our kernels.

The checks themselves are functions of model_checks.py, training_checks.py and
int8_checks.py.
"""

from __future__ import annotations

import json

import pytest
import torch

CHECKS = (
    "check_libraries_find_it",
    "check_our_kernels_run",
    "check_load",
    "check_generate",
    "check_weights_stay_after_eval",
    "check_state_dict_keys",
    "check_save_and_reload",
    "check_quant_storage_bfloat16",
    "check_deepcopy",
    "check_dequantize_after_eval",
    "check_compile_fullgraph",
    "check_prepare_for_kbit_training",
    "check_lora_training",
    "check_dora_training",
    "check_trainer",
    "check_sft_trainer",
    "check_merge_before_and_after_eval",
    "check_unmerge",
    "check_adapter_save_and_load",
    "check_int8_kernels_run",
    "check_int8_load",
    "check_int8_generate",
    "check_int8_state_dict_keys",
    "check_int8_save_and_reload",
    "check_int8_deepcopy",
    "check_int8_dequantize",
    "check_int8_lora_training",
    "check_int8_merge_before_and_after_eval",
    "check_int8_unmerge",
    "check_int8_compile_fullgraph",
)


@pytest.mark.parametrize("way", ["instead", "beside"])
@pytest.mark.parametrize("check", CHECKS)
def test_check(outcomes, way, check):
    if way not in outcomes:
        pytest.skip("bitsandbytes is not installed")
    outcome = outcomes[way]
    result = outcome.results.get(check, f"not run; the process said:\n{outcome.output}")
    assert result == "ok", f"\n{result}"


def test_every_check_is_listed(outcomes):
    for outcome in outcomes.values():
        assert set(outcome.results) == set(CHECKS)


def test_both_ways_save_the_same_checkpoint(outcomes):
    """Keys, dtypes, shapes and bytes, so that each loads what the other saved."""
    if "beside" not in outcomes:
        pytest.skip("bitsandbytes is not installed")
    first, second = (_tensors(outcome.saved / "model.safetensors") for outcome in outcomes.values())
    assert first.keys() == second.keys()
    assert len(first) > 14 * 6
    for key, value in first.items():
        if "quant_state.bitsandbytes__" in key:
            assert _json(value) == _json(second[key]), key
        else:
            assert value.dtype == second[key].dtype, key
            assert value.shape == second[key].shape, key
            assert torch.equal(value.view(torch.uint8), second[key].view(torch.uint8)), key


def _tensors(path):
    from safetensors.torch import load_file

    return load_file(path)


def _json(tensor):
    return json.loads(bytes(tensor.tolist()))
