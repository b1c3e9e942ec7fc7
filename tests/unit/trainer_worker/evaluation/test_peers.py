"""Peers over toy experts: they compute what they say, and their training goes on where it stopped."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from services.shared.config import RouterSettings, Settings
from services.shared.errors import JobFailed
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.router_artifact import BIGRAM_FILE, EVIDENCE_FOLDER, write_bayes_router
from services.shared.schemas.evaluation import EvaluationJobSpec, PeerName
from services.shared.training_text import Example
from services.trainer_worker.evaluation.held_out import HeldOutText
from services.trainer_worker.evaluation.peers import Peer, PeerMaker, multi_task_hyperparameters
from services.trainer_worker.evaluation.study import Study
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.progress import RunControl, TrainingProgress, TrainingStopped
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble

FILE = f"file-{'0' * 32}"
NO_TEXT = HeldOutText(domains=(), columns=(), streams=(), unknown=None)
TEXTS = {"sums": "1+1=2; 12+30=42; 7+8=15; ", "words": "a moon, a tree, a river; "}


def random_adapter(base: Path, folder: Path, *, seed: int, rank: int = 2) -> Path:
    """An adapter of random A and B on all linear layers, as PEFT writes it."""
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> LoadedBase:
    return load_base_model(Settings(base_model=str(tiny_base), device="cpu"))


@pytest.fixture(scope="module")
def subject(base: LoadedBase, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("subject")
    experts = []
    for seed, (name, text) in enumerate(TEXTS.items()):
        adapter = random_adapter(tiny_base, folder / name, seed=seed)
        evidence = build_bigram_evidence([base.tokenizer.encode(text * 8)], base.tokenizer.vocab_size)
        evidence.save(adapter / EVIDENCE_FOLDER / BIGRAM_FILE)
        experts.append((name, adapter))
    base_evidence = build_bigram_evidence([[1, 2, 3]], base.tokenizer.vocab_size)
    write_bayes_router(folder / "router", settings=RouterSettings(), base_evidence=base_evidence)
    return Subject(base, experts, folder / "router", None)


def spec(**fields: Any) -> EvaluationJobSpec:
    small = {
        "held_out": dict.fromkeys(TEXTS, FILE),
        "peers": ("arrow", "x_lora", "multi_task"),
        "training_files": dict.fromkeys(TEXTS, FILE),
        "seeds": (0,),
        "x_lora": {"num_steps": 4, "batch_size": 2, "max_length": 24},
        "multi_task": {"max_steps": 2, "batch_size": 2, "max_length": 24},
    }
    return EvaluationJobSpec.model_validate(small | fields)


@pytest.fixture
def make(subject: Subject, tmp_path: Path) -> Callable[..., Peer]:
    def make(name: PeerName, *, of: Subject = subject, should_stop: Callable[[], bool] = lambda: False) -> Peer:
        training = {domain: [Example(text * 4, None)] * 24 for domain, text in TEXTS.items()}
        progress: list[TrainingProgress] = []
        settings = Settings(base_model=of.base.name, device="cpu")
        study = Study(of, NO_TEXT, spec(), fresh_model=lambda: load_base_model(settings).model, training=training)
        peer = PeerMaker(study, RunControl(tmp_path, progress.append, should_stop)).make(name, seed=0)
        assert all(one.step <= one.total_steps for one in progress)
        return peer

    return make


def documents(base: LoadedBase) -> torch.Tensor:
    ids = base.tokenizer.encode_batch([text * 3 for text in TEXTS.values()])
    return torch.tensor([one[:30] for one in ids])


def nats_of_ensemble(subject: Subject, ids_BT: torch.Tensor, weights_BTE: torch.Tensor) -> torch.Tensor:
    with ExpertEnsemble.load(subject.base, subject.experts) as ensemble, torch.no_grad():
        return ensemble.nats(ids_BT, weights_BTE)


def nats_of(peer: Peer, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return peer.nats(ids_BT, torch.empty(*ids_BT.shape, 0))


class TestXLora:
    def test_is_our_mixture_under_the_weights_that_its_classifier_gives(
        self, make: Callable[..., Peer], subject: Subject
    ) -> None:
        peer = make("x_lora")
        ids_BT = documents(subject.base)
        classifier = peer.model.base_model.internal_xlora_classifier  # type: ignore[union-attr]
        states_BTD = subject.base.model(input_ids=ids_BT, output_hidden_states=True).hidden_states[-1]
        weights_BTE = classifier.layers(states_BTD).softmax(dim=-1).detach()  # type: ignore[union-attr,operator]

        assert weights_BTE.std() > 1e-4
        np.testing.assert_allclose(
            nats_of(peer, ids_BT), nats_of_ensemble(subject, ids_BT, weights_BTE), rtol=0, atol=1e-4
        )

    def test_trains_its_classifier_alone(self, make: Callable[..., Peer], tmp_path: Path) -> None:
        trainable = {name for name, one in make("x_lora").model.named_parameters() if one.requires_grad}

        assert trainable
        assert all("internal_xlora_classifier" in name for name in trainable)

    def test_goes_on_after_a_stop_to_the_same_classifier(
        self, make: Callable[..., Peer], tmp_path: Path, subject: Subject
    ) -> None:
        def classifier(peer: Peer) -> dict[str, torch.Tensor]:
            return {k: one.clone() for k, one in peer.model.state_dict().items() if "xlora_classifier" in k}

        uninterrupted = classifier(make("x_lora"))
        for file in sorted((tmp_path / "x_lora-0").rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        asked: list[int] = []

        def stop_in_the_second_step() -> bool:
            asked.append(1)
            return len(asked) > 2

        with pytest.raises(TrainingStopped):
            make("x_lora", should_stop=stop_in_the_second_step)
        resumed = classifier(make("x_lora"))

        assert resumed.keys() == uninterrupted.keys()
        assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)


class TestArrow:
    def test_of_an_expert_and_its_copy_is_that_expert(
        self, make: Callable[..., Peer], subject: Subject, base: LoadedBase
    ) -> None:
        (name, folder), _ = subject.experts
        twins = Subject(base, [(name, folder), ("copy", folder)], subject.router_dir, None)
        ids_BT = documents(base)

        alone = nats_of_ensemble(twins, ids_BT, torch.tensor([1.0, 0.0]).expand(*ids_BT.shape, 2))

        np.testing.assert_allclose(nats_of(make("arrow", of=twins), ids_BT), alone, rtol=0, atol=1e-4)

    def test_of_experts_of_unequal_rank_is_refused_with_the_way_out(
        self, make: Callable[..., Peer], subject: Subject, base: LoadedBase, tiny_base: Path, tmp_path: Path
    ) -> None:
        wide = random_adapter(tiny_base, tmp_path / "wide", seed=2, rank=4)
        evidence = subject.experts[0][1] / EVIDENCE_FOLDER / BIGRAM_FILE
        (wide / EVIDENCE_FOLDER).mkdir()
        (wide / EVIDENCE_FOLDER / BIGRAM_FILE).write_bytes(evidence.read_bytes())
        unequal = Subject(base, [*subject.experts, ("wide", wide)], subject.router_dir, None)

        with pytest.raises(JobFailed, match="leave arrow out of peers"):
            make("arrow", of=unequal)


class TestMultiTask:
    def test_has_the_rank_and_scaling_of_all_experts_together(self, subject: Subject) -> None:
        hyperparameters = multi_task_hyperparameters(spec(), [folder for _, folder in subject.experts])

        assert (hyperparameters.rank, hyperparameters.alpha) == (4, 8.0)
        assert {name.rsplit(".", 1)[-1] for name in hyperparameters.target_modules} >= {"q_proj", "down_proj"}

    def test_is_told_with_its_seeds_before_it_is_made(self, subject: Subject, tmp_path: Path) -> None:
        study = Study(subject, NO_TEXT, spec(seeds=(3, 4)), fresh_model=pytest.fail)

        kind = PeerMaker(study, RunControl(tmp_path, pytest.fail, pytest.fail)).kind("multi_task")

        assert (kind.name, kind.seeds) == ("multi-task LoRA, rank 4", (3, 4))
        assert "for 2 steps of 2 blocks, seeds 3, 4" in kind.about

    def test_is_trained_on_everybodys_text(self, make: Callable[..., Peer], subject: Subject) -> None:
        peer = make("multi_task")

        bare = nats_of_ensemble(subject, documents(subject.base), torch.zeros(2, 30, 2))
        assert not torch.allclose(nats_of(peer, documents(subject.base)), bare)

    def test_of_more_rank_than_is_trained_is_refused(self, subject: Subject, tmp_path: Path) -> None:
        folder = subject.experts[0][1]
        wide = shutil.copytree(folder, tmp_path / "wide")
        config = json.loads((wide / "adapter_config.json").read_text())
        (wide / "adapter_config.json").write_text(json.dumps(config | {"r": 255}))

        with pytest.raises(JobFailed, match="leave multi_task out of peers"):
            multi_task_hyperparameters(spec(), [wide, folder])
