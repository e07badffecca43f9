"""Chat completions without HTTP: a request is validated, rendered as a prompt, answered and formatted.

Every error that the client is told about is an ApiError. Begin with `service.py`; `request.py` is what comes in,
`response.py` what goes out.
"""
