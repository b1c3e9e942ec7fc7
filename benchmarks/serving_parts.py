"""What the serving benchmarks share: random experts, a real Bayes router, an engine stepped by hand."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models
from transformers import PreTrainedModel

from services.expert_service.adapter_cache import AdapterCache
from services.expert_service.answer_text import AnswerText
from services.expert_service.engine import Engine, EngineLimits
from services.expert_service.metrics import EngineMetrics
from services.expert_service.model_runner import ModelRunner
from services.expert_service.sampling import TokenChooser
from services.expert_service.sequence import PlannedAdapter, Sequence
from services.expert_service.sequence_gate import Scorer, Scores, SequenceGate, States, Weights
from services.shared.config import RouterSettings
from services.shared.modeling.adapter_files import Adapter, LayerWeights
from services.shared.modeling.bigram_evidence import build_bigram_evidence
from services.shared.modeling.lora_mixture import LoraMixture
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.modeling.router_artifact import write_bayes_router
from services.shared.modeling.wiring import BaseShapes
from services.shared.schemas.sampling import SamplingParameters
from services.shared.schemas.sequences import AdapterReport, ExpertRef, RoutingPlan, SequenceRequest
from services.shared.tokenizer import Tokenizer
from services.shared.vocabulary import PlanMode


class BenchEngine:
    """An engine without thread, HTTP or storage."""

    def __init__(
        self, engine: Engine, runner: ModelRunner, tokenizer: Tokenizer, adapters: Mapping[str, Adapter]
    ) -> None:
        self.engine = engine
        self.runner = runner
        self._tokenizer = tokenizer
        self._adapters = adapters
        self._decoding: list[Sequence] = []

    def submit(
        self,
        name: str,
        prompt_ids: Items[int],
        *,
        max_new_tokens: int,
        fixed: Mapping[str, float] | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        """Queue a greedy sequence under fixed weights, under a router, or of the base alone."""
        names = tuple(fixed or (scorer.columns[:-1] if scorer else ()))
        plan = RoutingPlan(
            mode=PlanMode.FIXED if fixed else PlanMode.ROUTED if scorer else PlanMode.BASE,
            experts=tuple(ExpertRef(name=expert, version=1, digest=_digest(expert)) for expert in names),
            candidates=names,
            weights=dict(fixed or {}),
        )
        sampling = SamplingParameters(max_new_tokens=max_new_tokens, ignore_eos_token=True)
        sequence = Sequence(
            request=SequenceRequest(request_id=name, prompt_ids=tuple(prompt_ids), sampling=sampling, plan=plan),
            gate=SequenceGate.of(plan, scorer, lowest_layer=0),
            adapters=[PlannedAdapter(expert, _digest(expert), self._adapters[expert]) for expert in names],
            chooser=TokenChooser(sampling, vocab_size=self._tokenizer.vocab_size, device=self.runner.device),
            text=AnswerText(self._tokenizer, prompt_ids=prompt_ids, stop=()),
        )
        self._decoding.append(sequence)
        self.engine.submit(sequence)

    def step(self) -> None:
        """One step; events are made and thrown away."""
        self.engine.step()

    @property
    def num_decoding(self) -> int:
        """Sequences past their prompt."""
        return sum(bool(sequence.generated_ids) for sequence in self._decoding)

    @property
    def is_idle(self) -> bool:
        """Nothing left to do."""
        return all(sequence.finish_reason is not None for sequence in self._decoding)

    def run(self) -> None:
        """Finish everything."""
        while not self.is_idle:
            self.step()
        self._decoding.clear()


class SpreadScorer:
    """A real router whose answer is replaced: `per_token` experts, another set at every token. Its cost is included."""

    def __init__(self, scorer: ReleaseScorer, *, per_token: int) -> None:
        self._scorer = scorer
        self._per_token = per_token
        self.columns = scorer.columns
        self.tap_layer = scorer.tap_layer
        self._draws = np.random.default_rng(0)

    def start(self) -> Any:
        """As the router."""
        return self._scorer.start()

    def advance(self, state: Any, token_ids: Items[int], trunk_states_TD: States | None = None) -> Scores:
        """As the router."""
        return self._scorer.advance(state, token_ids, trunk_states_TD)

    def advance_batch(self, states: Items[Any], token_ids: Items[int], trunk_states_BD: States | None = None) -> Scores:
        """As the router."""
        return self._scorer.advance_batch(states, token_ids, trunk_states_BD)

    def weights(self, scores_TC: Scores, candidates: Items[str] | None = None) -> Weights:
        """Equal weights for the drawn experts."""
        weights_TC = self._scorer.weights(scores_TC, candidates)
        drawn_TE = self._draws.random((len(weights_TC), len(self.columns) - 1)).argsort(axis=1) < self._per_token
        return np.concatenate([drawn_TE / self._per_token, np.zeros((len(weights_TC), 1))], axis=1).astype(np.float32)


def random_adapters(model: PreTrainedModel, *, num_experts: int, rank: int) -> dict[str, Adapter]:
    """Adapters on every linear layer of the decoder stack."""
    shapes = BaseShapes.of(model)
    targets = {name: shape for name, shape in shapes.linears.items() if name.startswith(shapes.layer_stack)}
    report = AdapterReport(
        rank=rank, num_parameters=0, num_bytes=0, target_modules=(), lowest_layer=0, base_fingerprint=""
    )
    generator = torch.Generator().manual_seed(1)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * 0.02

    return {
        f"expert-{index}": Adapter(
            {
                name: LayerWeights(draw(rank, shape.num_in), draw(rank, shape.num_out).T)
                for name, shape in targets.items()
            },
            report,
        )
        for index in range(num_experts)
    }


def bayes_scorer(folder: Path, names: Items[str], vocab_size: int) -> ReleaseScorer:
    """A Bayes router over random texts of which each expert owns part of the vocabulary."""
    generator = np.random.default_rng(0)

    def texts(low: int, high: int) -> list[list[int]]:
        return [generator.integers(low, high, 512).tolist() for _ in range(40)]

    share = vocab_size // len(names)
    experts = []
    for index, name in enumerate(names):
        (folder / name / "evidence").mkdir(parents=True)
        evidence = build_bigram_evidence(texts(index * share, (index + 1) * share), vocab_size)
        evidence.save(folder / name / "evidence" / "bigram.safetensors")
        experts.append((name, folder / name))
    (folder / "router").mkdir()
    base = build_bigram_evidence(texts(3, vocab_size), vocab_size)
    write_bayes_router(folder / "router", settings=RouterSettings(), base_evidence=base)
    return ReleaseScorer.load(router_dir=folder / "router", graph_dir=None, experts=experts, vocab_size=vocab_size)


def bench_engine(
    model: PreTrainedModel,
    adapters: Mapping[str, Adapter],
    *,
    max_sequences: int,
    max_context: int,
    max_waiting: int = 64,
) -> BenchEngine:
    """An engine over `model` with a slot for every adapter."""
    mixture = LoraMixture.attach(model, num_slots=len(adapters))
    runner = ModelRunner(model, mixture, max_sequences=max_sequences, max_context=max_context)
    tokenizer = plain_tokenizer(int(model.config.vocab_size))
    engine = Engine(
        runner,
        AdapterCache(mixture, slot_bytes=2**40),
        tokenizer,
        limits=EngineLimits(max_sequences=max_sequences, max_waiting=max_waiting, prefill_step_tokens=512),
        deliver=lambda _deliveries: None,
        metrics=EngineMetrics(),
    )
    return BenchEngine(engine, runner, tokenizer, adapters)


def plain_tokenizer(vocab_size: int) -> Tokenizer:
    """A word per token: detokenisation costs what it costs."""
    return Tokenizer(plain_backend(vocab_size), vocab_size=vocab_size)


def plain_backend(vocab_size: int) -> tokenizers.Tokenizer:
    """The same for transformers."""
    backend = tokenizers.Tokenizer(
        models.WordLevel({f"\u2581w{i}": i for i in range(vocab_size)}, unk_token="\u2581w0")
    )
    backend.decoder = decoders.Metaspace()
    return backend


def _digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")
