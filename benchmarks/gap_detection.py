"""Is text of no known domain told from known text? Every domain in turn plays the unknown one; demo and real text.

    python -m benchmarks.gap_detection [--settings demo 'real text'] [--seeds 0 1 2] [--shared ../shared]

A calibration job's own code, beside plain baselines and beside regressions that also read the losses of the prompt or
hidden states. On the demo, domains that it keeps back are unknown to the whole release as well. Trainings and readings
in --work are reused. Writes benchmarks/results/gap_detection-<date>.{json,md};
one of the two settings alone is named in the file's name.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from benchmarks.real_text_arguments import real_text_parser
from benchmarks.results_file import machine, write_results
from benchmarks.router_studies.pooling import table
from benchmarks.router_studies.study import Bench
from services.shared.config import RouterSettings
from services.shared.modeling.adapter_files import read_adapter
from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.lora_mixture import LoraMixture
from services.shared.modeling.router_artifact import BIGRAM_FILE, EVIDENCE_FOLDER, write_bayes_router
from services.shared.modeling.trunk import trunk_states
from services.shared.schemas.calibration import CalibrationJobSpec
from services.shared.training_text import Example
from services.trainer_worker.calibration.calibrating import Calibrating
from services.trainer_worker.calibration.detection import Doubt, detection, summary
from services.trainer_worker.calibration.drawing import draw_prompts
from services.trainer_worker.calibration.hearing import hear_prompts
from services.trainer_worker.calibration.losses import read_losses
from services.trainer_worker.calibration.prompts import Prompts
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS, HELD_BACK_DOMAINS
from services.trainer_worker.demo.experts import as_example
from services.trainer_worker.demo.subject import demo_subject
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.progress import RunControl

_ROOT = Path(__file__).parents[1]
_SETTINGS = ("demo", "real text")
_NEIGHBOURS = 5
_STATES_LAYER = 1
_VARIANTS = {
    "confidence, with hidden states": ("nearest neighbours", "Mahalanobis"),
    "confidence, with all": ("base perplexity", "mixture perplexity", "nearest neighbours", "Mahalanobis"),
}


def main() -> None:
    """Measure every setting and seed, and write the results."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.shared, _ROOT / "demo", arguments.work, arguments.seeds, arguments.trainings, _SETTINGS)
    figures = {
        name: [_measure(bench, name, seed, arguments.documents) for seed in arguments.seeds]
        for name in arguments.settings
    }
    command = f"python -m benchmarks.gap_detection --seeds {' '.join(map(str, arguments.seeds))}"
    stem = "gap_detection"
    if tuple(arguments.settings) != _SETTINGS:
        command += " --settings " + " ".join(f"'{name}'" for name in arguments.settings)
        stem += "".join(f"-{name.replace(' ', '-')}" for name in arguments.settings)
    write_results(
        arguments.results / stem,
        title="Unknown domains told from known ones",
        about=f"`{command}`. Mean over seeds, in brackets the lowest and highest seed. Prompts end where an item's "
        "answer begins (demo), or after 16 to 128 tokens (real text). FPR: known requests flagged where 95 % of the "
        "unknown are.",
        machine=machine(),
        table="\n\n".join(f"#### {name}\n\n{_table(seeds)}" for name, seeds in figures.items()),
        figures={"command": command, "settings": figures},
    )


def _measure(bench: Bench, name: str, seed: int, num_documents: int) -> dict[str, Any]:
    bench.say(f"seed {seed}: {name}")
    subject, examples = _demo(bench, seed, num_documents) if name == "demo" else _real(bench, seed)
    names = [expert for expert, _ in subject.experts]
    spec = CalibrationJobSpec(held_out=dict.fromkeys(names, f"file-{0:032x}"), max_documents=num_documents, seed=seed)
    prompts = draw_prompts(dict(enumerate(examples)), subject.base, spec, num_experts=len(names))
    work = bench.work / "gap_detection" / f"{name.replace(' ', '_')}{seed}"
    losses = read_losses(subject, prompts, RunControl(work / "readings", lambda _: None, lambda: False))
    bench.say("losses read")
    doubts = _state_doubts(subject.base, prompts) | _certainty_doubts(subject, prompts)
    calibrated = Calibrating(subject, prompts, losses, spec, doubts=doubts, variants=_VARIANTS).run()
    figures = calibrated.figures
    if name == "demo":
        figures["held_back"] = _held_back(subject, prompts, spec, calibrated.calibration, seed)
    return figures


def _demo(bench: Bench, seed: int, num: int) -> tuple[Subject, list[list[Example]]]:
    items = [
        [as_example(item) for item in DOMAINS[name].generate(100 + seed, num, "held_out")] for name in DEMO_DOMAINS
    ]
    return demo_subject(bench.demo, bench.work / "demo"), items


def _real(bench: Bench, seed: int) -> tuple[Subject, list[list[Example]]]:
    setting = bench.real(seed)
    router = setting.folder / "router"
    write_bayes_router(router, settings=RouterSettings(), base_evidence=setting.base_table)
    experts = []
    for name, folder in setting.experts:
        with_evidence = setting.folder / "experts" / name
        shutil.copytree(folder, with_evidence, dirs_exist_ok=True)
        setting.table(name).save(with_evidence / EVIDENCE_FOLDER / BIGRAM_FILE)
        experts.append((name, with_evidence))
    decode = setting.base.tokenizer.decode
    texts = [[Example(decode(ids), None) for ids in setting.held_out[name]] for name in setting.domains]
    return Subject(setting.base, experts, router, None), texts


def _held_back(
    subject: Subject, prompts: Prompts, spec: CalibrationJobSpec, calibration: Any, seed: int
) -> dict[str, Any]:
    """Domains that nobody was trained on, under the whole release; known: documents that the fit did not read."""
    fresh = {
        column: [as_example(item) for item in DOMAINS[name].generate(100 + seed, spec.max_documents, "held_out")]
        for column, name in enumerate(HELD_BACK_DOMAINS)
    }
    unknown = draw_prompts(fresh, subject.base, spec, num_experts=len(HELD_BACK_DOMAINS))
    scorer = subject.scorer()
    doubt: list[np.ndarray] = []
    for several in (unknown, prompts):
        heard = hear_prompts(scorer, subject.base, several, range(len(several)), window=spec.window)
        standardised = (heard.features_NF - np.array(calibration.means)) / np.array(calibration.scales)
        doubt.append(-(standardised @ np.array(calibration.weights)))
    return summary(
        {
            name: detection(doubt[0][unknown.columns == column], doubt[1])
            for column, name in enumerate(HELD_BACK_DOMAINS)
        }
    )


def _state_doubts(base: LoadedBase, prompts: Prompts) -> dict[str, Doubt]:
    """Distances of the prompts' mean early hidden states from those of the documents that are for the fit: cosine to
    the nearest five, and Mahalanobis to the nearest domain with shared covariance (Lee et al. 2018)."""
    states_BD = _mean_states(base, prompts)
    columns_B = prompts.columns
    # Every other document is the reference, so that no prompt is its own neighbour.
    is_reference_B = np.arange(len(prompts)) % 2 == 0
    found: dict[str, Doubt] = {}
    for name, distances in (("nearest neighbours", _neighbours), ("Mahalanobis", _mahalanobis)):
        whole_B = distances(states_BD, states_BD[is_reference_B], columns_B[is_reference_B])
        left_B = np.empty(len(prompts))
        for column in np.unique(columns_B).tolist():
            kept_B = is_reference_B & (columns_B != column)
            rows_B = columns_B == column
            left_B[rows_B] = distances(states_BD[rows_B], states_BD[kept_B], columns_B[kept_B])
        found[name] = Doubt(whole_B, left_B)
    return found


def _neighbours(states_ND: np.ndarray, known_MD: np.ndarray, _columns_M: np.ndarray) -> np.ndarray:
    distances_NM = cdist(states_ND, known_MD, "cosine")
    nearest_NK: np.ndarray = np.sort(distances_NM, axis=1)[:, 1 : _NEIGHBOURS + 1]
    return np.asarray(nearest_NK.mean(axis=1))


def _mahalanobis(states_ND: np.ndarray, known_MD: np.ndarray, columns_M: np.ndarray) -> np.ndarray:
    means = {column: known_MD[columns_M == column].mean(axis=0) for column in np.unique(columns_M).tolist()}
    centred_MD = known_MD - np.stack([means[column] for column in columns_M.tolist()])
    precision_DD = LedoitWolf(assume_centered=True).fit(centred_MD).precision_
    return np.asarray(cdist(states_ND, np.stack(list(means.values())), "mahalanobis", VI=precision_DD).min(axis=1))


def _mean_states(base: LoadedBase, prompts: Prompts) -> np.ndarray:
    rows = []
    for ids_T, cut in zip(prompts.windows.token_ids_BT, prompts.cuts_B.tolist(), strict=True):
        rows.append(trunk_states(base.model, ids_T[None, :cut].to(base.device), _STATES_LAYER)[0].mean(dim=0))
    return torch.stack(rows).float().cpu().numpy()


def _certainty_doubts(subject: Subject, prompts: Prompts) -> dict[str, Doubt]:
    """Of the mixture's own predictions: one minus their largest probability, mean over the prompt (Hendrycks & Gimpel
    2017), and their entropy at the prompt's end, where the answer's first token is drawn."""
    names = [name for name, _ in subject.experts]
    whole = _certainty(subject, prompts, names, np.arange(len(prompts)), ())
    left = whole.copy()
    for column, name in enumerate(names):
        rows = np.flatnonzero(prompts.columns == column)
        left[rows] = _certainty(subject, prompts, names, rows, (name,))
    return {
        "maximum softmax": Doubt(whole[:, 0], left[:, 0]),
        "entropy of the first token": Doubt(whole[:, 1], left[:, 1]),
    }


@torch.no_grad()
def _certainty(
    subject: Subject, prompts: Prompts, names: Sequence[str], rows: np.ndarray, without: Sequence[str]
) -> np.ndarray:
    scorer, base = subject.scorer(without=without), subject.base
    kept = [name for name in names if name not in without]
    mixture = LoraMixture.attach(base.model, num_slots=len(kept))
    folders = dict(subject.experts)
    for slot, name in enumerate(kept):
        mixture.load(slot, read_adapter(folders[name], base.model, dtype=base.dtype))
    found = np.empty((len(rows), 2))
    for place, row in enumerate(rows.tolist()):
        ids = prompts.windows.token_ids_BT[row, : int(prompts.cuts_B[row])]
        weights_TE = torch.from_numpy(scorer.weights(scorer.advance(scorer.start(), ids.tolist()))[:, :-1].copy())
        with mixture.gates(weights_TE, range(len(kept))):
            logits_TV = base.model(input_ids=ids[None], use_cache=False).logits[0].float()
        probabilities_TV = logits_TV.softmax(dim=-1)
        found[place, 0] = 1.0 - float(probabilities_TV.amax(dim=-1).mean())
        found[place, 1] = float(torch.special.entr(probabilities_TV[-1]).sum())
    for slot in range(len(kept)):
        mixture.clear(slot)
    return found


def _table(seeds: Sequence[Mapping[str, Any]]) -> str:
    methods = list(seeds[0]["detection"]["methods"])
    domains = list(seeds[0]["detection"]["methods"][methods[0]]["domains"])
    rows = [_row(method, [one["detection"]["methods"][method] for one in seeds], domains) for method in methods]
    parts = [table(["by", "AUROC, mean", "worst domain", "FPR at 95 %", *domains], rows)]
    if "held_back" in seeds[0]:
        held_back = [one["held_back"] for one in seeds]
        names = list(held_back[0]["domains"])
        row = _row("confidence", held_back, names)
        parts.append(table(["whole release", "AUROC, mean", "worst domain", "FPR at 95 %", *names], [row]))
    told = [
        ["expected calibration error, known and left-out domains", _over([one["ece"] for one in seeds])],
        ["expected calibration error, domains unknown to the fit", _over([one["detection"]["ece"] for one in seeds])],
        ["known requests flagged (5 % allowed)", _over([one["false_flags"] for one in seeds])],
        ["domain right", _over([one["classification"]["accuracy"] for one in seeds])],
        ["domain right and not flagged", _over([one["classification"]["with_unknown"] for one in seeds])],
    ]
    parts.append(table(["", "mean over seeds"], told))
    return "\n\n".join(parts)


def _row(name: str, seeds: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> list[str]:
    plain = [_over([one[field] for one in seeds]) for field in ("mean", "worst", "fpr_at_95")]
    return [name, *plain, *(_over([one["domains"][domain]["auroc"] for one in seeds]) for domain in domains)]


def _over(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def _arguments() -> argparse.Namespace:
    parser = real_text_parser("gap_detection", __doc__, seeds=[0, 1, 2], threads=1)
    parser.add_argument("--settings", nargs="+", choices=_SETTINGS, default=_SETTINGS)
    parser.add_argument("--trainings", type=int, default=3, help="of real text's experts; seeds beyond share them")
    parser.add_argument("--documents", type=int, default=120, help="of each domain")
    return parser.parse_args()


if __name__ == "__main__":
    main()
