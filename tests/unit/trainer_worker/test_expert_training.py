"""Training an expert: what it learns, that it can be interrupted anywhere, and how it fails."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    TrainerControl,
    TrainerState,
)

from services.shared.errors import InvalidRequest, JobFailed
from services.shared.schemas.expert_hyperparameters import ExpertHyperparameters
from services.shared.training_plan import StepPlan
from services.shared.training_text import Example
from services.trainer_worker.progress import TrainingProgress, TrainingStopped
from services.trainer_worker.training.expert import ExpertTraining, train_expert
from services.trainer_worker.training.expert_callbacks import Divergence
from services.trainer_worker.training.packing_probe import keeps_packed_documents_apart

# peft 0.21 asks transformers 5.23 for an attribute that has a new name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TRAIN = [Example(f"{number} and {number + 1} make {2 * number + 1}.", None) for number in range(40)]
VALIDATION = [Example(f"{number} and {number + 1} make {2 * number + 1}.", None) for number in range(40, 46)]
QUICK = ExpertHyperparameters(
    rank=2, batch_size=1, num_epochs=3, max_length=64, learning_rate=5e-3, dropout=0.1, gradient_accumulation_steps=2
)

Train = Callable[..., ExpertTraining]


def run_training(base_model: Path, folder: Path, *, stop_at: float = math.inf, **changes: Any) -> ExpertTraining:
    """Train on the tiny base; stop after `stop_at` steps."""
    report = changes.pop("on_progress", lambda _: None)
    reached = [0]

    def on_progress(progress: TrainingProgress) -> None:
        reached[0] = progress.step
        report(progress)

    arguments = {"train": TRAIN, "validation": VALIDATION, "hyperparameters": QUICK} | changes
    return train_expert(
        base_model=str(base_model),
        output_dir=folder,
        on_progress=on_progress,
        should_stop=lambda: reached[0] >= stop_at,
        num_threads=1,
        **arguments,
    )


@pytest.fixture
def train(tiny_base: Path, tmp_path: Path) -> Train:
    """Train in a folder of this test's."""
    return lambda name="run", **options: run_training(tiny_base, tmp_path / name, **options)


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> ExpertTraining:
    """The training that nothing interrupts."""
    return run_training(tiny_base, tmp_path_factory.mktemp("whole"))


def weights(training: ExpertTraining) -> bytes:
    return (training.adapter_dir / "adapter_model.safetensors").read_bytes()


class TestTraining:
    def test_lowers_the_validation_loss_and_says_from_where(self, train: Train) -> None:
        reports: list[TrainingProgress] = []

        training = train(on_progress=reports.append)

        assert training.best_eval_loss < training.base_eval_loss
        assert training.num_steps == reports[-1].step == reports[-1].total_steps
        assert min(r.eval_loss for r in reports if r.eval_loss is not None) == training.best_eval_loss
        assert reports[-2].seconds_left is not None
        assert all(report.loss is not None for report in reports if report.phase == "training")

    def test_reports_the_loss_that_the_model_has(self, train: Train, tiny_base: Path) -> None:
        training = train(hyperparameters=QUICK.model_copy(update={"packing": False}))

        base = AutoModelForCausalLM.from_pretrained(tiny_base)
        adapted = PeftModel.from_pretrained(base, training.adapter_dir).eval()
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        total, num_targets = 0.0, 0
        for example in VALIDATION:
            ids = torch.tensor([[*tokenizer(example.text)["input_ids"], 2]])
            with torch.no_grad():
                total += adapted(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            num_targets += ids.shape[1] - 1
        assert total / num_targets == pytest.approx(training.best_eval_loss, abs=1e-5)

    def test_writes_two_peft_files_that_name_no_path(self, whole: ExpertTraining, tiny_base: Path) -> None:
        assert sorted(path.name for path in whole.adapter_dir.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        config = json.loads((whole.adapter_dir / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == tiny_base.name
        assert not any(
            "lm_head" in name or "embed" in name for name in load_file(whole.adapter_dir / "adapter_model.safetensors")
        )

    def test_stops_early_and_keeps_the_best(self, train: Train) -> None:
        hyperparameters = QUICK.model_copy(
            update={"learning_rate": 0.05, "max_steps": 200, "eval_steps": 2, "early_stopping_patience": 2}
        )
        losses: list[float] = []

        training = train(
            hyperparameters=hyperparameters,
            on_progress=lambda report: losses.append(report.eval_loss) if report.eval_loss is not None else None,
        )

        assert training.stopped_early
        assert training.num_steps < 200
        assert training.best_eval_loss == min(losses) == losses[-3]

    def test_is_the_same_for_the_same_seed_only(self, train: Train, whole: ExpertTraining) -> None:
        other = train("other", hyperparameters=QUICK.model_copy(update={"seed": 1}))

        assert weights(train("again")) == weights(whole) != weights(other)

    def test_adapts_only_the_layers_it_is_told_to(self, train: Train) -> None:
        training = train(hyperparameters=QUICK.model_copy(update={"layers_to_transform": (1,), "max_steps": 2}))

        names = load_file(training.adapter_dir / "adapter_model.safetensors")
        assert names
        assert all(".layers.1." in name for name in names)

    def test_refuses_layers_that_the_base_does_not_have(self, train: Train) -> None:
        with pytest.raises(InvalidRequest, match=r"names \[7\], but the base model has layers 0 to 1"):
            train(hyperparameters=QUICK.model_copy(update={"layers_to_transform": (0, 7)}))

    def test_half_precision_on_the_cpu_is_bf16(self, train: Train) -> None:
        training = train(hyperparameters=QUICK.model_copy(update={"mixed_precision": "bf16", "max_steps": 8}))

        assert training.best_eval_loss < training.base_eval_loss
        tensors = load_file(training.adapter_dir / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}

    def test_with_gradient_checkpointing_comes_to_the_same_weights_and_keeps_less(self, train: Train) -> None:
        kept: list[int] = []

        def count(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.nbytes
            return tensor

        trainings = []
        for checkpointed in (False, True):
            kept.append(0)
            numbers = QUICK.model_copy(update={"gradient_checkpointing": checkpointed, "max_steps": 4})
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                trainings.append(train(f"checkpointed {checkpointed}", hyperparameters=numbers))

        plain, checkpointed_weights = (load_file(one.adapter_dir / "adapter_model.safetensors") for one in trainings)
        for name, tensor in plain.items():
            torch.testing.assert_close(checkpointed_weights[name], tensor, rtol=1e-5, atol=1e-7)
        assert kept[1] < 0.7 * kept[0]


class TestInterruption:
    @pytest.mark.parametrize("stop_at", [1, 5, 11, 16])
    def test_changes_nothing_in_the_weights(self, train: Train, whole: ExpertTraining, stop_at: int) -> None:
        assert whole.num_steps == 21  # three epochs of seven: 11 lies in the middle of the second

        with pytest.raises(TrainingStopped):
            train("broken", stop_at=stop_at)
        resumed = train("broken")

        assert weights(resumed) == weights(whole)
        assert resumed.best_eval_loss == whole.best_eval_loss

    def test_stops_within_one_step(self, train: Train) -> None:
        steps: list[int] = []

        with pytest.raises(TrainingStopped):
            train(stop_at=5, on_progress=lambda report: steps.append(report.step))

        assert max(steps) == 5

    def test_while_a_checkpoint_is_written_falls_back_to_the_one_before(
        self, train: Train, whole: ExpertTraining, tmp_path: Path
    ) -> None:
        with pytest.raises(TrainingStopped):
            train("broken", stop_at=14)
        newest = max((tmp_path / "broken" / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
        (newest / "complete").unlink()
        (newest / "optimizer.pt").write_bytes(b"half")

        assert weights(train("broken")) == weights(whole)

    def test_after_the_end_returns_the_result_at_once(self, train: Train) -> None:
        first = train()
        reports: list[TrainingProgress] = []

        assert train(on_progress=reports.append) == first
        assert not reports

    def test_does_not_mix_with_another_training_in_the_same_folder(self, train: Train) -> None:
        with pytest.raises(TrainingStopped):
            train("folder", stop_at=10)

        other = train("folder", train=TRAIN[:20])

        assert weights(other) == weights(train("fresh", train=TRAIN[:20]))


class TestFailure:
    def test_of_the_loss_names_the_step_and_the_learning_rate(
        self, train: Train, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forward = LlamaForCausalLM.forward
        calls = iter(range(1000))

        def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = forward(self, *args, **kwargs)
            if kwargs.get("labels") is not None and next(calls) == 5:
                output.loss = output.loss * float("nan")
            return output

        monkeypatch.setattr(LlamaForCausalLM, "forward", poisoned)

        with pytest.raises(JobFailed, match=r"at step 3.*learning_rate \(it was 0\.005\)") as failure:
            train()

        assert failure.value.error_code == "loss_not_finite"

    def test_by_divergence_names_the_learning_rate(self) -> None:
        divergence = Divergence(base_eval_loss=5.0, vocab_size=512)
        arguments = SimpleNamespace(learning_rate=1.0)

        divergence.on_evaluate(arguments, TrainerState(log_history=[{"eval_loss": 9.0}]), TrainerControl())
        for loss in (11.0, math.nan):
            state = TrainerState(global_step=7, log_history=[{"eval_loss": loss}])
            with pytest.raises(JobFailed, match=r"after step 7 .* learning_rate \(it was 1\)"):
                divergence.on_evaluate(arguments, state, TrainerControl())

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_fp16_without_a_gpu_is_refused(self, train: Train) -> None:
        with pytest.raises(InvalidRequest, match="'bf16' or 'no'"):
            train(hyperparameters=QUICK.model_copy(update={"mixed_precision": "fp16"}))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("bits", ["4bit", "8bit"])
    def test_quantization_without_a_gpu_is_refused_by_name(self, train: Train, bits: str) -> None:
        with pytest.raises(InvalidRequest, match=f"quantization '{bits}' needs a GPU and bitsandbytes.* lacks a GPU"):
            train(hyperparameters=QUICK.model_copy(update={"quantization": bits}))

    def test_unknown_target_modules_are_refused_with_those_there_are(self, train: Train) -> None:
        with pytest.raises(InvalidRequest, match="down_proj, gate_proj"):
            train(hyperparameters=QUICK.model_copy(update={"target_modules": ("c_attn",)}))


class TestStepPlan:
    def test_few_blocks_make_smaller_steps_not_fewer_passes(self) -> None:
        plan = StepPlan.of(ExpertHyperparameters(batch_size=8, num_epochs=3, gradient_accumulation_steps=4), 3)

        assert (plan.batch_size, plan.accumulation, plan.num_steps) == (3, 1, 3)

    def test_evaluates_ten_times_by_default(self) -> None:
        plan = StepPlan.of(ExpertHyperparameters(max_steps=95), 100)

        assert plan.eval_steps == 10

    @pytest.mark.parametrize(("batch_size", "accumulation", "share"), [(4, 3, (2, 3)), (3, 4, (3, 2)), (2, 2, (1, 2))])
    def test_processes_share_the_blocks_of_a_step(
        self, batch_size: int, accumulation: int, share: tuple[int, int]
    ) -> None:
        plan = StepPlan(batch_size, accumulation, num_steps=10, eval_steps=5)

        mine = plan.shared_by(2)

        assert (mine.batch_size, mine.accumulation) == share
        assert (mine.num_steps, mine.eval_steps, 2 * mine.blocks_per_step) == (10, 5, plan.blocks_per_step)
        assert plan.shared_by(1) == plan

    @pytest.mark.parametrize(("batch_size", "advised"), [(1, 4), (6, 4), (7, 4), (9, 8)])
    def test_what_processes_cannot_share_is_refused_with_what_they_could(self, batch_size: int, advised: int) -> None:
        with pytest.raises(InvalidRequest, match=rf"4 processes .* share .* such as {advised}, or") as refused:
            StepPlan(batch_size, 1, num_steps=10, eval_steps=5).shared_by(4)

        assert refused.value.param == "hyperparameters.batch_size"


class TestPackingProbe:
    def test_trusts_models_that_read_positions(self, tiny_base: Path) -> None:
        assert keeps_packed_documents_apart(AutoModelForCausalLM.from_pretrained(tiny_base))
        assert keeps_packed_documents_apart(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=64)))

    def test_finds_out_those_that_leak(self, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny_base)
        forward = type(model).forward

        def deaf(self: Any, input_ids: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return forward(self, input_ids=input_ids, **kwargs)

        monkeypatch.setattr(type(model), "forward", deaf)

        assert not keeps_packed_documents_apart(model)
