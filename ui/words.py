"""Every text of the page, once for each language."""

# ruff: noqa: RUF001  Chinese punctuation is no mistake here

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ui.client import Fault

__all__ = ["LANGUAGES", "Words", "language_of"]


@dataclass(frozen=True)
class Words:
    """The texts in one language; a fault has what happened and what to do."""

    name: str
    title: str
    greeting: str
    ask: str
    new_chat: str
    live_now: str
    slot: str
    seen: str
    answered_by: str
    waiting: str
    thinking: str
    thought: str
    thought_briefly: str
    stop: str
    stopped: str
    cut: str
    empty: str
    unbegun: str
    retry: str
    service_says: str
    not_reachable: str
    no_answer: str
    not_ours: str
    faults: Mapping[Fault, tuple[str, str]]


ENGLISH = Words(
    name="English",
    title="GLM chat",
    greeting="Ask anything, or attach pictures and ask about them.",
    ask="Your question",
    new_chat="New chat",
    live_now="Live now",
    slot="slot {slot}",
    seen="Changes seen on this page",
    answered_by="Answered by {version} in slot {slot}",
    waiting="waiting for the first words …",
    thinking="Thinking …",
    thought="Thought for {seconds} s",
    thought_briefly="Thought for less than a second",
    stop="Stop",
    stopped="stopped",
    cut="cut at the length limit",
    empty="The answer is empty.",
    unbegun="It ended before the answer began.",
    retry="Try again",
    service_says="The service says: {detail}",
    not_reachable="The service is not reachable",
    no_answer="No answer yet; a version may be loading",
    not_ours="Something else answers at this address",
    faults={
        Fault.UNREACHABLE: (
            "The service is not reachable.",
            "Your question is kept. Try again in a moment; on the host, `glmctl status` says what runs.",
        ),
        Fault.SILENT: (
            "The service did not answer in time.",
            "Your question is kept. A version may still be loading: try again in a minute.",
        ),
        Fault.BROKEN: (
            "The connection broke off before the answer was complete.",
            "Your question is kept, and what had arrived stands above. Try again.",
        ),
        Fault.BUSY: (
            "The service has more questions than it can take right now.",
            "Your question is kept. Try again in a few seconds.",
        ),
        Fault.WAITED: (
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
        Fault.FAILED: (
            "The service failed at this question.",
            "Your question is kept. Try again; when it fails twice, the service's journal says why.",
        ),
        Fault.STRANGE: (
            "The answer made no sense; perhaps another program listens at this address.",
            "Check `GLM_LISTEN` of the page, then try again.",
        ),
        Fault.PICTURE: (
            "This file could not be read as a picture: {detail}",
            "PNG, JPEG, WebP, GIF and BMP work. Nothing was sent.",
        ),
    },
)

CHINESE = Words(
    name="中文",
    title="GLM 对话",
    greeting="请随意提问，也可以附上图片并就图片提问。",
    ask="请输入问题",
    new_chat="新对话",
    live_now="当前在线版本",
    slot="{slot} 槽位",
    seen="本页面见到的版本切换",
    answered_by="由 {slot} 槽位的 {version} 版本回答",
    waiting="正在等待回答 …",
    thinking="思考中 …",
    thought="已思考 {seconds} 秒",
    thought_briefly="已思考不到 1 秒",
    stop="停止",
    stopped="已停止",
    cut="已达长度上限，回答被截断",
    empty="回答为空。",
    unbegun="尚未开始回答就已结束。",
    retry="重试",
    service_says="服务返回：{detail}",
    not_reachable="无法连接到服务",
    no_answer="暂无应答，可能正在加载新版本",
    not_ours="该地址上应答的是其他程序",
    faults={
        Fault.UNREACHABLE: (
            "无法连接到服务。",
            "问题已保留。请稍后重试；在主机上运行 `glmctl status` 可查看服务状态。",
        ),
        Fault.SILENT: (
            "服务未能及时应答。",
            "问题已保留。可能正在加载新版本，请一分钟后重试。",
        ),
        Fault.BROKEN: (
            "回答尚未完成，连接就中断了。",
            "问题已保留，已收到的内容显示在上方。请重试。",
        ),
        Fault.BUSY: (
            "服务当前请求过多，暂时无法处理。",
            "问题已保留。请几秒后重试。",
        ),
        Fault.WAITED: (
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
        Fault.FAILED: (
            "服务在处理这个问题时出错。",
            "问题已保留。请重试；如果再次出错，请查看服务日志。",
        ),
        Fault.STRANGE: (
            "收到的内容无法识别，该地址上可能是其他程序。",
            "请检查页面的 `GLM_LISTEN` 设置，然后重试。",
        ),
        Fault.PICTURE: (
            "无法将该文件识别为图片：{detail}",
            "支持 PNG、JPEG、WebP、GIF 和 BMP。没有发送任何内容。",
        ),
    },
)

LANGUAGES: Mapping[str, Words] = {"en": ENGLISH, "zh": CHINESE}


def language_of(locale: str | None) -> str:
    """Choose the language that a browser asks for."""
    return "zh" if (locale or "").lower().startswith("zh") else "en"
