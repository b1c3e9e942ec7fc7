"""Jobs of kind `image_cooperation`: pictures in, a network and its report out."""

from typing import Any

from sqlalchemy.orm import Session

from services.shared.database.rows import FileRow
from services.shared.errors import JobFailed
from services.shared.schemas.image_cooperation import DigitsImages, HubImages, ImageCooperationJobSpec, UploadedImages
from services.trainer_worker.image_cooperation.artifact import figures_of, write_artifact
from services.trainer_worker.image_cooperation.digits import digits_images
from services.trainer_worker.image_cooperation.hub_images import hub_images
from services.trainer_worker.image_cooperation.image_files import read_image_files
from services.trainer_worker.image_cooperation.images import ImageData, ImageSet
from services.trainer_worker.image_cooperation.recipe import recipe_of
from services.trainer_worker.image_cooperation.training import train_images
from services.trainer_worker.job_context import JobContext
from services.trainer_worker.kinds import Publish


def run_image_job(context: JobContext) -> Publish:
    """Train from the last checkpoint to the end; the report, its pictures and the weights become an artifact."""
    spec = ImageCooperationJobSpec.model_validate(context.spec)
    recipe = recipe_of(spec)
    context.enter("reading")
    data = _images_of(context, spec)
    outcome = train_images(
        data,
        recipe,
        folder=context.folder.work / "checkpoints",
        on_progress=context.report,
        should_stop=context.should_stop,
        should_keep_state=context.should_keep_state,
    )
    context.enter("reporting")
    with context.storage.stage() as folder:
        write_artifact(folder, outcome, data=data, recipe=recipe, num_examples=spec.num_routing_examples)
        digest = context.storage.publish(folder)
    figures = figures_of(outcome.history, data=data, recipe=recipe)
    measured = ("accuracy", "test_loss", "diversity", "edges", "team_size_distribution", "expert_usage_frequency")

    def publish(_session: Session) -> dict[str, Any]:
        return {"artifacts": {"experiment": digest}, "metrics": {name: figures[name] for name in measured}}

    return publish


def _images_of(context: JobContext, spec: ImageCooperationJobSpec) -> ImageData:
    match spec.data:
        case DigitsImages():
            return digits_images()
        case UploadedImages():
            train = _uploaded(context, spec.data.train)
            return ImageData(train, _uploaded(context, spec.data.test), "uploaded files")
        case HubImages():
            return hub_images(spec.data)


def _uploaded(context: JobContext, file_ids: tuple[str, ...]) -> ImageSet:
    files = []
    with context.sessions() as session:
        for file_id in file_ids:
            row = session.get(FileRow, file_id)
            path = context.storage.upload(file_id)
            if row is None or not path.is_file():
                raise JobFailed(
                    f"The file {file_id} is no longer there: upload it again and submit a new job.",
                    code="file_missing",
                )
            files.append((row.filename, path))
    return read_image_files(files)
