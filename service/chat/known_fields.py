"""Fields that clients of OpenAI's API, vLLM and SGLang send, and that are dropped or refused."""

from __future__ import annotations

from typing import Annotated

from service.chat.request_model import Dropped, Neutral, RequestModel, Unsupported

__all__ = ["DroppedFields", "UnsupportedFields"]


class DroppedFields(RequestModel):
    """Fields that identify, bill, schedule, store or cache a request: the answer is the same without them."""

    metadata: Dropped = None
    store: Dropped = None
    service_tier: Dropped = None
    safety_identifier: Dropped = None
    prompt_cache_key: Dropped = None
    prompt_cache_options: Dropped = None
    prompt_cache_retention: Dropped = None
    prediction: Dropped = None  # a guess that makes the answer faster
    cache_salt: Dropped = None
    priority: Dropped = None
    request_id: Dropped = None
    rid: Dropped = None
    user_id: Dropped = None
    guided_decoding_backend: Dropped = None


class UnsupportedFields(RequestModel):
    """Fields that would change the answer and are not supported, with the values at which they do not."""

    audio: Unsupported = None
    functions: Unsupported = None
    function_call: Annotated[None, Neutral(("none", {}, False))] = None
    moderation: Unsupported = None
    verbosity: Annotated[None, Neutral(("medium",))] = None
    web_search_options: Unsupported = None

    add_generation_prompt: Annotated[None, Neutral((True,))] = None
    add_special_tokens: Annotated[None, Neutral((False,))] = None
    allowed_token_ids: Unsupported = None
    bad_words: Unsupported = None
    best_of: Annotated[None, Neutral((1,))] = None
    chat_template: Unsupported = None
    continue_final_message: Annotated[None, Neutral((False,))] = None
    documents: Unsupported = None
    do_sample: Annotated[None, Neutral((True,))] = None
    echo: Annotated[None, Neutral((False,))] = None
    guided_grammar: Unsupported = None
    guided_whitespace_pattern: Unsupported = None
    include_stop_str_in_output: Annotated[None, Neutral((False,))] = None
    length_penalty: Annotated[None, Neutral((1,))] = None
    logits_processors: Unsupported = None
    lora_path: Unsupported = None
    media_io_kwargs: Unsupported = None
    mm_processor_kwargs: Unsupported = None
    no_stop_trim: Annotated[None, Neutral((False,))] = None
    prompt_logprobs: Annotated[None, Neutral((False,))] = None
    repetition_detection: Unsupported = None
    return_hidden_states: Annotated[None, Neutral((False,))] = None
    return_token_ids: Annotated[None, Neutral((False,))] = None
    return_tokens_as_token_ids: Annotated[None, Neutral((False,))] = None
    separate_reasoning: Annotated[None, Neutral((True,))] = None
    skip_special_tokens: Annotated[None, Neutral((True,))] = None
    spaces_between_special_tokens: Annotated[None, Neutral((True,))] = None
    stream_reasoning: Annotated[None, Neutral((True,))] = None
    structural_tag: Unsupported = None
    thinking_token_budget: Unsupported = None
    top_a: Annotated[None, Neutral((0,))] = None
    truncate_prompt_tokens: Unsupported = None
    typical_p: Annotated[None, Neutral((1,))] = None
    use_beam_search: Annotated[None, Neutral((False,))] = None
