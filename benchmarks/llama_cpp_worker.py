"""llama.cpp's base model in a process of its own, asked for one measurement per line of its standard input.

Runs under any Python that has `llama-cpp-python` and `gguf` (neither is a dependency of the project): writes the
Hugging Face folder that it is given as a float32 GGUF file, then answers "batch prompt new" with the CPU seconds of the
new tokens, or of the prefill when there are none. One thread, keys and values in float32, greedy, as everybody else.

    python benchmarks/llama_cpp_worker.py HF_FOLDER
"""

import ctypes
import json
import struct
import sys
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

CONTEXT = 1024
MAX_BATCH = 16
F32 = 0


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All float32 tensors of a file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, start = json.loads(content[8 : 8 + length]), 8 + length
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        tensors[name] = np.frombuffer(content[start + low : start + high], dtype="<f4").reshape(entry["shape"])
    return tensors


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order of rotary pairs."""
    rows = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, 2, rows, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(folder: Path, path: Path) -> None:
    """A Llama as a float32 GGUF file with a vocabulary of plain words."""
    config = json.loads((folder / "config.json").read_text())
    heads, num_layers = config["num_attention_heads"], config["num_hidden_layers"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(num_layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"w{index}" for index in range(config["vocab_size"])])
    writer.add_token_scores([0.0] * config["vocab_size"])
    writer.add_token_types([1] * config["vocab_size"])
    tensors = read_safetensors(folder / "model.safetensors")
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    names["lm_head.weight"] = "output.weight"
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for layer in range(num_layers):
        names |= {
            f"model.layers.{layer}.{theirs}.weight": f"blk.{layer}.{ours}.weight" for theirs, ours in parts.items()
        }
    for theirs, ours in names.items():
        if theirs in tensors:
            weight = tensors[theirs]
            is_rotary = ".attn_q." in ours or ".attn_k." in ours
            writer.add_tensor(ours, np.ascontiguousarray(interleaved(weight, heads) if is_rotary else weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Base:
    """A loaded model with room for sixteen sequences."""

    def __init__(self, path: Path) -> None:
        model_settings = llama_cpp.llama_model_default_params()
        model_settings.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_settings)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = MAX_BATCH * CONTEXT, 2048, 512
        settings.n_seq_max, settings.n_threads, settings.n_threads_batch = MAX_BATCH, 1, 1
        settings.type_k = settings.type_v = F32
        settings.kv_unified = False
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._batch = llama_cpp.llama_batch_init(2048, 0, 1)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def seconds(self, batch: int, num_prompt: int, num_new: int) -> float:
        """CPU seconds of `num_new` steps of `batch` sequences, or of reading the prompts when there are none."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)  # noqa: FBT003
        generator = np.random.default_rng(batch)
        prompts = generator.integers(3, self._vocab_size, (batch, num_prompt))
        started_at = time.process_time()
        tokens = self._decode(
            [
                (row, position, int(prompts[row, position]), position == num_prompt - 1)
                for row in range(batch)
                for position in range(num_prompt)
            ]
        )
        if not num_new:
            return time.process_time() - started_at
        started_at = time.process_time()
        for step in range(num_new):
            tokens = self._decode([(row, num_prompt + step, token, True) for row, token in enumerate(tokens)])
        return time.process_time() - started_at

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """The greedy next token of every entry that asks for one."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, (row, position, token, wants_logits) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = wants_logits
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode")
        chosen = []
        for index, (*_, wants_logits) in enumerate(entries):
            if wants_logits:
                pointer = llama_cpp.llama_get_logits_ith(self._context, index)
                array = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self._vocab_size,))
                chosen.append(int(array.argmax()))
        return chosen


def main() -> None:
    """Answer until the input ends."""
    folder = Path(sys.argv[1])
    path = folder / "model.gguf"
    write_gguf(folder, path)
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    base = Base(path)
    print("ready", flush=True)
    for line in sys.stdin:
        batch, num_prompt, num_new = map(int, line.split())
        print(base.seconds(batch, num_prompt, num_new), flush=True)


if __name__ == "__main__":
    main()
