"""Two toy experts, one of words and one of sums: routers learn whose text is whose."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.shared.config import RouterSettings
from services.shared.errors import InvalidDataset, JobFailed
from services.shared.modeling.release_scorer import ReleaseScorer
from services.shared.schemas.jobs import RouterHyperparameters
from services.shared.storage import folder_digest
from services.shared.vocabulary import GateType
from services.trainer_worker.progress import TrainingProgress, TrainingStopped
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble
from services.trainer_worker.training.router import RouterTraining, train_learned_router
from services.trainer_worker.training.spliced_documents import DocumentSplicer, split_streams
from tests.unit.trainer_worker.training.toys import Toys, sums, words

SWITCH = 60


def spliced(toys: Toys, seed: int = 1000) -> list[int]:
    """Sixty token ids of words, then forty of sums."""
    first = toys.base.tokenizer.encode(words(seed))[:SWITCH]
    second = toys.base.tokenizer.encode(sums(seed), add_special_tokens=False)[:40]
    return first + second


class TestTrainLearnedRouter:
    @pytest.mark.parametrize("router_type", list(GateType))
    def test_learns_from_the_task_alone_to_route_two_experts(
        self, toys: Toys, tmp_path: Path, router_type: GateType
    ) -> None:
        reported: list[TrainingProgress] = []

        training = train_learned_router(
            base=toys.base,
            experts=toys.experts,
            texts=toys.texts,
            settings=RouterSettings(router_type=router_type, max_experts_per_token=1),
            hyperparameters=RouterHyperparameters(num_steps=60, learning_rate=1e-2, batch_size=4, max_length=64),
            output_dir=tmp_path,
            on_progress=reported.append,
            should_stop=lambda: False,
        )

        judgement = training.judgement
        kept = (judgement.base_loss - judgement.gated_loss) / (judgement.base_loss - judgement.oracle_loss)
        assert kept > 0.8
        assert judgement.experts_per_token <= 1.0
        assert training.load_balance == pytest.approx(1.0, abs=0.5)
        assert reported[-1].phase == "evaluating"
        assert [progress.step for progress in reported if progress.phase == "training"] == list(range(1, 61))
        self.assert_routes(toys, training.router_dir)

    def assert_routes(self, toys: Toys, router_dir: Path) -> None:
        """The artifact, as serving loads it, sends words to words and sums to sums."""
        from services.shared.modeling.trunk import trunk_states

        scorer = ReleaseScorer.load(
            router_dir=router_dir, graph_dir=None, experts=toys.experts, vocab_size=toys.base.tokenizer.vocab_size
        )
        assert scorer.tap_layer == 0
        rows = []
        for seed in range(1000, 1008):
            ids = spliced(toys, seed)
            states_TD = trunk_states(toys.base.model, torch.tensor([ids]), 0)[0].numpy()
            rows.append(scorer.weights(scorer.advance(scorer.start(), ids, states_TD)))
        weights_TC = np.mean(rows, axis=0)
        of_words_C, of_sums_C = weights_TC[20:SWITCH].mean(axis=0), weights_TC[SWITCH + 20 :].mean(axis=0)
        assert of_words_C[0] > 2 * of_words_C[1]
        assert of_sums_C[1] > 2 * of_sums_C[0]

    def test_stops_within_a_step_of_being_told(self, toys: Toys, tmp_path: Path) -> None:
        reported: list[TrainingProgress] = []

        with pytest.raises(TrainingStopped):
            train_learned_router(
                base=toys.base,
                experts=toys.experts,
                texts=toys.texts,
                settings=RouterSettings(),
                hyperparameters=RouterHyperparameters(num_steps=50, batch_size=2, max_length=64),
                output_dir=tmp_path,
                on_progress=reported.append,
                should_stop=lambda: sum(progress.phase == "training" for progress in reported) >= 3,
            )

        assert reported[-1].step == 3
        assert not (tmp_path / "router").exists()

    def test_goes_on_after_a_crash_and_a_pause_to_exactly_the_router_of_an_uninterrupted_training(
        self, toys: Toys, tmp_path: Path
    ) -> None:
        def train(folder: str, **ways_to_end: Any) -> RouterTraining:
            torch.manual_seed(len(folder))  # whatever came before in the process
            arguments: dict[str, Any] = {"on_progress": lambda _: None, "should_stop": lambda: False} | ways_to_end
            return train_learned_router(
                base=toys.base,
                experts=toys.experts,
                texts=toys.texts,
                settings=RouterSettings(router_dropout=0.3),
                hyperparameters=RouterHyperparameters(num_steps=30, learning_rate=1e-2, batch_size=2, max_length=32),
                output_dir=tmp_path / folder,
                **arguments,
            )

        def crash(progress: TrainingProgress) -> None:
            if progress.step == 8 and progress.phase == "training":
                raise KeyboardInterrupt

        reported: list[int] = []

        def keep_state() -> bool:
            return bool(reported) and reported[-1] >= 13

        whole = train("whole")
        with pytest.raises(KeyboardInterrupt):
            train("parts", on_progress=crash)
        with pytest.raises(TrainingStopped):
            train("parts", on_progress=lambda progress: reported.append(progress.step), should_keep_state=keep_state)
        assert reported[:2] == [0, 7], "the crash lost the steps since the checkpoint at step 6, the pause none"
        resumed: list[int] = []
        parts = train("parts", on_progress=lambda progress: resumed.append(progress.step))

        assert resumed[1] == 15
        assert parts.judgement == whole.judgement
        assert (parts.num_steps, parts.load_balance, parts.num_overflow) == (
            whole.num_steps,
            whole.load_balance,
            whole.num_overflow,
        )
        assert folder_digest(parts.router_dir) == folder_digest(whole.router_dir)

    def test_starts_over_with_other_arguments(self, toys: Toys, tmp_path: Path) -> None:
        def num_steps_with(seed: int) -> int:
            reported: list[int] = []
            train_learned_router(
                base=toys.base,
                experts=toys.experts,
                texts=toys.texts,
                settings=RouterSettings(),
                hyperparameters=RouterHyperparameters(num_steps=2, batch_size=2, max_length=32, seed=seed),
                output_dir=tmp_path,
                on_progress=lambda progress: reported.append(progress.step) if progress.phase == "training" else None,
                should_stop=lambda: False,
            )
            return len(reported)

        assert [num_steps_with(0), num_steps_with(0), num_steps_with(1)] == [2, 0, 2]

    def test_a_loss_that_is_not_finite_ends_it_with_a_reason(self, toys: Toys, tmp_path: Path) -> None:
        with pytest.raises(JobFailed, match="lower learning_rate") as failed:
            train_learned_router(
                base=toys.base,
                experts=toys.experts,
                texts=toys.texts,
                settings=RouterSettings(z_loss_weight=1e39),
                hyperparameters=RouterHyperparameters(num_steps=200, learning_rate=1.0, batch_size=2, max_length=32),
                output_dir=tmp_path,
                on_progress=lambda _: None,
                should_stop=lambda: False,
            )

        assert failed.value.error_code == "loss_not_finite"

    def test_an_expert_without_text_is_refused(self, toys: Toys, tmp_path: Path) -> None:
        with pytest.raises(InvalidDataset, match="some text of its own"):
            train_learned_router(
                base=toys.base,
                experts=toys.experts,
                texts={"words": toys.texts["words"]},
                settings=RouterSettings(),
                hyperparameters=RouterHyperparameters(num_steps=1),
                output_dir=tmp_path,
                on_progress=lambda progress: None,
                should_stop=lambda: False,
            )

    def test_leaves_the_base_model_bare(self, toys: Toys) -> None:
        ids_BT = torch.tensor([spliced(toys)])
        before = toys.base.model(input_ids=ids_BT).logits

        with ExpertEnsemble.load(toys.base, toys.experts) as ensemble:
            assert not torch.equal(ensemble.nats(ids_BT, torch.ones(1, ids_BT.shape[1], 2)), before)

        assert torch.equal(toys.base.model(input_ids=ids_BT).logits, before)


class TestSplicedDocuments:
    def test_label_every_token_with_the_column_its_text_is_from(self) -> None:
        splicer = DocumentSplicer([[[1] * 50], [[2] * 50]], length=40, seed=0)

        batch = splicer.draw(30)

        assert torch.equal(batch.token_ids_BT - 1, batch.columns_BT)
        switches = (batch.columns_BT.diff(dim=1) != 0).sum(dim=1)
        assert set(switches.tolist()) == {0, 1}

    def test_are_a_function_of_the_seed(self) -> None:
        streams = [[list(range(100))], [list(range(100, 200))]]

        draws = [DocumentSplicer(streams, length=40, seed=seed).draw(5).token_ids_BT for seed in (0, 0, 1)]

        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])

    def test_held_out_documents_are_never_trained_on(self) -> None:
        streams = {"many": [[n] * 3 for n in range(20)], "one": [list(range(100))]}

        train, test = split_streams(streams, held_out=0.1, seed=0)

        assert len(train["many"]) == 18
        assert not {tuple(text) for text in train["many"]} & {tuple(text) for text in test["many"]}
        assert list(train["one"][0]) == list(range(90))
        assert list(test["one"][0]) == list(range(90, 100))
