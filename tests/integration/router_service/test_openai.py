"""`/v1` as OpenAI's own client speaks it, over a real socket, with a replica that can be told to fail."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient

from services.shared.errors import Conflict, ExpertServiceFailed, Overloaded
from services.shared.vocabulary import PlanMode
from tests.integration.router_service.replica_double import FINGERPRINT, MAX_CONTEXT, ReplicaDouble
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

MATH = "Tom has 12 apples and buys 5 more. How many"
CHAT: list[Any] = [{"role": "user", "content": MATH}]
ANSWER = "one two three four five six seven eight"


@pytest.fixture(name="ai")
def openai_client(router_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(name="patient")
def client_that_retries(router_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router_url}/v1", api_key="unused", max_retries=2) as client:
        yield client


@pytest.fixture(name="async_ai")
async def async_openai_client(router_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{router_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def routing_of(choice: Any) -> dict[str, Any]:
    """Our own part of a choice, which the client keeps though it does not know it."""
    routing: dict[str, Any] = choice.model_extra["routing"]
    return routing


class TestChat:
    def test_an_answer_says_who_wrote_it(self, three_experts: str, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        completion = ai.chat.completions.create(model="adaptive-moe", messages=CHAT, max_tokens=4)

        [choice] = completion.choices
        assert completion.id.startswith("chatcmpl-")
        assert completion.model == "adaptive-moe"
        assert completion.system_fingerprint == f"fp_{FINGERPRINT[:12]}"
        assert completion._request_id
        assert choice.message.role == "assistant"
        assert ANSWER.startswith(choice.message.content or "-")
        assert choice.finish_reason == "length"
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 4
        assert completion.usage.prompt_tokens == len(double.requests[-1].prompt_ids)
        assert routing_of(choice)["release"] == three_experts
        assert [part["expert"] for part in routing_of(choice)["attribution"]] == ["math", "base"]

    def test_the_template_writes_the_prompt_once(self, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        messages: list[Any] = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "12 + 5"}]},
        ]

        ai.chat.completions.create(model="adaptive-moe", messages=messages, max_tokens=1)

        prompt = double.tokenizer.decode(double.requests[-1].prompt_ids, skip_special_tokens=False)
        assert prompt == "<s>system: Be brief.\nuser: 12 + 5\nassistant:"

    @pytest.mark.parametrize("details", [False, True])
    def test_a_stream_adds_up_to_the_whole(self, three_experts: str, ai: openai.OpenAI, details: bool) -> None:
        asked: dict[str, Any] = {"model": "adaptive-moe", "messages": CHAT, "max_tokens": 5}
        whole = ai.chat.completions.create(**asked)

        stream = ai.chat.completions.create(
            **asked,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=details,
            extra_body={"routing": {"details": details}},
        )
        chunks = list(stream)

        *told, counts = chunks
        choices = [chunk.choices[0] for chunk in told]
        assert [chunk.usage for chunk in told] == [None] * len(told)
        assert counts.choices == []
        assert counts.usage == whole.usage
        assert choices[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
        assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["length"]
        assert routing_of(choices[-1])["attribution"] == routing_of(whole.choices[0])["attribution"]
        weights = [routing_of(choice)["weights"] for choice in choices[1:-1] if "routing" in (choice.model_extra or {})]
        assert weights == ([{"math": 0.75, "base": 0.25}] * 5 if details else [])
        assert all((choice.logprobs is not None) is details for choice in choices[1:-1])

    def test_log_probabilities_have_text_and_bytes(self, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        completion = ai.chat.completions.create(
            model="adaptive-moe", messages=CHAT, max_tokens=3, logprobs=True, top_logprobs=2
        )

        logprobs = completion.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert double.requests[-1].sampling.num_top_logprobs == 2
        assert "".join(token.token for token in logprobs.content) == completion.choices[0].message.content
        for token in logprobs.content:
            assert bytes(token.bytes or []).decode() == token.token
            assert [top.logprob for top in token.top_logprobs] == [-0.5, -1.5]
            assert token.top_logprobs[0].token == token.token

    @pytest.mark.parametrize("stream", [False, True])
    def test_n_answers_are_n_sequences_with_seeds_of_their_own(
        self, three_experts: str, client: httpx.Client, ai: openai.OpenAI, double: ReplicaDouble, stream: bool
    ) -> None:
        asked: dict[str, Any] = {"model": "adaptive-moe", "messages": CHAT, "max_tokens": 3, "n": 3, "seed": 5}

        if stream:
            chunks = list(ai.chat.completions.create(**asked, stream=True))
            ended = [chunk.choices[0] for chunk in chunks if chunk.choices[0].finish_reason]
            texts = [
                "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)
                for index in range(3)
            ]
            ids = [routing_of(choice)["request_id"] for choice in sorted(ended, key=lambda choice: choice.index)]
        else:
            choices = ai.chat.completions.create(**asked).choices
            assert [choice.index for choice in choices] == [0, 1, 2]
            texts = [choice.message.content or "" for choice in choices]
            ids = [routing_of(choice)["request_id"] for choice in choices]

        assert len(set(texts)) == 1
        assert ANSWER.startswith(texts[0])
        assert sorted(request.sampling.seed or 0 for request in double.requests) == [5, 6, 7]
        assert ids == [ids[0], f"{ids[0]}-1", f"{ids[0]}-2"]
        for request_id in ids:
            assert client.get(f"/requests/{request_id}").status_code == 200

    def test_sampling_reaches_the_replica(self, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        ai.chat.completions.create(
            model="adaptive-moe",
            messages=CHAT,
            max_completion_tokens=2,
            temperature=0.5,
            top_p=0.9,
            frequency_penalty=0.5,
            presence_penalty=-0.5,
            logit_bias={"50": 10},
            stop="zzz",
            seed=-1,
            extra_body={"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
        )

        sampling = double.requests[-1].sampling
        assert (sampling.do_sample, sampling.temperature, sampling.top_p, sampling.top_k) == (True, 0.5, 0.9, 7)
        assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
        assert (sampling.logit_bias, sampling.stop, sampling.min_p) == ({50: 10.0}, ("zzz",), 0.1)
        assert (sampling.max_new_tokens, sampling.seed, sampling.ignore_eos_token) == (2, 2**63 - 1, True)

    def test_temperature_0_is_greedy_and_1_is_not(self, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        for temperature in (0, 1):
            ai.chat.completions.create(model="adaptive-moe", messages=CHAT, max_tokens=1, temperature=temperature)

        assert [request.sampling.do_sample for request in double.requests] == [False, True]

    async def test_the_asynchronous_client_streams_too(
        self, three_experts: str, async_ai: openai.AsyncOpenAI, double: ReplicaDouble
    ) -> None:
        stream = await async_ai.chat.completions.create(
            model="adaptive-moe", messages=CHAT, max_tokens=6, stream=True, n=2
        )
        texts = ["", ""]
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""

        assert texts[0] == texts[1]
        assert ANSWER.startswith(texts[0])


class TestCompletions:
    def test_a_text_goes_on(self, three_experts: str, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        completion = ai.completions.create(model="adaptive-moe", prompt=MATH)

        assert completion.id.startswith("cmpl-")
        assert completion.object == "text_completion"
        assert double.requests[-1].sampling.max_new_tokens == 16
        assert ANSWER.startswith(completion.choices[0].text)
        assert routing_of(completion.choices[0])["release"] == three_experts

    def test_every_form_of_prompt(self, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        ids = double.tokenizer.encode("12 + 5")
        prompts: list[Any] = ["12 + 5", ["12 + 5", "3 + 4"], ids, [ids, ids[:2]]]
        for prompt in prompts:
            double.requests.clear()

            completion = ai.completions.create(model="adaptive-moe", prompt=prompt, max_tokens=2, n=2)

            num_prompts = 2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
            assert [choice.index for choice in completion.choices] == list(range(2 * num_prompts))
            assert sum(list(request.prompt_ids) == ids for request in double.requests) == 2
            assert completion.usage is not None
            distinct = {request.prompt_ids for request in double.requests}
            assert completion.usage.prompt_tokens == sum(map(len, distinct))
            assert completion.usage.completion_tokens == 2 * len(completion.choices)

    def test_the_prompt_is_put_before_and_scored(self, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        completion = ai.completions.create(
            model="adaptive-moe", prompt="12 + 5", max_tokens=3, echo=True, logprobs=2, temperature=0
        )

        [choice] = completion.choices
        logprobs = choice.logprobs
        assert logprobs is not None
        assert choice.text.startswith("12 + 5one")
        assert "".join(logprobs.tokens or []) == choice.text
        for token, offset in zip(logprobs.tokens or [], logprobs.text_offset or [], strict=True):
            assert choice.text[offset:].startswith(token)
        num_prompt = len(double.requests[-1].prompt_ids)
        assert logprobs.token_logprobs is not None
        assert logprobs.top_logprobs is not None
        assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
        assert logprobs.token_logprobs[1:num_prompt] == [-1.0] * (num_prompt - 1)
        assert len(logprobs.top_logprobs[-1]) == 2

    def test_without_new_tokens_only_the_prompt_is_scored(self, ai: openai.OpenAI) -> None:
        completion = ai.completions.create(model="adaptive-moe", prompt="12 + 5", max_tokens=0, echo=True, logprobs=1)

        assert completion.choices[0].text == "12 + 5"
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 0

    def test_a_stream_of_several_prompts(self, ai: openai.OpenAI) -> None:
        chunks = list(
            ai.completions.create(
                model="adaptive-moe", prompt=["12", "3"], max_tokens=3, stream=True, echo=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip

        texts = ["", ""]
        for chunk in chunks[:-1]:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert [text[:5] for text in texts] == ["12one", "3one "]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 6

    def test_offsets_go_on_from_chunk_to_chunk(self, ai: openai.OpenAI) -> None:
        text, starts = "", []
        for chunk in ai.completions.create(model="adaptive-moe", prompt="12", max_tokens=4, stream=True, logprobs=1):
            [choice] = chunk.choices
            if choice.logprobs is not None:
                starts.append((choice.logprobs.text_offset or [])[0] == len(text))
            text += choice.text

        assert starts == [True] * 4


class TestModels:
    def test_all_are_listed_and_every_listed_one_answers(
        self, three_experts: str, registry: Any, ai: openai.OpenAI, double: ReplicaDouble
    ) -> None:
        staged = registry.release("math", activate=False)

        models = {model.id: model for model in ai.models.list()}

        assert list(models) == [
            "adaptive-moe", "double", staged, three_experts, "double:code", "double:math", "double:story"
        ]  # fmt: skip
        assert "/" not in json.dumps([model.model_dump() for model in models.values()])
        modes = {}
        for name in models:
            assert ai.models.retrieve(name).id == name
            completion = ai.completions.create(model=name, prompt=MATH, max_tokens=1)
            modes[name] = (double.requests[-1].plan.mode, double.requests[-1].plan.release)
            assert completion.model == name
        assert modes["adaptive-moe"] == (PlanMode.ROUTED, three_experts)
        assert modes[staged] == (PlanMode.ROUTED, staged)
        assert modes["double"][0] == PlanMode.BASE
        assert modes["double:code"][0] == PlanMode.FIXED

    def test_a_page_at_a_time(self, three_experts: str, client: httpx.Client) -> None:
        first = client.get("/v1/models", params={"limit": 2}).json()
        rest = client.get("/v1/models", params={"after": first["data"][-1]["id"]}).json()

        assert (first["object"], first["has_more"], rest["has_more"]) == ("list", True, False)
        assert len(rest["data"]) == 4
        assert client.get("/v1/models", params={"after": "nothing"}).status_code == 404

    @pytest.mark.parametrize("model", ["gpt-4", "double:nobody", "release-999", "release-99999999999", "../../etc"])
    def test_an_unknown_model_is_not_found(self, three_experts: str, ai: openai.OpenAI, model: str) -> None:
        for ask in (
            lambda: ai.chat.completions.create(model=model, messages=CHAT),
            lambda: ai.completions.create(model=model, prompt="x", stream=True),
            lambda: ai.models.retrieve(model),
        ):
            with pytest.raises(openai.NotFoundError) as raised:
                ask()
            assert (raised.value.code, raised.value.param) == ("model_not_found", "model")

    def test_experts_with_weights_in_place_of_a_model(
        self, three_experts: str, ai: openai.OpenAI, double: ReplicaDouble
    ) -> None:
        experts = {"code": 0.5, "math": 0.25}

        ai.completions.create(model="adaptive-moe", prompt="x", extra_body={"routing": {"experts": experts}})

        assert double.requests[-1].plan.weights == experts
        for model, code in (("double:math", "invalid_request"), ("adaptive-moe", "expert_not_found")):
            with pytest.raises(openai.APIStatusError) as raised:
                ai.completions.create(model=model, prompt="x", extra_body={"routing": {"experts": {"mth": 1.0}}})
            assert (raised.value.code, raised.value.param) == (code, "routing.experts")


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "param", "code"),
        [
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
            ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
            ({"audio": {"voice": "a", "format": "mp3"}}, "audio", "unsupported_parameter"),
            ({"max_tokens": 100_000}, "max_tokens", "invalid_request"),
            ({"max_completion_tokens": MAX_CONTEXT}, "messages", "context_length_exceeded"),
            ({"temperature": 3}, "temperature", "invalid_request"),
            ({"top_logprobs": 3}, None, "invalid_request"),
            ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_request"),
            ({"n": 17}, "n", "invalid_request"),
            ({"n": 0}, "n", "invalid_request"),
            ({"stop": ["a"] * 17}, "stop", "invalid_request"),
            ({"stop": "a" * 300}, "stop.0", "invalid_request"),
            ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_request"),
            ({"messages": []}, "messages", "invalid_request"),
            ({"messages": CHAT * 1025}, "messages", "invalid_request"),
            ({"extra_body": {"routing": {"release": "x"}}}, "routing.release", "invalid_request"),
        ],
    )
    def test_a_bad_request_names_the_field(
        self, three_experts: str, ai: openai.OpenAI, fields: dict[str, Any], param: str | None, code: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            ai.chat.completions.create(**{"model": "adaptive-moe", "messages": CHAT, **fields})

        assert (raised.value.param, raised.value.code) == (param, code)
        assert raised.value.request_id

    def test_token_ids_must_be_the_tokenizers(self, ai: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match=r"0\.\.") as raised:
            ai.completions.create(model="adaptive-moe", prompt=[5, 100_000])

        assert raised.value.param == "prompt"

    def test_a_full_replica_is_retried_when_it_says_so_and_then_told(
        self, patient: openai.OpenAI, double: ReplicaDouble
    ) -> None:
        double.refusal = Overloaded("Full.", retry_after_s=1)

        started_at = time.monotonic()
        with pytest.raises(openai.RateLimitError) as raised:
            patient.chat.completions.create(model="adaptive-moe", messages=CHAT)

        assert raised.value.response.headers["retry-after"] == "1"
        assert 2 <= time.monotonic() - started_at < 20

    def test_a_conflict_is_not_retried(self, patient: openai.OpenAI, double: ReplicaDouble) -> None:
        double.refusal = Conflict("The artifact is damaged.", code="artifact_damaged")

        with pytest.raises(openai.ConflictError) as raised:
            patient.chat.completions.create(model="adaptive-moe", messages=CHAT)

        assert raised.value.code == "artifact_damaged"
        assert raised.value.response.headers["x-should-retry"] == "false"
        assert raised.value.response.request.headers.get("x-stainless-retry-count", "0") == "0"

    def test_adapters_cannot_be_loaded_from_disk_unless_a_folder_is_set(self, client: httpx.Client) -> None:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            assert client.post(path, json={"lora_name": "x", "lora_path": "x"}).status_code == 404

    def test_a_failing_replica_is_a_server_error(self, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        double.refusal = ExpertServiceFailed("It broke.")

        with pytest.raises(openai.InternalServerError):
            ai.chat.completions.create(model="adaptive-moe", messages=CHAT)

    @pytest.mark.parametrize("n", [1, 3])
    def test_a_stream_that_breaks_ends_with_an_error(self, ai: openai.OpenAI, double: ReplicaDouble, n: int) -> None:
        double.error_after_tokens = 2

        stream = ai.chat.completions.create(model="adaptive-moe", messages=CHAT, stream=True, n=n)
        with pytest.raises(openai.APIError, match="out of memory") as raised:
            list(stream)

        assert raised.value.code == "out_of_memory"

    def test_one_choice_that_cannot_begin_ends_the_others(self, ai: openai.OpenAI, double: ReplicaDouble) -> None:
        double.pause_s = 0.5
        double.num_before_full = 2

        with pytest.raises(openai.RateLimitError):
            ai.chat.completions.create(model="adaptive-moe", messages=CHAT, n=4)

        wait_until(lambda: double.num_open == 0)

    def test_a_client_that_leaves_ends_all_its_choices(self, client: httpx.Client, double: ReplicaDouble) -> None:
        double.pause_s = 5.0

        # Not OpenAI's client: it reads a stream that it leaves to its end.
        with client.stream("POST", "/v1/chat/completions", json={"messages": CHAT, "stream": True, "n": 3}) as stream:
            next(stream.iter_lines())
            # The first line, the role, does not wait for the first token.
            wait_until(lambda: double.num_open == 3)

        wait_until(lambda: double.num_open == 0)
        wait_until(lambda: "amoe_requests_in_flight 0.0" in client.get("/metrics").text)
        assert double.num_cancelled == 3


class TestHuggingFaceClient:
    def test_chat(self, three_experts: str, router_url: str) -> None:
        client = InferenceClient(model=router_url)

        output = client.chat_completion(CHAT, max_tokens=3, seed=1)

        assert ANSWER.startswith(output.choices[0].message.content or "-")
        assert output.usage.completion_tokens == 3

    def test_chat_as_a_stream(self, three_experts: str, router_url: str) -> None:
        client = InferenceClient(model=router_url)

        chunks = list(client.chat_completion(CHAT, max_tokens=3, stream=True))

        assert ANSWER.startswith("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
        assert chunks[-1].choices[0].finish_reason == "length"

    def test_chat_by_the_name_of_a_model(self, three_experts: str, router_url: str, double: ReplicaDouble) -> None:
        client = InferenceClient(base_url=f"{router_url}/v1")

        client.chat.completions.create(CHAT, model="double:code", max_tokens=1)

        assert double.requests[-1].plan.weights == {"code": 1.0}

    def test_what_is_served(self, router_url: str) -> None:
        client = InferenceClient(model=router_url, provider="hf-inference")

        info = client.get_endpoint_info()

        assert client.health_check()
        assert (info["model_id"], info["model_device_type"], info["max_total_tokens"]) == ("double", "cpu", MAX_CONTEXT)
