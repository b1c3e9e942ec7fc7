"""OpenAI's requests as ours."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from services.router_service.dependencies import Resources
from services.router_service.generation_request import FieldNames, GenerationRequest, Prompt, Speakers
from services.router_service.model_names import FINE_TUNED, expert_model, read_fine_tuned, speakers_of, unknown_model
from services.router_service.schemas.openai_requests import ChatRequest, CompletionRequest, Message, TextRequest
from services.shared.errors import AmoeError, InvalidRequest, NotFound, PromptTooLong
from services.shared.schemas.sampling import SamplingParameters
from services.shared.vocabulary import model_name

_SEEDS: Final = 2**63
_LONGEST_SHOWN: Final = 80


def base_name(resources: Resources) -> str:
    """The base model's name, without where it lies."""
    hosted = resources.replicas.base
    return model_name(hosted.name if hosted else resources.settings.base_model)


async def read_chat(body: ChatRequest, resources: Resources) -> GenerationRequest:
    """What a chat asks for; raises what the caller must be told before any work is done."""
    _refuse_unsupported(body)
    speakers = await _speakers(body, resources)
    limit = resources.settings.router_service.max_messages
    if len(body.messages) > limit:
        raise InvalidRequest(f"The chat has {len(body.messages)} messages; {limit} are accepted.", param="messages")
    text = await resources.reader.chat_text([_turn(message) for message in body.messages])
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return GenerationRequest(
        prompt=Prompt(text=text, add_special_tokens=False),
        speakers=speakers,
        sampling=_sampling(body, num_top_logprobs=body.top_logprobs),
        max_new_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        num_choices=body.n,
        options=body.routing,
        token_details=body.routing.details,
        parameters=_logged(body),
        names=FieldNames(prompt="messages", sampling="", max_new_tokens=name, num_choices="n", options="routing."),
    )


async def read_completion(body: CompletionRequest, resources: Resources) -> list[GenerationRequest]:
    """What a completion asks for, one request per prompt."""
    _refuse_unsupported(body)
    if body.stream and body.echo and body.logprobs is not None:
        raise InvalidRequest(
            "echo with logprobs is not possible while streaming: the prompt's come at the end.",
            param="logprobs",
            code="unsupported_parameter",
        )
    speakers = await _speakers(body, resources)
    sampling = _sampling(body, num_top_logprobs=body.logprobs or 0)
    return [
        GenerationRequest(
            prompt=prompt_of(prompt, resources, param="prompt"),
            speakers=speakers,
            sampling=sampling,
            # Without new tokens there would be nothing to wait for: one is made and left out of the answer.
            max_new_tokens=max(1, body.max_tokens),
            num_choices=body.n,
            prompt_logprobs=body.echo and body.logprobs is not None,
            options=body.routing,
            token_details=body.routing.details,
            parameters=_logged(body),
            names=FieldNames(
                prompt="prompt", sampling="", max_new_tokens="max_tokens", num_choices="n", options="routing."
            ),
        )
        for prompt in body.prompt
    ]


@contextmanager
def openai_words(model: str) -> Iterator[None]:
    """Inside, errors take the codes that OpenAI's clients look for."""
    try:
        yield
    except PromptTooLong as error:
        raise InvalidRequest(error.message, param=error.param, code="context_length_exceeded") from error
    except NotFound as error:
        raise _in_openais_words(error, model) from error


def _in_openais_words(error: NotFound, model: str) -> AmoeError:
    if error.error_code == "release_not_found":
        return unknown_model(model)
    if error.error_code == "expert_not_found":
        return NotFound(error.message, param="routing.experts", code=error.error_code)
    return error


def _refuse_unsupported(body: TextRequest) -> None:
    name = body.unsupported()
    if name is not None:
        shown = name[:_LONGEST_SHOWN]
        raise InvalidRequest(f"{shown} is not supported here: leave it out.", param=shown, code="unsupported_parameter")


async def speakers_of_model(model: str, resources: Resources) -> Speakers:
    """Who speaks when `model` is asked for; NotFound for a name that stands for nothing."""
    base = base_name(resources)
    if model.startswith(FINE_TUNED):
        return await _fine_tuned_speaker(model, base, resources)
    return await resources.catalog.look_up(lambda now: speakers_of(model, base=base, registered=now.registered))


async def _fine_tuned_speaker(model: str, base: str, resources: Resources) -> Speakers:
    name = read_fine_tuned(model, base=base)
    found = await resources.fine_tuned.find(name)
    if found is None:
        raise unknown_model(model)
    if found.is_registered:
        # An expert that was retired speaks under none of its names.
        await resources.catalog.look_up(
            lambda now: speakers_of(expert_model(base, name.expert), base=base, registered=now.registered)
        )
    return Speakers(weights={name.expert: 1.0}, versions={name.expert: found.version})


async def _speakers(body: TextRequest, resources: Resources) -> Speakers:
    speakers = await speakers_of_model(body.model, resources)
    if body.routing.experts is None:
        return speakers
    if speakers.weights is not None:
        raise InvalidRequest(
            f"{body.model[:_LONGEST_SHOWN]!r} names who speaks, and so does routing.experts: give one of them.",
            param="routing.experts",
        )
    return Speakers(weights=body.routing.experts, release=speakers.release)


def _sampling(body: TextRequest, *, num_top_logprobs: int) -> SamplingParameters:
    return SamplingParameters(
        do_sample=body.temperature > 0.0 and body.top_p > 0.0,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p or None,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=body.logit_bias,
        num_top_logprobs=num_top_logprobs,
        seed=None if body.seed is None else body.seed % _SEEDS,
        stop=body.stop,
        ignore_eos_token=body.ignore_eos,
    )


def _turn(message: Message) -> dict[str, Any]:
    """A message as chat templates know it: most have not heard of developers."""
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": message.content, **({"name": message.name} if message.name else {})}


def prompt_of(given: str | tuple[int, ...], resources: Resources, *, param: str) -> Prompt:
    """A text, or token ids with the text that they stand for."""
    if isinstance(given, str):
        return Prompt(text=given)
    return Prompt(text=resources.reader.text_of(given, param=param), token_ids=given)


def _logged(body: TextRequest) -> Mapping[str, Any]:
    """The request as the routing log keeps it; its text has a column of its own."""
    return body.model_dump(mode="json", exclude_unset=True, exclude={"messages", "prompt"})
