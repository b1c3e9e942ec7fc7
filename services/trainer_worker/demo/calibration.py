"""The demo's calibration: its release on held-out items of its own domains, each domain's expert left out in turn."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from services.shared.schemas.calibration import CalibrationJobSpec
from services.trainer_worker.calibration.calibrating import Calibrated, Calibrating
from services.trainer_worker.calibration.drawing import draw_prompts
from services.trainer_worker.calibration.losses import read_losses
from services.trainer_worker.demo.domains import DEMO_DOMAINS, DOMAINS
from services.trainer_worker.demo.experts import as_example
from services.trainer_worker.demo.subject import demo_subject
from services.trainer_worker.evaluation.subject import Subject
from services.trainer_worker.progress import RunControl, TrainingProgress

_NO_FILE = f"file-{0:032x}"


def write_demo_calibration(
    demo_dir: Path, *, num_items: int, seed: int, on_progress: Callable[[TrainingProgress], None]
) -> None:
    """Write `calibration/`. Needs `base/`, `experts/` with exemplars, and `router/`."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        run = RunControl(work / "readings", on_progress, lambda: False)
        calibrated = calibrate_demo(demo_subject(demo_dir, work), num_items=num_items, seed=seed, run=run)
    folder = demo_dir / "calibration"
    folder.mkdir(exist_ok=True)
    calibrated.calibration.save(folder)


def calibrate_demo(subject: Subject, *, num_items: int, seed: int, run: RunControl) -> Calibrated:
    """On `num_items` held-out items of every domain, cut where their answers begin."""
    spec = CalibrationJobSpec(held_out=dict.fromkeys(DEMO_DOMAINS, _NO_FILE), max_documents=num_items, seed=seed)
    examples = {
        column: [as_example(item) for item in DOMAINS[name].generate(seed, num_items, "held_out")]
        for column, name in enumerate(DEMO_DOMAINS)
    }
    prompts = draw_prompts(examples, subject.base, spec, num_experts=len(subject.experts))
    return Calibrating(subject, prompts, read_losses(subject, prompts, run), spec).run()
