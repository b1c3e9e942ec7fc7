"""How long an adapter takes into a slot, from disk and from host memory, against PEFT, interleaved in one run.

Systems: `load_adapter` and `hotswap_adapter` of PEFT on a model that has one adapter already; ours from disk the first
time (its content is checked against its digest), from disk again, and from host memory. PEFT copies weights to where
the next pass reads them, our mixture when a pass first needs them: that part is measured apart. Page cache warm, CPU
time of one thread, ratios within a round.

    python -m benchmarks.adapter_loading --rounds 21

writes benchmarks/results/adapter_loading-<date>.json and .md.
"""

import argparse
import itertools
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from transformers import PreTrainedModel

from benchmarks.decode_prefill import SHAPES, base_model
from benchmarks.peers import CLOCK
from benchmarks.results_file import machine, write_results
from services.expert_service.adapter_loader import AdapterLoader
from services.expert_service.host_cache import HostCache
from services.shared.modeling.lora_mixture import LoraMixture
from services.shared.storage import Storage

RANK = 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NUM_ADAPTERS = 4
LOAD, HOTSWAP = "PEFT load_adapter", "PEFT hotswap_adapter"
FIRST, AGAIN, HOST = "disk -> slot, first time", "disk -> slot", "host -> slot"
WITH_PASS = "host -> slot, and the copy that the first pass makes"
Measure = Callable[[], float]


def save_adapters(model: PreTrainedModel, folder: Path) -> list[Path]:
    """Random adapters as PEFT saves them; `model` gets one that stays."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, config)
    folders = []
    for index in range(NUM_ADAPTERS):
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.02)
        folders.append(folder / str(index))
        peft_model.save_pretrained(folders[-1], save_embedding_layers=False)
    return folders


class Ours:
    """Loader, host memory and a mixture of one slot."""

    def __init__(self, model: PreTrainedModel, storage: Storage, *, host_bytes: int) -> None:
        self._mixture = LoraMixture.attach(model, num_slots=1)
        self._model = model
        self._storage = storage
        self._host_bytes = host_bytes
        self._loader = self.fresh_loader()

    def fresh_loader(self) -> AdapterLoader:
        """One that has seen nothing."""
        return AdapterLoader(
            self._storage,
            self._mixture.shapes,
            dtype=self._model.dtype,
            max_rank=RANK,
            base_fingerprint="",
            host=HostCache(self._host_bytes),
        )

    def seconds(self, digest: str, *, first: bool = False) -> float:
        """From the request until the adapter is in its slot."""
        loader = self.fresh_loader() if first else self._loader
        started_at = CLOCK()
        self._mixture.load(0, loader.load(digest))
        return CLOCK() - started_at

    def seconds_with_pass(self, digest: str) -> float:
        """The same, and what the first pass takes longer than later ones."""
        loaded = self.seconds(digest)
        first = self._pass_seconds()
        return loaded + max(0.0, first - statistics.median(self._pass_seconds() for _ in range(5)))

    def _pass_seconds(self) -> float:
        token_ids = torch.tensor([[5]])
        with torch.inference_mode(), self._mixture.gates(torch.ones(1, 1), (0,)):
            started_at = CLOCK()
            self._model(token_ids, use_cache=False)
            return CLOCK() - started_at


@dataclass
class Shape:
    """All systems over one base model, and their seconds by round."""

    name: str
    systems: dict[str, Measure]
    seconds: dict[str, list[float]]

    @classmethod
    def build(cls, name: str, folder: Path) -> "Shape":
        """A random Llama of that shape for each side."""
        folders = save_adapters(base_model(name), folder / "adapters")
        peft_model = PeftModel.from_pretrained(base_model(name), folders[0])
        storage = Storage(folder / "storage")
        digests = [storage.publish(path) for path in folders]
        from_disk = Ours(base_model(name), storage, host_bytes=0)
        from_host = Ours(base_model(name), storage, host_bytes=2**40)
        for ours in (from_disk, from_host):
            for digest in digests:
                ours.seconds(digest)
        paths, names = itertools.cycle(folders), itertools.cycle(digests)
        systems: dict[str, Measure] = {
            LOAD: lambda: _load_seconds(peft_model, paths),
            HOTSWAP: lambda: _hotswap_seconds(peft_model, paths),
            FIRST: lambda: from_disk.seconds(next(names), first=True),
            AGAIN: lambda: from_disk.seconds(next(names)),
            HOST: lambda: from_host.seconds(next(names)),
            WITH_PASS: lambda: from_host.seconds_with_pass(next(names)),
        }
        return cls(name, systems, {system: [] for system in systems})

    def measure(self) -> None:
        """One round."""
        for system, measure in self.systems.items():
            self.seconds[system].append(measure())

    def summary(self) -> dict[str, dict[str, float]]:
        """Median milliseconds, and how many times longer PEFT takes: medians over rounds."""
        return {
            system: {
                "ms": round(1000 * statistics.median(seconds), 2),
                **{
                    f"against {other}": round(
                        statistics.median(o / s for o, s in zip(self.seconds[other], seconds, strict=True)), 1
                    )
                    for other in (LOAD, HOTSWAP)
                },
            }
            for system, seconds in self.seconds.items()
        }


def _load_seconds(model: PeftModel, paths: Iterator[Path]) -> float:
    started_at = CLOCK()
    model.load_adapter(next(paths), "other")
    seconds = CLOCK() - started_at
    model.delete_adapter("other")
    return seconds


def _hotswap_seconds(model: PeftModel, paths: Iterator[Path]) -> float:
    started_at = CLOCK()
    hotswap_adapter(model, str(next(paths)), adapter_name="default", torch_device="cpu")
    return CLOCK() - started_at


def table(shapes: Items[Shape]) -> str:
    """Markdown."""
    columns = [f"{shape.name}, ms | x load_adapter | x hotswap_adapter" for shape in shapes]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (3 * len(shapes) + 1) + "|"]
    for system in shapes[0].systems:
        cells = [" | ".join(str(value) for value in shape.summary()[system].values()) for shape in shapes]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of PEFT about adapters that are already there
    started = machine()
    with tempfile.TemporaryDirectory() as folder:
        shapes = [Shape.build(name, Path(folder) / name) for name in options.shapes]
        for round_number in range(-1, options.rounds):
            for shape in shapes:
                shape.measure()
            if round_number < 0:  # the first warms up
                for shape in shapes:
                    shape.seconds = {system: [] for system in shape.systems}
    write_results(
        options.output / "adapter_loading",
        title="Loading an adapter",
        about=(
            f"{options.rounds} interleaved rounds, CPU time, warm page cache. One adapter of rank {RANK} on all seven "
            "projections. Medians, and how many times longer PEFT takes in the same round."
        ),
        machine=started,
        table=table(shapes),
        figures={"rounds": options.rounds, "shapes": {shape.name: shape.summary() for shape in shapes}},
    )


if __name__ == "__main__":
    main()
