"""How well flagged requests of unknown domains come apart into gaps, as an analysis has them and in other ways.

`python -m benchmarks.gap_clusters` draws traffic: some unknown domains, alone or together, evenly or not, a few prompts
of known domains that were flagged by mistake, and ordinary requests of these. A domain counts as found where one
cluster has at least nine tenths of its prompts and at most a tenth of others.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA

from benchmarks.results_file import machine, write_results
from benchmarks.router_studies.corpora import instructions, questions
from benchmarks.routing_quality.texts import READERS
from services.shared.config import Settings
from services.shared.modeling.base_model import load_base_model
from services.shared.modeling.trunk import trunk_states
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, HELD_BACK_DOMAINS
from services.trainer_worker.gap_analysis.clusters import Space, find_clusters, on_sphere

PROJECT = Path(__file__).resolve().parents[1]
MIN_CLUSTER_SIZE = 8
NUM_PROMPTS = 90
PROMPT_CHARACTERS = 240
ENOUGH = 0.9
ORDINARY_EACH = 12
Points = NDArray[np.float64]
Find = Callable[[NDArray[np.float32], NDArray[np.float32]], list[NDArray[np.int64]]]


@dataclass(frozen=True)
class Corpus:
    """States [N, D] of prompts after one layer, by domain, and which of these are unknown."""

    states: Mapping[str, NDArray[np.float32]]
    known: Sequence[str]
    unknown: Sequence[str]


@dataclass(frozen=True)
class Traffic:
    """States of flagged and ordinary requests, and the unknown domain of each flagged one (-1: a known one)."""

    flagged_ND: NDArray[np.float32]
    ordinary_MD: NDArray[np.float32]
    truth_N: NDArray[np.int64]


@dataclass(frozen=True)
class Variant:
    """A way to cluster. The default is that of an analysis."""

    standardise: bool = True
    sphere: bool = True
    num_components: int | None = 32
    method: str = "eom"
    single: bool = False
    ordinary_each: int = ORDINARY_EACH

    def find(self, flagged_ND: NDArray[np.float32], ordinary_MD: NDArray[np.float32]) -> list[NDArray[np.int64]]:
        """Places of the flagged prompts in each cluster that is mostly theirs."""
        states_PD = np.concatenate([flagged_ND, ordinary_MD])
        space = Space.of(states_PD)
        points_PD = (states_PD - space.mean_D) / (space.scale_D if self.standardise else 1.0)
        points_PD = on_sphere(points_PD) if self.sphere else points_PD
        if self.num_components is not None:
            points_PD = PCA(min(self.num_components, *points_PD.shape), random_state=0).fit_transform(points_PD)
        labels_P = HDBSCAN(
            min_cluster_size=MIN_CLUSTER_SIZE,
            min_samples=5,
            cluster_selection_method=self.method,
            allow_single_cluster=self.single,
            copy=True,
        ).fit_predict(points_PD)
        labels_N, labels_M = labels_P[: len(flagged_ND)], labels_P[len(flagged_ND) :]
        found = [(np.flatnonzero(labels_N == label), (labels_M == label).sum()) for label in range(labels_P.max() + 1)]
        return [places for places, num in found if len(places) >= MIN_CLUSTER_SIZE and num <= len(places) / 2]


def shipped(flagged_ND: NDArray[np.float32], ordinary_MD: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """The analysis' own code."""
    space = Space.of(np.concatenate([flagged_ND, ordinary_MD]))
    return find_clusters(space.place(flagged_ND), space.place(ordinary_MD), min_cluster_size=MIN_CLUSTER_SIZE)


VARIANTS: Mapping[str, tuple[Find, int]] = {
    "**as shipped**": (shipped, ORDINARY_EACH),
    "40 ordinary requests of each known domain, not 12": (shipped, 40),
    "no ordinary requests": (shipped, 0),
    "no ordinary requests, all may be one cluster": (Variant(single=True).find, 0),
    "not standardised": (Variant(standardise=False).find, ORDINARY_EACH),
    "not on the sphere": (Variant(sphere=False).find, ORDINARY_EACH),
    "8 components": (Variant(num_components=8).find, ORDINARY_EACH),
    "all components": (Variant(num_components=None).find, ORDINARY_EACH),
    "leaves of the tree": (Variant(method="leaf").find, ORDINARY_EACH),
}


def demo_texts() -> tuple[dict[str, list[str]], Sequence[str], Sequence[str]]:
    """Held-out prompts of the demo's domains."""
    names = (*DEMO_DOMAINS, *HELD_BACK_DOMAINS)
    texts = {name: [item.prompt for item in DOMAINS[name].generate(5, NUM_PROMPTS, "held_out")] for name in names}
    return texts, DEMO_DOMAINS, HELD_BACK_DOMAINS


def real_texts(folder: Path) -> tuple[dict[str, list[str]], Sequence[str], Sequence[str]]:
    """Beginnings of real documents; unknown are those that the real-text experts are not trained on."""
    texts = {name: list(read(folder)) for name, read in READERS.items()}
    known = tuple(texts)
    texts |= {"questions": list(questions(folder)), "instructions": list(instructions(folder))}
    for name in HELD_BACK_DOMAINS:
        texts[name] = [item.text for item in DOMAINS[name].generate(5, NUM_PROMPTS, "held_out")]
    rng = np.random.default_rng(0)
    drawn = {
        name: [ones[index][:PROMPT_CHARACTERS] for index in rng.permutation(len(ones))[:NUM_PROMPTS]]
        for name, ones in texts.items()
    }
    return drawn, known, tuple(name for name in drawn if name not in known)


def read_states(base_model: str, texts: Mapping[str, Sequence[str]], layer: int) -> dict[str, NDArray[np.float32]]:
    """Means over each prompt's tokens, kept in 16 bits as the routing log does."""
    base = load_base_model(Settings(base_model=base_model, device="cpu"))
    return {
        name: np.stack(
            [
                trunk_states(base.model, torch.tensor([ids]), layer)[0].mean(dim=0).numpy().astype(np.float16)
                for ids in base.tokenizer.encode_batch(list(ones))
            ]
        ).astype(np.float32)
        for name, ones in texts.items()
    }


def draws(corpus: Corpus, *, ordinary_each: int, seeds: Sequence[int]) -> Iterator[Traffic]:
    """All unknown domains together: evenly, unevenly, few; each alone; with and without false flags."""
    num = len(corpus.unknown)
    uneven = [(50, 20, 10, 30)[index % 4] for index in range(num)]
    alone = [[40 * (index == place) for index in range(num)] for place in range(num)]
    for seed in seeds:
        for sizes in ([40] * num, uneven, [12] * num, *alone):
            for num_false in (0, 2):
                yield _draw(corpus, sizes, num_false, ordinary_each, np.random.default_rng(seed))


def _draw(
    corpus: Corpus, sizes: Sequence[int], num_false: int, ordinary_each: int, rng: np.random.Generator
) -> Traffic:
    flagged, ordinary, truth = [], [], []
    for place, (name, size) in enumerate(zip(corpus.unknown, sizes, strict=True)):
        flagged.append(rng.permutation(corpus.states[name])[:size])
        truth.append(np.full(len(flagged[-1]), place))
    for name in corpus.known:
        shuffled = rng.permutation(corpus.states[name])
        flagged.append(shuffled[:num_false])
        truth.append(np.full(num_false, -1))
        ordinary.append(shuffled[num_false : num_false + ordinary_each])
    return Traffic(np.concatenate(flagged), np.concatenate(ordinary), np.concatenate(truth))


def measure(corpus: Corpus, find: Find, ordinary_each: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Over all draws: the share of unknown domains found, mean and least precision and recall, clusters too many; the
    share found of each domain."""
    precisions, recalls, extra = [], [], []
    found: dict[str, list[bool]] = {}
    for traffic in draws(corpus, ordinary_each=ordinary_each, seeds=seeds):
        clusters = [set(places.tolist()) for places in find(traffic.flagged_ND, traffic.ordinary_MD)]
        places = sorted(set(traffic.truth_N.tolist()) - {-1})
        for place in places:
            domain = set(np.flatnonzero(traffic.truth_N == place).tolist())
            best = max(clusters, key=lambda cluster, domain=domain: len(cluster & domain), default=set())
            precisions.append(len(best & domain) / max(len(best), 1))
            recalls.append(len(best & domain) / len(domain))
            name = f"{corpus.unknown[place]}, {'alone' if len(places) == 1 else 'together'}"
            found.setdefault(name, []).append(min(precisions[-1], recalls[-1]) >= ENOUGH)
        extra.append(len(clusters) - len(places))
    both = np.minimum(precisions, recalls)
    return {
        "found": float((both >= ENOUGH).mean()),
        "precision": float(np.mean(precisions)),
        "recall": float(np.mean(recalls)),
        "worst": float(both.min()),
        "extra": float(np.mean(extra)),
        "num_domains": len(both),
        "found_by_domain": {name: float(np.mean(ones)) for name, ones in sorted(found.items())},
    }


def table(figures: Mapping[str, Any]) -> str:
    """Markdown, a table for each setting."""
    parts = []
    for setting, by_layer in figures["settings"].items():
        layers = list(by_layer)
        lines = [
            f"| {setting} | {' | '.join(f'after {layer} layers' for layer in layers)} |",
            "|---" * (len(layers) + 1) + "|",
        ]
        lines += [
            f"| {name} | {' | '.join(_cell(by_layer[layer][name]) for layer in layers)} |"
            for name in by_layer[layers[0]]
        ]
        parts.append("\n".join(lines))
        best = by_layer[layers[-1]][next(iter(VARIANTS))]["found_by_domain"]
        told = "; ".join(f"{name} {share:.2f}" for name, share in best.items())
        parts.append(f"Found as shipped, after {layers[-1]} layers: {told}.")
    return "\n\n".join(parts)


def _cell(one: Mapping[str, Any]) -> str:
    return f"{one['found']:.3f} ({one['precision']:.3f} / {one['recall']:.3f}; {one['extra']:+.2f})"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=PROJECT.parent / "shared", help="Real text and models.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = machine()
    settings = {
        "demo": (str(PROJECT / "demo" / "base"), demo_texts()),
        "real text, stories260K": (
            str(options.shared / "models" / "stories260K-hf"),
            real_texts(options.shared / "data" / "text"),
        ),
    }
    figures: dict[str, Any] = {"seeds": options.seeds, "settings": {}}
    for setting, (base_model, (texts, known, unknown)) in settings.items():
        by_layer = figures["settings"].setdefault(setting, {})
        for layer in options.layers:
            corpus = Corpus(read_states(base_model, texts, layer), known, unknown)
            by_layer[str(layer)] = {
                name: measure(corpus, find, ordinary_each, options.seeds)
                for name, (find, ordinary_each) in VARIANTS.items()
            }
            print(setting, layer, by_layer[str(layer)], flush=True)
    write_results(
        options.output / "gap_clusters",
        title="Clusters of flagged requests",
        about=(
            f"Share of unknown domains found (precision and recall of their cluster both at least {ENOUGH}); in "
            "brackets mean precision / recall; clusters too many per analysis. Unknown domains together and alone, 12 "
            "to 50 prompts each, with no and two false flags of each known domain."
        ),
        machine=started,
        table=table(figures),
        figures=figures,
    )


if __name__ == "__main__":
    main()
