"""TGI's and LoRAX's request as ours."""

from services.router_service.generation_request import FieldNames, GenerationRequest, Prompt, Speakers
from services.router_service.schemas.generation import GenerateParameters
from services.shared.errors import InvalidRequest
from services.shared.schemas.sampling import SamplingParameters


def read_tgi(inputs: str, parameters: GenerateParameters) -> GenerationRequest:
    """What they ask for; InvalidRequest names a parameter that would change the answer and is not offered."""
    unsupported = parameters.unsupported()
    if unsupported is not None:
        raise InvalidRequest(
            f"{unsupported[:80]} is not supported here: leave it out.",
            param=f"parameters.{unsupported[:80]}",
            code="unsupported_parameter",
        )
    return GenerationRequest(
        prompt=Prompt(text=inputs, truncate=parameters.truncate),
        speakers=Speakers(weights=parameters.fixed_experts()),
        sampling=_sampling(parameters),
        max_new_tokens=parameters.max_new_tokens,
        num_choices=_num_choices(parameters),
        prompt_logprobs=parameters.decoder_input_details,
        options=parameters,
        token_details=parameters.details,
        parameters=parameters.model_dump(mode="json", exclude_unset=True),
        names=FieldNames(),
    )


def _sampling(parameters: GenerateParameters) -> SamplingParameters:
    return SamplingParameters(
        do_sample=parameters.samples,
        temperature=1.0 if parameters.temperature is None else parameters.temperature,
        top_k=parameters.top_k,
        top_p=parameters.top_p,
        min_p=parameters.min_p,
        typical_p=parameters.typical_p,
        repetition_penalty=parameters.repetition_penalty,
        frequency_penalty=parameters.frequency_penalty,
        presence_penalty=parameters.presence_penalty,
        logit_bias=parameters.logit_bias,
        num_top_logprobs=parameters.top_n_tokens,
        seed=parameters.seed,
        stop=parameters.stop,
        ignore_eos_token=parameters.ignore_eos_token,
    )


def _num_choices(parameters: GenerateParameters) -> int:
    """The sequences of which the best is the answer: only drawn ones differ."""
    if parameters.best_of > 1 and not parameters.samples:
        raise InvalidRequest(
            "best_of draws several answers and needs sampling: set do_sample.", param="parameters.best_of"
        )
    return parameters.best_of
