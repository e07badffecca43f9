"""Chat completions, independent of HTTP: a request is validated, converted to a prompt, answered and formatted.

Every error that is returned to the client is an ApiError, and no request mixes two weight sets. Begin with
`service.py`; `request.py` defines the input, `response.py` the output, `admission.py` the pause while weights change.
"""
