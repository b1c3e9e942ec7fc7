"""Many experts on one replica: what merely resident and merely registered ones cost.

*Resident*: the same traffic over 8 hot experts, on an engine with 8 slots and on one whose 256 slots are all full.

*Registered*: an expert service as `adaptive-moe up` runs it, 16 slots, 16 requests at a time, each forced to one expert
drawn from N registered ones, uniformly or by Zipf's law. N grows from 4 to 1,024; each point starts with cold slots.
Throughput and time to first token as medians over rounds, and memory of the process after the last point.

    python -m benchmarks.many_experts --rounds 3

writes benchmarks/results/many_experts-<shape>-<date>.json and .md.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import psutil
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from benchmarks.decode_prefill import RANK, SHAPES, VOCAB_SIZE, base_model
from benchmarks.peers import CLOCK, write_adapters
from benchmarks.results_file import machine, quartiles, write_results
from benchmarks.serving_parts import BenchEngine, bench_engine, plain_backend, random_adapters
from services.shared.storage import Storage

PROJECT: Final = Path(__file__).resolve().parents[1]
HOT, MANY = 8, 256
NUM_SLOTS, NUM_STREAMS = 16, 16
REGISTERED: Final = (4, 8, 16, 32, 64, 256, 1024)
NUM_PROMPT, NUM_NEW = 32, 16
PORT: Final = 18471
START_S: Final = 120.0


def step_ms(engine: BenchEngine, names: Items[str], num_steps: int) -> float:
    """CPU milliseconds of a decoding step of eight sequences, each with an expert of its own."""
    for row, name in enumerate(names):
        engine.submit(str(row), list(range(3 + row, 35 + row)), max_new_tokens=num_steps + 4, fixed={name: 1.0})
    while engine.num_decoding < len(names):
        engine.step()
    started_at = CLOCK()
    for _ in range(num_steps):
        engine.step()
    seconds = CLOCK() - started_at
    engine.run()
    return 1000 * seconds / num_steps


def measure_resident(shape: str, rounds: int) -> dict[str, Any]:
    """Step times with 8 and with 256 full slots, interleaved, and what a resident adapter takes."""
    adapters = random_adapters(base_model(shape), num_experts=MANY, rank=RANK)
    names = list(adapters)
    few = bench_engine(
        base_model(shape), {name: adapters[name] for name in names[:HOT]}, max_sequences=HOT, max_context=256
    )
    many = bench_engine(base_model(shape), adapters, max_sequences=HOT, max_context=256)
    for start in range(0, MANY, HOT):  # every slot is filled once, the hot experts last
        step_ms(many, names[::-1][start : start + HOT], num_steps=1)
    figures: dict[str, list[float]] = {"8 slots": [], "256 slots": []}
    for round_number in range(-1, rounds):
        for label, engine in (("8 slots", few), ("256 slots", many)):
            taken = step_ms(engine, names[:HOT], num_steps=32)
            if round_number >= 0:
                figures[label].append(taken)
    assert len(many.engine.status.resident) == MANY
    ratios = [many_ms / few_ms for few_ms, many_ms in zip(figures["8 slots"], figures["256 slots"], strict=True)]
    return {
        "step_ms": {label: round(statistics.median(taken), 3) for label, taken in figures.items()},
        "ratio": quartiles(ratios),
        "bytes_per_slot": many.engine.status.resident_bytes // MANY,
    }


def write_base(shape: str, folder: Path) -> None:
    """A random Llama with a tokenizer, as a Hugging Face folder."""
    base_model(shape).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=plain_backend(VOCAB_SIZE)).save_pretrained(folder)


def publish_experts(shape: str, root: Path, num_experts: int) -> list[str]:
    """Digests of adapters in storage: different bytes, the same shapes."""
    storage, digests = Storage(root), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        [path] = write_adapters(base_model(shape), Path(folder), num_experts=1, rank=RANK)
        (path / "README.md").unlink(missing_ok=True)
        weights = load_file(path / "adapter_model.safetensors")
        for index in range(num_experts):
            changed = {name: tensor * (1.0 + index / num_experts) for name, tensor in weights.items()}
            save_file(changed, path / "adapter_model.safetensors")
            digests.append(storage.publish(path))
    return digests


@contextmanager
def expert_service(base: Path, root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The service as a process of its own, on one thread."""
    environment = {
        **os.environ,
        "AMOE_BASE_MODEL": str(base),
        "AMOE_STORAGE__ROOT": str(root),
        "AMOE_EXPERT_SERVICE__PORT": str(PORT),
        "AMOE_EXPERT_SERVICE__NUM_SLOTS": str(NUM_SLOTS),
        "AMOE_EXPERT_SERVICE__MAX_SEQUENCES": str(NUM_STREAMS),
        "AMOE_EXPERT_SERVICE__NUM_THREADS": "1",
        "AMOE_TELEMETRY__LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "services.expert_service.main"]
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not _is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the expert service did not start")
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _is_up() -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}/ready").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


@dataclass(frozen=True)
class Point:
    """Traffic over N experts: new tokens per second, and milliseconds to the first token (median, 95th percentile)."""

    tokens_per_second: float
    first_ms: float
    first_ms_95: float


async def traffic(digests: Items[str], *, law: str, num_requests: int, seed: int) -> Point:
    """`num_requests` requests, sixteen at a time, each through one expert."""
    generator = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, len(digests) + 1) if law == "zipf" else np.ones(len(digests))
    order = generator.permutation(len(digests))
    drawn = order[generator.choice(len(digests), num_requests, p=weights / weights.sum())]
    waiting = iter([_body(digests[index], generator) for index in drawn])
    firsts: list[float] = []

    async def client(http: httpx.AsyncClient) -> None:
        for body in waiting:
            began, first = time.perf_counter(), 0.0
            async with http.stream("POST", f"http://127.0.0.1:{PORT}/sequences", json=body) as response:
                response.raise_for_status()
                async for _ in response.aiter_raw():
                    first = first or time.perf_counter() - began
            firsts.append(1000 * first)

    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=120.0) as http, asyncio.TaskGroup() as group:
        for _ in range(NUM_STREAMS):
            group.create_task(client(http))
    seconds = time.perf_counter() - began
    middle, high = np.percentile(firsts, [50, 95])
    return Point(num_requests * NUM_NEW / seconds, float(middle), float(high))


def _body(digest: str, generator: np.random.Generator) -> dict[str, Any]:
    return {
        "request_id": "many",
        "prompt_ids": generator.integers(3, VOCAB_SIZE, NUM_PROMPT).tolist(),
        "sampling": {"max_new_tokens": NUM_NEW, "ignore_eos_token": True},
        "plan": {
            "mode": "fixed",
            "experts": [{"name": "one", "version": 1, "digest": digest}],
            "candidates": ["one"],
            "weights": {"one": 1.0},
        },
    }


def measure_registered(shape: str, rounds: int, num_requests: int) -> dict[str, Any]:
    """The curve over N for both laws, and the process's memory before and after."""
    points: dict[str, dict[int, list[Point]]] = {law: {n: [] for n in REGISTERED} for law in ("uniform", "zipf")}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        base, root = Path(folder) / "base", Path(folder) / "storage"
        write_base(shape, base)
        began = time.perf_counter()
        digests = publish_experts(shape, root, max(REGISTERED))
        print(f"{len(digests)} adapters published in {time.perf_counter() - began:.0f} s", flush=True)
        with expert_service(base, root) as process:
            before = psutil.Process(process.pid).memory_info().rss
            for round_number in range(rounds):
                for num_registered in REGISTERED:
                    for law, curve in points.items():
                        point = asyncio.run(
                            traffic(digests[:num_registered], law=law, num_requests=num_requests, seed=round_number)
                        )
                        curve[num_registered].append(point)
                print(f"round {round_number + 1} of {rounds}", flush=True)
            after = psutil.Process(process.pid).memory_info().rss
    return {
        "curve": {
            law: {
                n: {
                    name: round(statistics.median(getattr(point, name) for point in curve[n]), 1)
                    for name in ("tokens_per_second", "first_ms", "first_ms_95")
                }
                for n in REGISTERED
            }
            for law, curve in points.items()
        },
        "rss_before_mib": before // 2**20,
        "rss_after_mib": after // 2**20,
    }


def table(resident: dict[str, Any], registered: dict[str, Any]) -> str:
    """Markdown."""
    low, middle, high = resident["ratio"]
    steps = resident["step_ms"]
    lines = [
        f"256 full slots, 8 hot, against 8 slots: **{middle:.2f}** [{low:.2f}, {high:.2f}] of a step "
        f"({steps['256 slots']} ms against {steps['8 slots']} ms); {resident['bytes_per_slot']:,} bytes per slot.",
        "",
        "| registered | uniform: tokens/s | of all-resident | first token, ms (95 %) "
        "| Zipf: tokens/s | of all-resident | first token, ms (95 %) |",
        "|---" * 7 + "|",
    ]
    for n in REGISTERED:
        cells = [f"{n:,}"]
        for law in ("uniform", "zipf"):
            point, best = registered["curve"][law][n], registered["curve"][law][NUM_SLOTS]
            share = point["tokens_per_second"] / best["tokens_per_second"]
            first = f"{point['first_ms']:.0f} ({point['first_ms_95']:.0f})"
            cells += [f"{point['tokens_per_second']:,.0f}", f"{share:.2f}", first]
        lines.append(f"| {' | '.join(cells)} |")
    memory = (
        f"Memory of the process: {registered['rss_before_mib']} MiB before, {registered['rss_after_mib']} MiB after."
    )
    return "\n".join([*lines, "", memory])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--requests", type=int, default=256, help="per point of the curve")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = machine()
    resident = measure_resident(options.shape, max(options.rounds, 5))
    print(json.dumps(resident), flush=True)
    registered = measure_registered(options.shape, options.rounds, options.requests)
    write_results(
        options.output / f"many_experts-{options.shape}",
        title="Many experts on one replica",
        about=(
            f"Adapters of rank {RANK} on all seven projections. Resident: CPU time, ratios within a round. Registered: "
            f"{NUM_SLOTS} slots, {NUM_STREAMS} streams, {options.requests} requests of {NUM_PROMPT} + {NUM_NEW} tokens "
            f"a point, {options.rounds} rounds, wall time; *of all-resident* is the throughput over that with "
            f"{NUM_SLOTS} registered."
        ),
        machine=started,
        table=table(resident, registered),
        figures={"resident": resident, "registered": registered},
    )


if __name__ == "__main__":
    main()
