"""Models of the transformers package as they come: generation with a cache, other dtypes, copies and files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.leaves.base import Leaf

transformers = pytest.importorskip("transformers", reason="needs transformers, which Intact does not depend on")



def narrow(net: nn.Module) -> list[str]:
    """Tables that groups do not divide."""
    return [name for name, _ in net.named_modules() if name.endswith("relative_attention_bias")]


SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1, pad_token_id=2)),
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2)),
}
WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "int8": intact.quantize_dynamic,
    "int4": lambda n: intact.quantize_weights(n, {nn.Module: 4, **dict.fromkeys(narrow(n))}, group=16),
}


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: make().eval() for name, make in MODELS.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_models_as_they_come(name: str, way: str, nets: dict[str, nn.Module], tmp_path: Path) -> None:
    net, ids = nets[name], torch.arange(3, 17).reshape(2, 7)
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][1, 4:] = 0
    if name == "t5":
        inputs["decoder_input_ids"] = ids[:, :3]

    @torch.no_grad()
    def logits(model: Any) -> Tensor:
        found: Tensor = model(**inputs).logits
        return found

    q: Any = WAYS[way](net)
    plain, y = logits(net), logits(q)
    assert float((y - plain).std() / plain.std()) < (0.03 if way == "int8" else 0.3)
    assert all(isinstance(m, Leaf) for m in q.modules() if hasattr(m, "in_features"))
    again = intact.load(intact.save(q, tmp_path / "net"), model=net)
    assert torch.equal(logits(again), y) and torch.equal(logits(copy.deepcopy(q)), y)
    for dtype in (torch.bfloat16, torch.float16):
        half = logits(WAYS[way](net).to(dtype))
        assert half.dtype == dtype and float((half - plain).std() / plain.std()) < (0.06 if way == "int8" else 0.35)
    if name != "bert":
        given = {k: v for k, v in inputs.items() if not k.startswith("decoder")}
        cached, anew = (q.generate(**given, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False))
        assert torch.equal(cached, anew)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_static_model_keeps_what_is_a_tensor_and_says_what_is_none(
    name: str, nets: dict[str, nn.Module], tmp_path: Path
) -> None:
    def batch(size: int, length: int) -> dict[str, Tensor]:
        ids = torch.randint(3, 96, (size, length))
        mask = torch.ones_like(ids)
        mask[0, length // 2 :] = 0
        return {"input_ids": ids, "attention_mask": mask}

    q = intact.quantize(nets[name], [batch(4, 7), batch(4, 9)])
    assert "the output 'past_key_values' is None: it is a DynamicCache" in str(q.plan)
    assert q(**batch(2, 12))["logits"].shape == (2, 12, 96)
    assert intact.export(q, tmp_path / "net.onnx").codes_differ == 0


def test_groups_of_a_conv1d_divide_its_inputs() -> None:
    net = transformers.GPT2Model(transformers.GPT2Config(vocab_size=96, n_embd=48, n_layer=1, n_head=4))
    assert "group of 48" in str(intact.quantize_weights(net, {"h.0.mlp.c_fc"}))
