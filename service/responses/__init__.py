"""POST /v1/responses, OpenAI's newer format, without its state: each request holds the whole conversation.

Begin with `request.py`. A request becomes a ChatRequest, so that both formats have the same rules; `input_items.py`
converts the conversation, `response.py` makes the response, of the items of `output_items.py`.
"""
