"""Pictures of a data set of the hub, through `datasets`. No code of the data set is ever run."""

from typing import Any

from services.shared.errors import JobFailed
from services.shared.schemas.image_cooperation import HubImages
from services.trainer_worker.image_cooperation.images import ImageData, ImageSet
from services.trainer_worker.image_cooperation.parquet_images import PictureDecoder, image_columns


def hub_images(source: HubImages) -> ImageData:
    """Load both splits. Raises JobFailed when the hub cannot be had, InvalidDataset when it holds no pictures."""
    train = _split(source, source.train_split)
    return ImageData(train, _split(source, source.test_split), source.name)


def _split(source: HubImages, split: str) -> ImageSet:

    import httpx
    from datasets.exceptions import DatasetsError

    name = f"{source.name} ({split})"
    try:
        return _streamed(source, split, name)
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        raise JobFailed(
            f"The data set {name} cannot be loaded: {error}. Check the name and the connection to the hub, or upload "
            "its Parquet files.",
            code="dataset_unavailable",
        ) from error


def _streamed(source: HubImages, split: str, name: str) -> ImageSet:
    import datasets

    # Streamed: what is too large is refused once it is, and not when it has filled the disk.
    rows: Any = datasets.load_dataset(source.name, source.config, split=split, streaming=True)
    image, label = image_columns(list(next(iter(rows), {})), name=name)
    rows = rows.select_columns([image, label])
    if isinstance((rows.features or {}).get(image), datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    decoder = PictureDecoder(name)
    for row in rows:
        decoder.add(row[image], row[label])
    return decoder.finish()
