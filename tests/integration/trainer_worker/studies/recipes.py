"""Studies in small."""

from typing import Any

SMALL: dict[str, Any] = {
    "seeds": (0,),
    "max_documents": 8,
    "max_switching_documents": 8,
    "max_tokens": 64,
    "thresholds": (0.1, 0.5),
    "top_ks": (1,),
    "stickinesses": (0.2,),
    "tempers": (),
}

QUICK: dict[str, Any] = {"thresholds": (), "top_ks": (), "stickinesses": (), "without_each": False}


SMALL_GRAPH: dict[str, Any] = {
    "l1_sweep": (5.0,),
    "top_ks": (1, 2),
    "seeds": (0, 1),
    "hyperparameters": {
        "num_steps": 4,
        "num_epochs": 2,
        "batch_size": 2,
        "max_length": 48,
        "num_test_documents": 8,
        "learning_rate": 0.05,
    },
}
