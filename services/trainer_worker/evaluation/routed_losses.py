"""What a release's own router makes of held-out documents, and nothing else: enough to compare two releases."""

from typing import Any

import numpy as np

from services.shared.release_evaluation import Evaluation
from services.shared.schemas.evaluation import EvaluationJobSpec
from services.trainer_worker.evaluation.figures import domain_losses
from services.trainer_worker.evaluation.held_out import HeldOutText, documents_name
from services.trainer_worker.evaluation.release_figures import ROUTED
from services.trainer_worker.evaluation.staged_reading import StagedReading, num_batches
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.evaluation.systems import routed
from services.trainer_worker.evaluation.windows import whole_windows
from services.trainer_worker.progress import RunControl
from services.trainer_worker.training.expert_ensemble import ExpertEnsemble


def routed_losses(subject: Subject, text: HeldOutText, spec: EvaluationJobSpec, run: RunControl) -> Evaluation:
    """Losses by domain on the documents that an evaluation of `spec` draws, as it would measure them.

    `text` may have the columns of another release: they only tell domains apart. Goes on from what an interrupted
    reading left in the run's folder.
    """
    length = min(spec.max_tokens, subject.base.max_context)
    windows = {
        seed: whole_windows(text.streams, text.columns, num_per_domain=spec.max_documents, length=length, seed=seed)
        for seed in spec.seeds
    }
    weigh = routed(subject.scorer(), subject.base)
    with ExpertEnsemble.load(subject.base, subject.experts) as ensemble:
        reading = StagedReading(run, total_steps=sum(map(num_batches, windows.values())))
        losses_SD: Any = [
            domain_losses(reading.read(lambda: ensemble, f"{seed}-whole", ROUTED, drawn, weigh), drawn)
            for seed, drawn in windows.items()
        ]
    digests = {str(seed): drawn.digest for seed, drawn in windows.items()}
    losses_D = np.mean(losses_SD, axis=0)
    return Evaluation(
        losses={domain: float(loss) for domain, loss in zip(text.domains, losses_D, strict=True)},
        data=documents_name(digests, text.domains, spec),
    )
