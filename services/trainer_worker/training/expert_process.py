"""One of the processes that train an expert together: what `accelerate launch` starts for `expert_launch.py`.

`python -m services.trainer_worker.training.expert_process FOLDER`, with a line to the job as its standard input.
"""

import logging
import os
import sys
from pathlib import Path

from services.trainer_worker.progress import TrainingStopped
from services.trainer_worker.training.carried_error import carry_error
from services.trainer_worker.training.job_line import JobLine, end_with_the_job


def main(folder: Path) -> None:
    """Take part in the training whose inputs are in `folder`, leave there why it could not end, and end the process."""
    status = 0
    try:
        _train(folder)
    except Exception as error:
        logging.exception("the training failed")
        carry_error(error, folder)
        status = 1
    sys.stdout.flush()
    # At once: after an error, an orderly end would wait for the other processes, and the launcher ends those.
    os._exit(status)


def _train(folder: Path) -> None:
    import torch
    from accelerate import PartialState

    from services.trainer_worker.training.expert import train_expert
    from services.trainer_worker.training.processes import Processes
    from services.trainer_worker.training.training_inputs import TrainingInputs

    state = PartialState(cpu=not torch.cuda.is_available())
    processes = Processes(index=state.process_index, count=state.num_processes)
    job = JobLine() if processes.is_first else None
    inputs = TrainingInputs.read(folder)
    try:
        train_expert(
            base_model=inputs.base_model,
            train=inputs.train,
            validation=inputs.validation,
            hyperparameters=inputs.hyperparameters,
            output_dir=folder,
            on_progress=job.on_progress if job else lambda _: None,
            should_stop=lambda: False,  # the job ends the processes by itself
            should_keep_state=job.should_keep_state if job else lambda: False,
            on_checkpoint=job.on_checkpoint if job else lambda: None,
            num_threads=inputs.num_threads,
            processes=processes,
        )
    except TrainingStopped as stop:
        carry_error(stop, folder)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    end_with_the_job()
    main(Path(sys.argv[1]))
