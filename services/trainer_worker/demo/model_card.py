"""The demo's model card: how it was made, from what, how large it is, what it can and cannot do."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import safe_open

from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, HELD_BACK_DOMAINS, Item
from services.trainer_worker.demo.domains.code import NUM_TESTS
from services.trainer_worker.demo.domains.fact_table import FACTS
from services.trainer_worker.demo.matrix_table import matrix_markdown
from services.trainer_worker.demo.plan import BASE_NAME, DemoPlan
from services.trainer_worker.demo.pretraining import NUM_THREADS

_CARD = """# {name}

A small Llama-architecture language model with five LoRA experts, made from nothing but this project's own text
generators, so that every part of Adaptive MoE can be run, tested and measured without a download. It is a
demonstration and a test bed, not an assistant.

Rebuild it with `adaptive-moe demo build` (seed {seed}). Everything follows from the seed, and training on the CPU is
deterministic (the tests hold it to that on a small scale), so one machine gives the same bytes again; on another
processor or another version of torch the last digits of the weights, and so of the figures below, may differ.

## What is in this folder

| part | files | size |
|---|---|---:|
{sizes}

- **Base model**: {num_parameters:,} parameters in bfloat16; {shape.num_layers} layers, hidden size {shape.hidden_size},
  {shape.num_heads} heads over {shape.num_kv_heads} key/value heads, context {shape.max_context} tokens, tied
  embeddings.
- **Tokenizer**: byte-level BPE with {vocab_size:,} tokens; every digit and every line break is a token of its own;
  `<bos>` before every document, `<eos>` after it.
- **Experts**: one per domain ({domains}); rank {expert.rank}, alpha {expert.alpha}, dropout {expert.dropout}, on all
  seven projections of every layer, in bfloat16. `exemplars.jsonl` beside each is a random sample of its training
  text, from which the router's evidence tables are made.

## Text

All text was written by `services/trainer_worker/demo` and is part of this project; facts
are common knowledge. Which split an item belongs to is a function of its prompt's text: no held-out prompt can occur
in training.

{domain_list}

The **base model** read {tokens_trained_on:,} tokens once, cut from documents of which {generic_share:.0%} are ordinary
language (letters, diaries, notices, talk; address books, inventories and other documents in which names and numbers
come back) and {domain_share:.0%} demo items ({per_domain_share:.0%} of each of the five domains, training split only).
So it knows the domains' form and some of their content, and the experts have the rest to teach.

Every **expert** was trained on its own domain's training items, prompt and completion alike, in steps of
{expert.batch_size} blocks of up to {expert.block_length} tokens ({steps} steps).

Neither base nor experts saw anything of the domains that are kept back.

## Measured

{num_items} held-out items per domain, greedy decoding. Exact match with Wilson's 95 % interval; loss in nats per token
of the completion, and of the whole text in brackets; gains paired over the items with a bootstrap 95 % interval.
"Exact" means: for `code` the function returns the right values on {num_tests} tests; for `math` the final number is
right; for `factual` the answer ends in the right value; for `creative` the continuation holds what the tale demands and
nothing that contradicts it, or rhymes; for `mixed` the stated result is right, or the written function returns it.

{matrix}
## What it can and cannot do

- It can: answer held-out items of the five domains in the prompt formats shown above, at the rates shown above;
  continue plain English of the generators' kind.
- It cannot: hold a conversation, follow instructions in other words than its templates', reason beyond three steps or
  numbers above 99, know facts outside its table of {num_facts}, or write code outside its function families. Its
  English is that of a grammar: correct in form, random in meaning. Outside the formats it writes nonsense with
  confidence.
- Held-out items are new prompts (numbers, names, combinations), not new kinds of prompt: the figures say how well the
  domains were learned, not how the model generalises to human text.

## Time

The build that made these files took {minutes:.0f} minutes of wall time on {num_threads} threads:
{times}.
Other work on the same cores lengthens it; two idle cores with AVX-512 BF16 need, by estimate from their idle
throughput, 30 to 40 minutes.
"""


def write_model_card(folder: Path, *, seed: int, plan: DemoPlan) -> None:
    """Write `MODEL_CARD.md` from what the other stages left in the folder."""
    report = json.loads((folder / "matrix.json").read_text())
    corpus = json.loads((folder / "corpus.json").read_text())
    config = json.loads((folder / "base" / "config.json").read_text())
    seconds: dict[str, float] = json.loads((folder / "build.json").read_text())["seconds"]
    documents: dict[str, int] = corpus["documents_written"]
    generic_share = documents["generic"] / sum(documents.values())
    card = _CARD.format(
        name=BASE_NAME,
        seed=seed,
        sizes=_sizes(folder),
        num_parameters=_num_parameters(folder / "base" / "model.safetensors"),
        shape=plan.shape,
        vocab_size=config["vocab_size"],
        expert=plan.expert,
        domains=", ".join(DEMO_DOMAINS),
        steps=", ".join(f"{domain} {plan.expert.steps_for(domain):,}" for domain in DEMO_DOMAINS),
        domain_list=_domain_list(),
        tokens_trained_on=corpus["tokens_trained_on"],
        generic_share=generic_share,
        domain_share=1 - generic_share,
        per_domain_share=(1 - generic_share) / len(DEMO_DOMAINS),
        num_items=report["items_per_domain"],
        num_tests=NUM_TESTS,
        num_facts=len(FACTS),
        matrix=matrix_markdown(report),
        minutes=sum(seconds.values()) / 60,
        num_threads=NUM_THREADS,
        times=", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items() if name != "card"),
    )
    (folder / "MODEL_CARD.md").write_text(card)


def _sizes(folder: Path) -> str:
    parts: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        relative = path.relative_to(folder)
        part = "/".join(relative.parts[:2]) if relative.parts[0] == "experts" else relative.parts[0]
        if part != "MODEL_CARD.md":
            parts.setdefault(part, []).append(path)
    return "\n".join(
        f"| `{part}` | {', '.join(path.name for path in paths)} | {_megabytes(paths):.2f} MB |"
        for part, paths in parts.items()
    )


def _megabytes(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / 1e6


def _num_parameters(weights_file: Path) -> int:
    with safe_open(weights_file, framework="numpy") as weights:
        shapes: list[list[int]] = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    return sum(math.prod(shape) for shape in shapes)


def _domain_list() -> str:
    lines = []
    for name in (*DEMO_DOMAINS, *HELD_BACK_DOMAINS):
        domain = DOMAINS[name]
        example = _example(domain.generate(0, 1, "held_out")[0])
        kept_back = "" if domain.in_demo else " *Kept back from base and experts.*"
        lines.append(f"**{name}**: {domain.description}{kept_back}\n\n```\n{example}\n```")
    return "\n\n".join(lines)


def _example(item: Item) -> str:
    return item.text.rstrip("\n")
