"""Tokenising in the router service."""

import asyncio
from typing import Any

from services.router_service.generation_request import Prompt
from services.router_service.scoring import PromptReader
from services.shared.tokenizer import Tokenizer


async def test_a_long_prompt_does_not_hold_up_the_event_loop(tokenizer: Tokenizer) -> None:
    unused: Any = None
    reader = PromptReader(tokenizer, max_prompt_bytes=10**7, remote=unused)
    num_ticks = 0

    async def tick() -> None:
        nonlocal num_ticks
        while True:
            await asyncio.sleep(0.001)
            num_ticks += 1

    ticking = asyncio.create_task(tick())
    token_ids = await reader.tokenise(Prompt(text="word " * 150_000), param="inputs")
    ticking.cancel()

    assert len(token_ids) > 150_000
    assert num_ticks > 20
