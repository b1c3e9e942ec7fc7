"""What recording costs a native model: passes with and without it, turn by turn in the same generation.

A random model as deep and as wide in experts as gpt-oss-20b (24 layers, 32 experts, 4 of them a token) and tiny
otherwise, so that recording weighs more than it ever would. While it answers, every second pass is recorded, and is
compared with the one before it, so a noisy machine disturbs both alike. Seconds are the thread's own, of CPU. What is
done when a batch is answered (choices ranked, sequences taken apart), and what writing the trace takes, is told as a
share of the generation. The demo's own mixture has its gates computed whether they are recorded or not, and a pass only
keeps a reference to them: of it there is the batch's end and the writing.

    python -m benchmarks.trace_overhead --batches 6

writes benchmarks/results/trace_overhead-<date>.json and .md.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.results_file import RESULTS, machine, quartiles, write_results
from services.local_stack.bootstrap import DEMO_FOLDER
from services.shared.config import Settings
from services.shared.tokenizer import Tokenizer
from services.traces.description import TraceSource
from services.trainer_worker.demo.subject import demo_subject
from services.trainer_worker.tracing.generation import RecordedSequence, Sampling, generate, taken_apart
from services.trainer_worker.tracing.native_gates import Selection, find_gates, listening
from services.trainer_worker.tracing.native_recorder import NativeRecorder
from services.trainer_worker.tracing.prompts import demo_prompts
from services.trainer_worker.tracing.recording import TokenizedPrompt
from services.trainer_worker.tracing.subject import Traced, traced_mixture
from services.trainer_worker.tracing.written_trace import write_trace

NUM_PROMPTS: Final = 8
_VOCABULARY: Final = 512
_NATIVE: Final[dict[str, Any]] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "pad_token_id": 0,
    "eos_token_id": None,
    "rope_scaling": None,
}


def native_subject() -> Traced:
    """Random weights, no end of text."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **_NATIVE))
    model.train(mode=False)
    backend = Backend(models.WordLevel({str(number): number for number in range(_VOCABULARY)}, unk_token="0"))
    return Traced(
        source=TraceSource.NATIVE,
        name="gpt_oss, 24 x 32 x 4",
        model=model,
        tokenizer=Tokenizer(backend),
        max_context=4096,
        recorder=NativeRecorder(model),
        experts=(),
        about={},
    )


@contextmanager
def mixture_subject(work: Path) -> Iterator[Traced]:
    """The demo as it is served."""
    with traced_mixture(demo_subject(DEMO_FOLDER, work), Settings(device="cpu"), name="demo mixture") as subject:
        yield subject


def native_prompts(num_tokens: int) -> list[TokenizedPrompt]:
    """Random token ids, of different lengths."""
    draw = torch.Generator().manual_seed(1)
    return [
        TokenizedPrompt(
            f"{number}",
            "any",
            "",
            torch.randint(1, _VOCABULARY, (12 + 3 * number,), generator=draw).tolist(),
            num_tokens,
        )
        for number in range(NUM_PROMPTS)
    ]


def mixture_prompts(subject: Traced, num_tokens: int) -> list[TokenizedPrompt]:
    """Held-out items of all the demo's domains."""
    prompts = demo_prompts(per_domain=2, seed=0).prompts[:NUM_PROMPTS]
    return [
        TokenizedPrompt(one.id, one.domain, one.prompt, subject.tokenizer.encode(one.prompt), num_tokens)
        for one in prompts
    ]


class TurnByTurn:
    """Hears the gates in every second pass that decodes, and times all of them."""

    def __init__(self, subject: Traced) -> None:
        self._gates = find_gates(subject.model)
        self._stack = ExitStack()
        self._number = 0
        self._started_at = 0.0
        self.heard: list[Mapping[int, Sequence[Selection]]] = []
        self.seconds: list[float] = []

    @contextmanager
    def passes(self, model: nn.Module) -> Iterator[None]:
        """Of the model, inside."""
        with ExitStack() as hooks:
            hooks.callback(model.register_forward_pre_hook(self._before).remove)
            hooks.callback(model.register_forward_hook(self._after).remove)
            yield

    @property
    def ratios(self) -> list[float]:
        """Recorded over not recorded, of neighbours; the prompt's pass is in none."""
        decoding = self.seconds[1:]
        return [with_it / without for without, with_it in zip(decoding[::2], decoding[1::2], strict=False)]

    def _before(self, _model: nn.Module, _args: Any) -> None:
        self._number += 1
        if self._number % 2:
            self.heard.append(self._stack.enter_context(listening(self._gates)))
        self._started_at = time.thread_time()

    def _after(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        self.seconds.append(time.thread_time() - self._started_at)
        self._stack.close()


def ratios_of_passes(subject: Traced, prompts: Sequence[TokenizedPrompt], *, batches: int) -> list[float]:
    """Over all batches; none of our own mixture."""
    if subject.source is not TraceSource.NATIVE:
        return []
    ratios = []
    for seed in range(batches):
        turns = TurnByTurn(subject)
        with turns.passes(subject.model):
            generate(subject.model, prompts, Sampling(1.0, seed, frozenset()))
        ratios += turns.ratios
    return ratios


def measure(subject: Traced, prompts: Sequence[TokenizedPrompt], *, batches: int, work: Path) -> dict[str, Any]:
    """Passes in turn; then whole batches, with what comes after the last token."""
    ratios = ratios_of_passes(subject, prompts, batches=batches)
    generating: list[float] = []
    ending: list[float] = []
    writing: list[float] = []
    recorded: list[RecordedSequence] = []
    for seed in range(batches):
        sampling = Sampling(1.0, seed, frozenset())
        started_at = time.thread_time()
        with subject.recorder.recording(prompts) as heard:
            token_ids_BT, num_padding = generate(subject.model, prompts, sampling)
        generated_at = time.thread_time()
        recorded = taken_apart(prompts, token_ids_BT.cpu().numpy(), num_padding, heard, sampling)
        ended_at = time.thread_time()
        _write(work / f"{seed}", subject, prompts, recorded)
        generating.append(generated_at - started_at)
        ending.append(ended_at - generated_at)
        writing.append(time.thread_time() - ended_at)
    in_passes = statistics.median(ratios) if ratios else 1.0
    at_the_end = [one / whole for one, whole in zip(ending, generating, strict=True)]
    return {
        "model": subject.name,
        "layers": len(subject.recorder.num_experts),
        "tokens": sum(len(each.token_ids_T) for each in recorded),
        "rows": sum(int((one.experts >= 0).sum()) for each in recorded for one in each.layers.values()),
        "generating_s": quartiles(generating),
        "pairs_of_passes": len(ratios),
        "ratio_of_passes": quartiles(ratios) if ratios else None,
        "end_of_batch": [round(share, 5) for share in statistics.quantiles(at_the_end, n=4)],
        "overhead": round(in_passes - 1.0 + statistics.median(at_the_end), 4),
        "writing": round(statistics.median(one / whole for one, whole in zip(writing, generating, strict=True)), 4),
    }


def _write(
    folder: Path, subject: Traced, prompts: Sequence[TokenizedPrompt], recorded: Sequence[RecordedSequence]
) -> None:
    folder.mkdir(parents=True)
    write_trace(folder, zip(prompts, recorded, strict=True), subject, layout=None, about={})


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """For people."""
    lines = [
        "| model | layers | tokens of a batch | rows | a batch, CPU-s | pass with / without, quartiles | end of batch "
        "| **overhead** | writing the trace |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in measured:
        ratios = one["ratio_of_passes"]
        passes = (
            f"{', '.join(f'{each:.3f}' for each in ratios)} (n {one['pairs_of_passes']})" if ratios else "as without"
        )
        lines.append(
            f"| {one['model']} | {one['layers']} | {one['tokens']} | {one['rows']} | {one['generating_s'][1]:.2f} | "
            f"{passes} | {one['end_of_batch'][1]:.2%} | **{one['overhead']:.2%}** | {one['writing']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure both and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=100, help="generated for each of eight prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = machine()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        native = native_subject()
        prompts = native_prompts(arguments.tokens)
        measured = [measure(native, prompts, batches=arguments.batches, work=work / "native")]
        with mixture_subject(work) as mixture:
            prompts = mixture_prompts(mixture, arguments.tokens)
            measured.append(measure(mixture, prompts, batches=arguments.batches, work=work / "mixture"))
    write_results(
        RESULTS / "trace_overhead",
        title="What recording a trace costs",
        about=f"{arguments.batches} batches of {NUM_PROMPTS} prompts, {arguments.tokens} tokens each, one thread.",
        machine=about,
        table=table(measured),
        figures={"measured": measured},
    )


if __name__ == "__main__":
    main()
