"""The same base with the same adapters, served as others serve them: what the mixture's speed is compared with.

PEFT with one adapter, with one adapter per row (mixed batch), Arrow and X-LoRA run under `transformers.generate`. Two
passes with caches are X-LoRA's idea done fairly: the first pass over the bare base decides the weights, the second
applies them, both with keys and values kept.
"""

import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, XLoraConfig, get_peft_model
from peft.tuners.lora import ArrowConfig, create_arrow_model
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from services.shared.modeling.adapter_files import Adapter
from services.shared.modeling.lora_mixture import LoraMixture

CLOCK: Final = time.process_time
"""CPU seconds: on one thread they are the work done, whatever else the machine is busy with."""
FEW_STEPS: Final = 4
"""Steps measured of a peer without a cache, whose cost per token grows with the text: few are in its favour."""
TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Measure = Callable[[int, int, int], float]
"""(batch, prompt tokens, new tokens) -> seconds of the new tokens, or of the prefill when there are none."""


def write_adapters(model: PreTrainedModel, folder: Path, *, num_experts: int, rank: int) -> list[Path]:
    """Random adapters on all seven projections, written by PEFT itself. Takes `model` apart: hand in a copy."""
    paths = []
    for index in range(num_experts):
        torch.manual_seed(index)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS), init_lora_weights=False)
        with _quiet():
            peft_model = get_peft_model(model, config)
            path = folder / f"adapter-{index}"
            peft_model.save_pretrained(str(path))
            model = peft_model.unload()
        paths.append(path)
    return paths


def generate_seconds(
    model: Any, batch: int, num_prompt: int, num_new: int, *, few: int | None = None, **arguments: Any
) -> float:
    """Seconds of `num_new` decoding steps of `model.generate`, prefill taken off; of the prefill when it is 0.

    With `few`, only so many steps are run and their time is scaled up.
    """
    generator = torch.Generator().manual_seed(batch)
    prompt_BT = torch.randint(3, int(model.config.vocab_size), (batch, num_prompt), generator=generator)
    mask_BT = torch.ones_like(prompt_BT)

    def run(num_tokens: int) -> float:
        started_at = CLOCK()
        model.generate(
            input_ids=prompt_BT,
            attention_mask=mask_BT,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **arguments,
        )
        return CLOCK() - started_at

    if not num_new:
        return run(1)
    steps = min(few or num_new, num_new)
    return (run(1 + steps) - run(1)) * num_new / steps


def one_adapter(model: PreTrainedModel, paths: Items[Path]) -> Measure:
    """PEFT, one adapter for all rows, not merged."""
    with _quiet():
        peft_model = PeftModel.from_pretrained(model, str(paths[0])).eval()
    return lambda batch, num_prompt, num_new: generate_seconds(peft_model, batch, num_prompt, num_new)


def mixed_batch(model: PreTrainedModel, paths: Items[Path]) -> Measure:
    """PEFT, an adapter per row (`adapter_names`): requests of several users in one batch, one expert each."""
    with _quiet():
        peft_model = PeftModel.from_pretrained(model, str(paths[0]), adapter_name="0").eval()
        for index, path in enumerate(paths[1:], start=1):
            peft_model.load_adapter(str(path), adapter_name=str(index))

    def measure(batch: int, num_prompt: int, num_new: int) -> float:
        names = [str(row % len(paths)) for row in range(batch)]
        return generate_seconds(peft_model, batch, num_prompt, num_new, adapter_names=names)

    return measure


def arrow(model: PreTrainedModel, paths: Items[Path], *, top_k: int) -> Measure:
    """PEFT Arrow (arXiv:2405.11157): a router per layer from the adapters' own singular vectors."""
    with _quiet():
        config = ArrowConfig(top_k=top_k)
        peft_model = create_arrow_model(model, [str(path) for path in paths], config).eval()
    return lambda batch, num_prompt, num_new: generate_seconds(peft_model, batch, num_prompt, num_new)


def xlora(model: PreTrainedModel, paths: Items[Path], *, few: int | None) -> Measure:
    """PEFT X-LoRA (arXiv:2402.07148): two passes a step, no cache; `few` steps are measured and scaled up."""
    model.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=model.config.hidden_size,
        adapters={str(index): str(path) for index, path in enumerate(paths)},
    )
    with _quiet():
        peft_model = get_peft_model(model, config).eval()
    return lambda batch, num_prompt, num_new: generate_seconds(peft_model, batch, num_prompt, num_new, few=few)


def two_passes(model: PreTrainedModel, adapters: Items[Adapter], *, top_k: int) -> Measure:
    """Two passes with caches: the bare base's last states decide, by a linear head, the weights of the second pass."""
    mixture = LoraMixture.attach(model, num_slots=len(adapters))
    for slot, adapter in enumerate(adapters):
        mixture.load(slot, adapter)
    head = nn.Linear(model.config.hidden_size, len(adapters), bias=False)
    slots = tuple(range(len(adapters)))
    decoder = model.get_decoder()

    @torch.inference_mode()
    def step(ids_BT: torch.Tensor, bare: DynamicCache, mixed: DynamicCache) -> torch.Tensor:
        states_BTD = decoder(input_ids=ids_BT, past_key_values=bare, use_cache=True).last_hidden_state
        scores_NE = head(states_BTD).flatten(0, 1)
        kept = scores_NE.topk(top_k, dim=-1)
        weights_NE = torch.zeros_like(scores_NE).scatter(1, kept.indices, kept.values.softmax(dim=-1))
        with mixture.gates(weights_NE, slots):
            output = model(input_ids=ids_BT, past_key_values=mixed, use_cache=True, logits_to_keep=1)
        return output.logits.argmax(dim=-1)

    def measure(batch: int, num_prompt: int, num_new: int) -> float:
        generator = torch.Generator().manual_seed(batch)
        ids_BT = torch.randint(3, int(model.config.vocab_size), (batch, num_prompt), generator=generator)
        bare, mixed = DynamicCache(), DynamicCache()
        started_at = CLOCK()
        ids_BT = step(ids_BT, bare, mixed)
        if num_new:
            started_at = CLOCK()
            for _ in range(num_new):
                ids_BT = step(ids_BT, bare, mixed)
        return CLOCK() - started_at

    return measure


@contextmanager
def llama_cpp(python: Path, model: PreTrainedModel, folder: Path) -> Iterator[Measure]:
    """llama.cpp's base alone in float32, in a process of another Python that has `llama-cpp-python` and `gguf`."""
    model.save_pretrained(folder)
    worker = Path(__file__).with_name("llama_cpp_worker.py")
    process = subprocess.Popen([python, worker, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def answer() -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the worker of llama.cpp ended: its error is above")
        return line

    def measure(batch: int, num_prompt: int, num_new: int) -> float:
        assert process.stdin is not None
        process.stdin.write(f"{batch} {num_prompt} {num_new}\n")
        process.stdin.flush()
        return float(answer())

    try:
        answer()
        yield measure
    finally:
        process.stdin.close()
        process.wait(30)


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT and transformers warn of names that the other has changed, and of several adapters at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
