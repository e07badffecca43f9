"""Benchmarks. Each `python -m tests.bench.NAME` answers one question, and prints ratios from a single run.

- `engine`: how fast is the engine over HTTP, compared with transformers?
- `handover`: what do cutovers cost clients, and what is lost without the handoff?
- `canary`: does a canary hit its share, and what does it cost?
- `request_cost`: what does a request cost beyond plain Starlette on plain Uvicorn?
- `logs_and_metrics`: what do the access log and the metrics cost?
- `equal_versions`: how many equal versions are rolled back on a busy machine, and how soon are worse ones?
- `swap`: how long do clients wait while one model replaces the other?
- `soak`: is anything lost or left behind after a thousand cutovers?
- `device`: how close are decoding and loading to the limits of a GPU?
- `gpu`: what does the whole service do on this machine's GPU, from the weights on disk to a rollout under load?
- `engine_process`: is the engine faster in a thread of the server or in a process of its own?
- `kv_layout`: is attention faster over rows or over blocks of the KV cache?
"""
