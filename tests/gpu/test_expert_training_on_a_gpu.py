"""What an expert's training can do on a GPU alone: half precision with a scaled loss, and a quantized base."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.shared.schemas.jobs import ExpertHyperparameters
from services.shared.training_text import Example
from services.trainer_worker.training.expert import train_expert

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
_NEEDS_BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.mark.parametrize(
    "numbers",
    [
        {"mixed_precision": "fp16"},
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        pytest.param({"quantization": "8bit"}, marks=_NEEDS_BITSANDBYTES),
        pytest.param({"quantization": "4bit", "gradient_checkpointing": True}, marks=_NEEDS_BITSANDBYTES),
    ],
    ids=lambda numbers: " ".join(map(str, numbers.values())),
)
def test_an_expert_learns_and_its_adapter_is_in_float32(
    shared_material: Path, tmp_path: Path, numbers: dict[str, Any]
) -> None:
    texts = [Example(f"{number} and {number + 1} make {2 * number + 1}.", None) for number in range(46)]
    training = train_expert(
        base_model=str(shared_material / "models" / "stories260K-hf"),
        train=texts[:40],
        validation=texts[40:],
        hyperparameters=ExpertHyperparameters(rank=4, max_steps=20, max_length=64, learning_rate=5e-3, **numbers),
        output_dir=tmp_path,
        on_progress=lambda _: None,
        should_stop=lambda: False,
    )

    assert training.best_eval_loss < training.base_eval_loss
    tensors = load_file(training.adapter_dir / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
