"""The demo: a base model that needs no download, its domains and its experts.

- `domains/`: one file per domain, each a deterministic function of a seed that writes checkable items. Five domains are
  in the demo, four are kept back. `dataset_file.write_dataset` writes any of them as a training file.
- `generic_text.py`, `recurring_text.py`: ordinary language for pretraining. `corpus.py` mixes and packs it.
- `base_tokenizer.py`, `pretraining.py`, `experts.py`: what is trained. Experts go through the same code as expert jobs.
  `router.py` counts the base model's row of the router.
- `exact_match.py`, `held_out_loss.py`, `intervals.py`, `matrix.py`: what is measured. `safe_python.py` runs code that a
  model wrote.
- `plan.py` holds every number; `stages.py` lists the stages; `build.py` runs them, resumes them and shows progress;
  `model_card.py` and `matrix_table.py` report.

Built artifacts are in the repository's `demo/` folder: `base/`, `experts/<name>/`, `router/`, `matrix.json`,
`corpus.json`, `build.json`, `MODEL_CARD.md`. Rebuild them with `build_demo(Path("demo"))`;
an interrupted build goes on where it stopped.
"""
