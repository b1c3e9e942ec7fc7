"""The base model that this worker trains for."""

from services.shared.config import Settings
from services.shared.modeling.base_fingerprint import base_fingerprint
from services.shared.vocabulary import model_name
from services.trainer_worker.releases import BaseIdentity


def configured_base(settings: Settings) -> BaseIdentity:
    """Name and fingerprint as releases state them; the name is never a path."""
    return BaseIdentity(model_name(settings.base_model), base_fingerprint(settings.base_model))
