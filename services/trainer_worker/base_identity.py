"""The base model that this worker trains for."""

from services.shared.config import Settings
from services.shared.modeling.base_model import base_fingerprint
from services.trainer_worker.releases import BaseIdentity
from services.trainer_worker.training.lora import neutral_base_name


def configured_base(settings: Settings) -> BaseIdentity:
    """Name and fingerprint as releases state them; the name is never an absolute path."""
    return BaseIdentity(neutral_base_name(settings.base_model), base_fingerprint(settings.base_model))
