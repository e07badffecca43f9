"""What a worker sends to other services, if the operator wants that: exceptions to Sentry, traces by OpenTelemetry.

`sentry.py` and `traces.py` import their packages, which are extras, only if a setting turns them on. Neither makes a
request or the start of a worker fail, or wait.
"""
