"""Benchmarks. Each `python -m tests.bench.NAME` answers one question, and prints ratios from a single run.

`python -m tests.bench` is `make bench`; README.md explains method and tables.

- `switching`: what do clients lose when one version replaces another, here and with what people use today?
- `steady`: what does it cost to have this service answer, beside plain Uvicorn and beside a proxy?
- `growth`: how does a switch grow with the number of idle connections?
- `rollout`: how long is it from the command until the new version answers everything, and what of it is ours?
- `bare_load`: how long does a load take without the service around it?
- `plots`: what do the measurements look like?
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
