"""The HTTP API: route handlers, request bodies, server-sent events, error responses and the OpenAPI document.

Invalid input never causes a 500, every response carries the version, the slot and the request's id, and the engine's
work for a client ends when the client disconnects. Begin with `handlers.py`.
"""
