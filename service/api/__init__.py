"""HTTP: routes' handlers, bodies, server-sent events, error responses and the OpenAPI document.

Bad input never becomes a 500, and every response carries the version, the slot and the request's id. Begin with
`handlers.py`.
"""
