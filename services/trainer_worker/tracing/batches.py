"""All prompts of a trace, answered batch by batch; what an interruption leaves is not answered again."""

from collections.abc import Iterator, Sequence

from services.trainer_worker.progress import RunControl, StepClock, TrainingProgress, TrainingStopped
from services.trainer_worker.tracing.generation import RecordedSequence, Sampling, answer
from services.trainer_worker.tracing.kept_batches import KeptBatches
from services.trainer_worker.tracing.recording import TokenizedPrompt
from services.trainer_worker.tracing.subject import Traced

PHASE = "answering prompts"


class Batches:
    """Prompts in their order, so many at once. Answers follow from the seed and the batch's place alone."""

    def __init__(self, prompts: Sequence[TokenizedPrompt], run: RunControl, *, batch_size: int, seed: int) -> None:
        self._batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
        self._num_prompts = len(prompts)
        self._seed = seed
        self._run = run
        self._kept = KeptBatches(run.folder)

    def answer(self, subject: Traced, *, temperature: float) -> None:
        """Those that are left. Raises TrainingStopped within a token of `should_stop()`, all whole batches kept."""
        num_done = sum(len(batch) for number, batch in enumerate(self._batches) if self._kept.has(number))
        clock, num_tokens = StepClock(num_done), 0
        for number, prompts in enumerate(self._batches):
            if self._kept.has(number):
                continue
            if self._run.should_stop():
                raise TrainingStopped("the trace was stopped")
            sampling = Sampling(temperature, self._seed + number, subject.tokenizer.eos_ids)
            sequences = answer(subject.model, prompts, subject.recorder, sampling, should_stop=self._run.should_stop)
            self._kept.keep(number, sequences)
            num_done += len(prompts)
            num_tokens += sum(len(sequence.token_ids_T) for sequence in sequences)
            self._run.on_progress(
                TrainingProgress(
                    PHASE,
                    step=num_done,
                    total_steps=self._num_prompts,
                    seconds_left=clock.seconds_left(num_done, self._num_prompts),
                    num_tokens=num_tokens,
                )
            )

    def sequences(self) -> Iterator[tuple[TokenizedPrompt, RecordedSequence]]:
        """All that is answered, in the order of prompts, a batch in memory at once."""
        for number, prompts in enumerate(self._batches):
            yield from zip(prompts, self._kept.read(number), strict=True)
