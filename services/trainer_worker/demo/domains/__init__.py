"""The demo's domains, by name. To add one, add a file here that defines `DOMAIN`: it is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

from services.trainer_worker.demo.domains.item import Domain, Item, Split, TooFewDistinctItems

__all__ = ["DEMO_DOMAINS", "DOMAINS", "HELD_BACK_DOMAINS", "Domain", "Item", "Split", "TooFewDistinctItems"]


def _find_domains() -> dict[str, Domain]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [module.DOMAIN for module in modules if hasattr(module, "DOMAIN")]
    return {domain.name: domain for domain in sorted(found, key=lambda domain: domain.name)}


DOMAINS: dict[str, Domain] = _find_domains()

DEMO_DOMAINS: tuple[str, ...] = tuple(name for name, domain in DOMAINS.items() if domain.in_demo)
"""The domains that the base model sees a little of, and for which the demo has experts."""

HELD_BACK_DOMAINS: tuple[str, ...] = tuple(name for name, domain in DOMAINS.items() if not domain.in_demo)
"""The domains that neither base model nor experts ever see: unknown ground for gap detection and new experts."""
