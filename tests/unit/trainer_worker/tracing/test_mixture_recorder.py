"""Our own mixture: what is recorded is what the engine's gates say, and the text is the mixture's."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from services.expert_service.sequence_gate import SequenceGate, advance_gates
from services.shared.config import RouterSettings, Settings
from services.shared.modeling.base_model import LoadedBase, load_base_model
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.router_artifact import BIGRAM_FILE, EVIDENCE_FOLDER, TRUNK_FILE, write_bayes_router
from services.shared.modeling.trunk import gather_trunk_statistics, trunk_states
from services.shared.schemas.sequences import ExpertRef, RoutingPlan
from services.shared.vocabulary import PlanMode
from services.trainer_worker.tracing.generation import RecordedSequence, Sampling, answer
from services.trainer_worker.tracing.mixture_recorder import MixtureRecorder
from services.trainer_worker.tracing.recording import TokenizedPrompt
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble

TEXTS: Final = {"sums": "1+1=2; 12+30=42; 7+8=15; ", "words": "a moon, a tree, a river; ", "shouts": "OH! HEY! YOU! "}
SAMPLED: Final = Sampling(temperature=1.0, seed=1, eos_ids=frozenset({2}))
GREEDY: Final = Sampling(temperature=0.0, seed=0, eos_ids=frozenset())


@pytest.fixture(scope="module", name="base")
def load_base(tiny_base: Path) -> LoadedBase:
    return load_base_model(Settings(base_model=str(tiny_base), device="cpu"))


@pytest.fixture(scope="module", name="folder")
def make_release(base: LoadedBase, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts with both kinds of evidence, and a router that reads pairs alone, and one that reads states too."""
    folder = tmp_path_factory.mktemp("release")
    streams = {name: base.tokenizer.encode(text * 8) for name, text in TEXTS.items()}
    vocab_size = base.tokenizer.vocab_size
    for seed, (name, stream) in enumerate(streams.items()):
        torch.manual_seed(seed)
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config).save_pretrained(str(folder / name))
        build_bigram_evidence([stream], vocab_size).save(folder / name / EVIDENCE_FOLDER / BIGRAM_FILE)
        statistics = gather_trunk_statistics(base.model, [stream], tap_layer=1)
        statistics.save(folder / name / EVIDENCE_FOLDER / TRUNK_FILE)
    pairs = build_bigram_evidence([base.tokenizer.encode("once; 1 OH")], vocab_size)
    states = gather_trunk_statistics(base.model, list(streams.values()), tap_layer=1)
    write_bayes_router(folder / "pairs", settings=RouterSettings(), base_evidence=pairs)
    write_bayes_router(folder / "states", settings=RouterSettings(tap_layer=1), base_evidence=pairs, base_trunk=states)
    return folder


def scorer_of(folder: Path, base: LoadedBase, router: str) -> ReleaseScorer:
    return ReleaseScorer.load(
        router_dir=folder / router,
        graph_dir=None,
        experts=[(name, folder / name) for name in TEXTS],
        vocab_size=base.tokenizer.vocab_size,
    )


@contextmanager
def recorder_of(
    folder: Path, base: LoadedBase, router: str = "pairs", *, max_candidates: int = 16
) -> Iterator[tuple[MixtureRecorder, ExpertEnsemble]]:
    with ExpertEnsemble.load(base, [(name, folder / name) for name in TEXTS]) as ensemble:
        yield MixtureRecorder(ensemble, scorer_of(folder, base, router), max_candidates=max_candidates), ensemble


def prompts_of(base: LoadedBase) -> list[TokenizedPrompt]:
    texts = ("1+1=2; 12", "a tree", "OH! a moon, 7")
    return [
        TokenizedPrompt(str(number), "any", text, base.tokenizer.encode(text), max_tokens=8 - number)
        for number, text in enumerate(texts)
    ]


def dense(sequence: RecordedSequence, num_columns: int) -> np.ndarray:
    """weights_TC by column."""
    experts_TK, weights_TK = sequence.layers[0]
    weights_TC = np.zeros((len(experts_TK), num_columns + 1), dtype=np.float32)
    np.put_along_axis(weights_TC, experts_TK.astype(np.int64), weights_TK, axis=1)  # nobody's goes to the last one
    return weights_TC[:, :-1]


def plan_of(candidates: tuple[str, ...]) -> RoutingPlan:
    experts = tuple(ExpertRef(name=name, version=1, digest="0" * 64) for name in TEXTS)
    return RoutingPlan(
        mode=PlanMode.ROUTED, release="release-1", experts=experts, candidates=candidates, router="0" * 64
    )


class TestMixture:
    @pytest.mark.parametrize("router", ["pairs", "states"])
    def test_weights_are_those_that_the_engine_would_use(self, base: LoadedBase, folder: Path, router: str) -> None:
        prompts, scorer = prompts_of(base), scorer_of(folder, base, router)
        with recorder_of(folder, base, router) as (recorder, _):
            sequences = answer(base.model, prompts, recorder, SAMPLED)

        for sequence, prompt in zip(sequences, prompts, strict=True):
            ids, num_prompt = sequence.token_ids_T.tolist(), len(prompt.token_ids)
            gate = SequenceGate.of(plan_of(tuple(TEXTS)), scorer)
            states_TD = (
                trunk_states(base.model, torch.tensor([ids]), 1)[0].float().numpy() if router == "states" else None
            )
            expected = [*gate.advance(ids[:num_prompt], states_TD[:num_prompt] if states_TD is not None else None)]
            for place in range(num_prompt, len(ids)):
                states_1D = states_TD[place : place + 1] if states_TD is not None else None
                expected += advance_gates([gate], [ids[place]], states_1D)
            np.testing.assert_allclose(dense(sequence, len(scorer.columns)), expected, atol=1e-5)

    @pytest.mark.parametrize("router", ["pairs", "states"])
    def test_text_is_what_the_mixture_says_under_these_weights(
        self, base: LoadedBase, folder: Path, router: str
    ) -> None:
        with recorder_of(folder, base, router) as (recorder, ensemble):
            sequences = answer(base.model, prompts_of(base), recorder, GREEDY)
            for sequence in sequences:
                ids_1T = torch.from_numpy(sequence.token_ids_T)[None]
                weights_1TE = torch.from_numpy(dense(sequence, len(TEXTS) + 1)[None, :, :-1])
                with torch.inference_mode():
                    logits_TV = ensemble.logits(ids_1T, weights_1TE)[0]
                answered = sequence.token_ids_T[sequence.num_prompt_tokens :]
                likeliest = logits_TV[sequence.num_prompt_tokens - 1 : -1].argmax(dim=-1).numpy()
                np.testing.assert_array_equal(answered, likeliest)

    def test_has_one_layer_with_the_base_model_behind_the_experts(self, base: LoadedBase, folder: Path) -> None:
        with recorder_of(folder, base) as (recorder, _):
            sequences = answer(base.model, prompts_of(base), recorder, GREEDY)

        assert recorder.num_experts == {0: 4}
        assert {tuple(sequence.layers) for sequence in sequences} == {(0,)}
        for sequence in sequences:
            np.testing.assert_allclose(sequence.layers[0].weights.sum(axis=1), 1.0, atol=1e-6)

    def test_of_many_experts_only_the_prompts_candidates_speak(self, base: LoadedBase, folder: Path) -> None:
        with recorder_of(folder, base, max_candidates=1) as (recorder, _):
            sequences = answer(base.model, prompts_of(base), recorder, GREEDY)

        for sequence in sequences:
            assert len(set(sequence.layers[0].experts.ravel().tolist()) - {-1, 3}) <= 1

    def test_the_base_model_is_bare_again_afterwards(self, base: LoadedBase, folder: Path) -> None:
        ids_1T = torch.tensor([[1, 50, 60, 70]])
        with torch.inference_mode():
            before = base.model(input_ids=ids_1T).logits
            with recorder_of(folder, base) as (recorder, _):
                answer(base.model, prompts_of(base), recorder, GREEDY)
            assert torch.equal(base.model(input_ids=ids_1T).logits, before)
