"""What /docs shows beside the schemas: the error shape and bodies to try."""

from typing import Any, Final

from fastapi.openapi.models import Example
from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The one error shape."""

    error: ErrorDetail


ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorBody, "description": "The request is wrong, names what is not there, or comes too early."},
    "5XX": {
        "model": ErrorBody,
        "description": "A part of the service is down or failed; Retry-After says when to try.",
    },
}

GENERATE_EXAMPLES: Final[dict[str, Example]] = {
    "routed": {
        "summary": "The release decides which experts speak",
        "value": {
            "inputs": "Tom has 3 apples and buys 4 more. How many apples does he have?",
            "parameters": {"max_new_tokens": 32, "details": True},
        },
    },
    "one expert": {
        "summary": "One expert by name",
        "value": {"inputs": "def add(a, b):", "parameters": {"adapter_id": "code", "max_new_tokens": 24}},
    },
    "a set": {
        "summary": "Experts with fixed weights, sampled",
        "value": {
            "inputs": "Once upon a time",
            "parameters": {"experts": {"creative": 0.7, "code": 0.3}, "temperature": 0.8, "seed": 7},
        },
    },
    "explained": {
        "summary": "All that is known of an answer: plan, timings, and what each expert was worth to it",
        "value": {"inputs": "def add(a, b):", "parameters": {"max_new_tokens": 24}, "explain": True},
    },
    "ensemble": {
        "summary": "Three experts answer alone, the likeliest answer is given",
        "value": {"inputs": "def add(a, b):", "parameters": {"integration": "ensemble", "max_new_tokens": 24}},
    },
    "base": {
        "summary": "The base model alone",
        "value": {"inputs": "Once upon a time", "parameters": {"adapter_id": "base", "max_new_tokens": 24}},
    },
}

JOB_EXAMPLES: Final[dict[str, Example]] = {
    "expert": {
        "summary": "Train an expert and let it join the mixture",
        "value": {
            "kind": "expert",
            "name": "math",
            "domain": "math",
            "training_file": "file-0123456789abcdef0123456789abcdef",
            "hyperparameters": {"max_steps": 200},
            "add_to_release": True,
            "activate": True,
        },
    },
    "expert creation": {
        "summary": "From examples that a teacher writes to an expert that is released if it helps",
        "value": {
            "kind": "expert_creation",
            "name": "chess",
            "teacher": "demo:chess_notation",
            "num_examples": 300,
            "hyperparameters": {"max_steps": 60, "learning_rate": 0.002},
            "approval": True,
        },
    },
    "router": {
        "summary": "Make a Bayes router over the active release's experts",
        "value": {"kind": "router", "router": "bayes", "create_release": True, "activate": False},
    },
    "evaluation": {
        "summary": "What the active release is worth on held-out text",
        "value": {
            "kind": "evaluation",
            "held_out": {"math": "file-0123456789abcdef0123456789abcdef"},
            "thresholds": [0.05, 0.1, 0.2],
            "top_ks": [1, 2],
        },
    },
    "graph": {
        "summary": "Learn a cooperation graph over the active release, beside its controls",
        "value": {
            "kind": "cooperation_graph",
            "training_files": {"math": "file-0123456789abcdef0123456789abcdef"},
            "create_release": True,
        },
    },
    "gaps": {
        "summary": "Look for gaps among the requests of the last day",
        "value": {"kind": "gap_analysis", "window_s": 86400, "min_cluster_size": 8},
    },
    "trace import": {
        "summary": "Make a trace of uploaded recordings; POST /traces uploads them as well",
        "value": {
            "kind": "trace_import",
            "name": "gsm8k",
            "files": ["file-0123456789abcdef0123456789abcdef"],
            "options": {"domain": "math", "num_experts": 64, "top_k": 8},
        },
    },
    "trace": {
        "summary": "Which experts every token goes through, over five domains, also in the requirements' layout",
        "value": {"kind": "trace", "prompts_per_domain": 8, "max_tokens": 100, "layout": "directory"},
    },
    "images": {
        "summary": "Image experts with a cooperation graph, on the built-in digits",
        "value": {"kind": "image_cooperation", "setting": "published", "num_epochs": 10, "top_k": 2, "l1": 0.1},
    },
}

GAP_EXPERT_EXAMPLES: Final[dict[str, Example]] = {
    "teacher": {
        "summary": "A teacher writes as many examples as the gap asks for; somebody looks at them before the training",
        "value": {"teacher": "demo:chess_notation", "approval": True},
    },
    "files": {
        "summary": "From data of your own",
        "value": {"training_files": ["file-0123456789abcdef0123456789abcdef"], "name": "chess", "search": [8, 16]},
    },
}
