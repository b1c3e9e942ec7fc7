"""A base model with experts side by side, mixed by given weights: what routers are trained and judged on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from services.shared.modeling.adapter_files import read_adapter
from services.shared.modeling.base_model import LoadedBase
from services.shared.modeling.lora_mixture import LoraMixture


class ExpertEnsemble:
    """Experts in the slots of one mixture; `experts` names the columns of the weights it takes."""

    def __init__(self, base: LoadedBase, mixture: LoraMixture, experts: tuple[str, ...]) -> None:
        self.base = base
        self.experts = experts
        self._mixture = mixture

    @classmethod
    @contextmanager
    def load(cls, base: LoadedBase, experts: Sequence[tuple[str, Path]]) -> "Iterator[ExpertEnsemble]":
        """Load the experts' adapters from (name, folder); the base model is bare again afterwards."""
        mixture = LoraMixture.attach(base.model, num_slots=len(experts))
        try:
            for slot, (_, folder) in enumerate(experts):
                mixture.load(slot, read_adapter(folder, base.model, dtype=base.dtype))
            yield cls(base, mixture, tuple(name for name, _ in experts))
        finally:
            for slot in range(len(experts)):
                mixture.clear(slot)

    @contextmanager
    def trainable(self) -> Iterator[list[Tensor]]:
        """The experts' weights as leaves of autograd, which `nats` reads inside; afterwards they are as loaded."""
        with self._mixture.trainable(range(len(self.experts))) as leaves:
            yield leaves

    def nats(self, token_ids_BT: Tensor, weights_BTE: Tensor, *, only_speaking: bool = False) -> Tensor:
        """-log p of every token but the first, [B, T-1]; the rest is said of `logits`."""
        logits_BTV = self.logits(token_ids_BT, weights_BTE, only_speaking=only_speaking)
        return next_token_nats(logits_BTV, token_ids_BT.to(self.base.device))

    def logits(self, token_ids_BT: Tensor, weights_BTE: Tensor, *, only_speaking: bool = False) -> Tensor:
        """logits_BTV when token t is read under weights_BTE[:, t].

        What the weights leave below 1 is the base model's. Differentiable in the weights; with `only_speaking`, experts
        without weight in the whole batch cost nothing, as when serving, and have no gradient.
        """
        device = self.base.device
        token_ids_BT = token_ids_BT.to(device)
        weights_NE = weights_BTE.reshape(-1, weights_BTE.shape[-1]).to(device=device, dtype=self.base.dtype)
        slots: Sequence[int] = range(len(self.experts))
        if only_speaking:
            weights_NE, slots = _speaking(weights_NE)
        with self._mixture.gates(weights_NE, slots):
            logits_BTV: Tensor = self.base.model(input_ids=token_ids_BT, use_cache=False).logits
        return logits_BTV

    @contextmanager
    def weighing(self, weigh: Callable[[Mapping[str, Any]], Tensor]) -> Iterator[None]:
        """Inside, the base model's every pass is the mixture's, also those that its `generate` makes: under the
        weights_BTE that `weigh` says for the arguments of the pass. What passes `weigh` makes are the base model's."""
        is_deciding = False
        with ExitStack() as in_pass, ExitStack() as hooks:

            def before(_model: nn.Module, _args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
                nonlocal is_deciding
                if is_deciding:
                    return
                is_deciding = True
                try:
                    weights_BTE = weigh(arguments).to(device=self.base.device, dtype=self.base.dtype)
                finally:
                    is_deciding = False
                in_pass.enter_context(self._mixture.gates(*_speaking(weights_BTE.flatten(0, 1))))

            def after(_model: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
                in_pass.close()

            model: nn.Module = self.base.model
            hooks.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(model.register_forward_hook(after).remove)
            yield


def _speaking(weights_NE: Tensor) -> tuple[Tensor, list[int]]:
    """The columns that are not all 0, and which they are."""
    slots: list[int] = weights_NE.any(dim=0).nonzero().flatten().tolist()
    return weights_NE[:, slots], slots


def next_token_nats(logits_BTV: Tensor, token_ids_BT: Tensor) -> Tensor:
    """-log p of every token but the first, [B, T-1]."""
    targets_BT = token_ids_BT[:, 1:]
    nats_N = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), targets_BT.flatten(), reduction="none"
    )
    return nats_N.view_as(targets_BT)
