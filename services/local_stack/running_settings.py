"""The settings that one command sees while a stack runs: those of the environment, pointed at that stack."""

from pydantic import SecretStr

from services.local_stack.stack import external_database, external_redis, resolved_base_model
from services.local_stack.state_folder import StateFolder
from services.shared.config import Settings


def running_settings(state: StateFolder) -> Settings:
    """Settings with the addresses of the stack that runs in `state`, unless the environment names others."""
    settings = Settings()
    changes: dict[str, object] = {"base_model": resolved_base_model(settings.base_model)}
    endpoints = state.endpoints()
    database_url = external_database(settings) or (endpoints and endpoints.database_url)
    redis_url = external_redis(settings) or (endpoints and endpoints.redis_url)
    if database_url:
        changes["database"] = settings.database.model_copy(update={"url": SecretStr(database_url)})
    if redis_url:
        changes["redis_url"] = SecretStr(redis_url)
    if endpoints and "root" not in settings.storage.model_fields_set:
        changes["storage"] = settings.storage.model_copy(update={"root": endpoints.storage})
    return settings.model_copy(update=changes)
