"""What an expert's training can do on a GPU alone: half precision with a scaled loss, a quantized base, two GPUs."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.training_text import Example
from services.trainer_worker.progress import TrainingStopped
from services.trainer_worker.training.expert import ExpertTraining, train_expert
from services.trainer_worker.training.expert_launch import launch_expert_training

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


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_two_gpus_come_to_the_weights_of_one_also_after_a_pause(shared_material: Path, tmp_path: Path) -> None:
    texts = [Example(f"{number} and {number + 1} make {2 * number + 1}.", None) for number in range(46)]
    steps = [0]
    arguments: dict[str, Any] = {
        "base_model": str(shared_material / "models" / "stories260K-hf"),
        "train": texts[:40],
        "validation": texts[40:],
        "hyperparameters": ExpertHyperparameters(
            rank=4, max_steps=8, eval_steps=6, batch_size=4, max_length=64, learning_rate=5e-3, dropout=0.0
        ),
        "on_progress": lambda progress: steps.append(progress.step),
        "on_checkpoint": lambda: None,
        "num_threads": None,
    }

    def launch(stop_at: float) -> ExpertTraining:
        def is_due() -> bool:
            return steps[-1] >= stop_at

        return launch_expert_training(
            **arguments,
            output_dir=tmp_path / "two",
            should_stop=is_due,
            should_keep_state=is_due,
            num_processes=2,
            note=lambda _: None,
        )

    with pytest.raises(TrainingStopped):
        launch(3)
    assert (tmp_path / "two" / "checkpoints" / "checkpoint-4" / "complete").exists()
    two = launch(math.inf)
    one = train_expert(**arguments, output_dir=tmp_path / "one", should_stop=lambda: False)

    weights, expected = (load_file(training.adapter_dir / "adapter_model.safetensors") for training in (two, one))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)
