"""How much one request may ask for: the settings' bounds, checked before any work is done. Pure."""

from collections.abc import Sequence

from services.router_service.generation_request import GenerationRequest
from services.shared.config import RouterServiceSettings
from services.shared.errors import InvalidRequest


def check_limits(requests: Sequence[GenerationRequest], settings: RouterServiceSettings) -> None:
    """Raise InvalidRequest naming the field that asks for too much, and the limit."""
    num_sequences = sum(request.num_sequences for request in requests)
    if num_sequences > settings.max_choices:
        names = requests[0].names
        is_ensemble = requests[0].num_sequences > requests[0].num_choices
        raise InvalidRequest(
            f"The request asks for {num_sequences} sequences; {settings.max_choices} are accepted at once.",
            param=f"{names.options}ensemble_size" if is_ensemble else names.of(names.num_choices),
        )
    for request in requests:
        _check_new_tokens(request, settings.max_new_tokens)
        _check_stop(request, settings)
        _check_bias(request, settings.max_logit_bias)


def _check_new_tokens(request: GenerationRequest, limit: int) -> None:
    if request.max_new_tokens is not None and request.max_new_tokens > limit:
        name = request.names.max_new_tokens
        raise InvalidRequest(
            f"{name} is {request.max_new_tokens}; at most {limit} new tokens are accepted.",
            param=request.names.of(name),
        )


def _check_stop(request: GenerationRequest, settings: RouterServiceSettings) -> None:
    stop = request.sampling.stop
    if len(stop) > settings.max_stop_sequences:
        raise InvalidRequest(
            f"stop has {len(stop)} strings; at most {settings.max_stop_sequences} are accepted.",
            param=request.names.of("stop"),
        )
    for index, string in enumerate(stop):
        if len(string) > settings.max_stop_characters:
            raise InvalidRequest(
                f"A stop string has {len(string)} characters; at most {settings.max_stop_characters} are accepted.",
                param=request.names.of(f"stop.{index}"),
            )


def _check_bias(request: GenerationRequest, limit: int) -> None:
    if len(request.sampling.logit_bias) > limit:
        raise InvalidRequest(
            f"logit_bias names {len(request.sampling.logit_bias)} tokens; at most {limit} are accepted.",
            param=request.names.of("logit_bias"),
        )
