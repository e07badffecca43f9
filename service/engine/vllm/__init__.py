"""vLLM as the engine of a release: `{"engine": "vllm", "vllm": {…}}` in its settings, installed in its environment.

vLLM schedules and computes in a process of its own, the core. What a request means stays with this program: prompts are
rendered and sanitised by its processor, and output tokens become text by its detokenizer and its stop strings, so that
both engines answer alike.

Begin with `engine.py`. `core.py` starts the core, and another one when it has died; `bound.py` runs in the core and
ties it to the worker. `rows.py` decides whose request is next, `prompt.py`, `sampling.py` and `grammar.py` translate
requests, `arguments.py` the settings of a release. `backend.py` and `stats.py` are all that imports vLLM.
"""
