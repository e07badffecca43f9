"""The texts of the page in English and Chinese."""

# ruff: noqa: RUF001  Chinese punctuation

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ui.client import Fault

__all__ = ["LANGUAGES", "Texts", "language_of"]


@dataclass(frozen=True)
class Texts:
    """The texts in one language; `faults` has a description and a hint for each fault."""

    name: str
    title: str
    greeting: str
    question: str
    new_chat: str
    live_now: str
    slot: str
    changes: str
    answered_by: str
    waiting: str
    thinking: str
    thought: str
    thought_briefly: str
    stop: str
    stopped: str
    length_limit: str
    empty: str
    no_answer_begun: str
    retry: str
    service_message: str
    unreachable: str
    no_response: str
    other_service: str
    faults: Mapping[Fault, tuple[str, str]]


ENGLISH = Texts(
    name="English",
    title="GLM chat",
    greeting="Ask anything, or attach pictures and ask about them.",
    question="Your question",
    new_chat="New chat",
    live_now="Live now",
    slot="slot {slot}",
    changes="Changes seen on this page",
    answered_by="Answered by {version} in slot {slot}",
    waiting="waiting for the first words …",
    thinking="Thinking …",
    thought="Thought for {seconds} s",
    thought_briefly="Thought for less than a second",
    stop="Stop",
    stopped="stopped",
    length_limit="cut at the length limit",
    empty="The answer is empty.",
    no_answer_begun="The reply ended before the answer began.",
    retry="Try again",
    service_message="The service reported: {detail}",
    unreachable="The service is not reachable",
    no_response="No answer yet; a version may be loading",
    other_service="Something else answers at this address",
    faults={
        Fault.UNREACHABLE: (
            "The service is not reachable.",
            "Your question is kept. Try again in a moment; on the host, `glmctl status` shows what runs.",
        ),
        Fault.TIMEOUT: (
            "The service did not answer in time.",
            "Your question is kept. A version may still be loading: try again in a minute.",
        ),
        Fault.INTERRUPTED: (
            "The connection broke off before the answer was complete.",
            "Your question is kept, and what had arrived is shown above. Try again.",
        ),
        Fault.BUSY: (
            "The service has more questions than it can take right now.",
            "Your question is kept. Try again in a few seconds.",
        ),
        Fault.QUEUE_TIMEOUT: (
            "This question waited too long for its turn; the service has more to do than it can keep up with.",
            "Your question is kept. Try again in a minute.",
        ),
        Fault.TOO_LARGE: (
            "This conversation has grown too large to be sent.",
            "Pictures take the most room: start a new chat, or send fewer of them.",
        ),
        Fault.TOO_LONG: (
            "This conversation is longer than the model can read.",
            "Start a new chat, or ask in fewer words; pictures count as well, large ones most.",
        ),
        Fault.REJECTED: (
            "The service could not take this question.",
            "Change it, or start a new chat when the conversation has grown long.",
        ),
        Fault.UNAUTHORIZED: (
            "The service asks for an API key, and none or an unknown one was sent.",
            "The page sends `GLM_API_KEY`, which is set on the host.",
        ),
        Fault.FAILED: (
            "The service failed at this question.",
            "Your question is kept. Try again; if it fails again, see the service's journal.",
        ),
        Fault.INVALID_RESPONSE: (
            "The response could not be read; another program may be listening at this address.",
            "Check `GLM_LISTEN` of the page, then try again.",
        ),
    },
)

CHINESE = Texts(
    name="中文",
    title="GLM 对话",
    greeting="请随意提问，也可以附上图片并就图片提问。",
    question="请输入问题",
    new_chat="新对话",
    live_now="当前在线版本",
    slot="{slot} 槽位",
    changes="本页面见到的版本切换",
    answered_by="由 {slot} 槽位的 {version} 版本回答",
    waiting="正在等待回答 …",
    thinking="思考中 …",
    thought="已思考 {seconds} 秒",
    thought_briefly="已思考不到 1 秒",
    stop="停止",
    stopped="已停止",
    length_limit="已达长度上限，回答被截断",
    empty="回答为空。",
    no_answer_begun="尚未开始回答就已结束。",
    retry="重试",
    service_message="服务返回：{detail}",
    unreachable="无法连接到服务",
    no_response="暂无应答，可能正在加载新版本",
    other_service="该地址上应答的是其他程序",
    faults={
        Fault.UNREACHABLE: (
            "无法连接到服务。",
            "问题已保留。请稍后重试；在主机上运行 `glmctl status` 可查看服务状态。",
        ),
        Fault.TIMEOUT: (
            "服务未能及时应答。",
            "问题已保留。可能正在加载新版本，请一分钟后重试。",
        ),
        Fault.INTERRUPTED: (
            "回答尚未完成，连接就中断了。",
            "问题已保留，已收到的内容显示在上方。请重试。",
        ),
        Fault.BUSY: (
            "服务当前请求过多，暂时无法处理。",
            "问题已保留。请几秒后重试。",
        ),
        Fault.QUEUE_TIMEOUT: (
            "排队时间过长，服务当前负载过高，未能处理这个问题。",
            "问题已保留。请一分钟后重试。",
        ),
        Fault.TOO_LARGE: (
            "对话内容过大，无法发送。",
            "图片占用空间最多：请开始新对话，或减少图片数量。",
        ),
        Fault.TOO_LONG: (
            "对话长度超出模型能够读取的范围。",
            "请开始新对话，或缩短问题；图片也占用长度，尺寸越大占用越多。",
        ),
        Fault.REJECTED: (
            "服务无法接受这个问题。",
            "请修改问题；如果对话已经很长，请开始新对话。",
        ),
        Fault.UNAUTHORIZED: (
            "服务要求 API 密钥，但未收到密钥或密钥无效。",
            "页面使用主机上设置的 `GLM_API_KEY`。",
        ),
        Fault.FAILED: (
            "服务在处理这个问题时出错。",
            "问题已保留。请重试；如果再次出错，请查看服务日志。",
        ),
        Fault.INVALID_RESPONSE: (
            "收到的内容无法识别，该地址上可能是其他程序。",
            "请检查页面的 `GLM_LISTEN` 设置，然后重试。",
        ),
    },
)

LANGUAGES: Mapping[str, Texts] = {"en": ENGLISH, "zh": CHINESE}


def language_of(locale: str | None) -> str:
    """Return the language for a browser's locale."""
    return "zh" if (locale or "").lower().startswith("zh") else "en"
