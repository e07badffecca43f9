"""The texts of the chat in English and Chinese, beside those of every page in `ui.texts`."""

# ruff: noqa: RUF001  Chinese punctuation

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ui.picture import Reason
from ui.texts import CHINESE, ENGLISH, Texts

__all__ = ["CHAT_TEXTS", "ChatTexts", "chat_texts", "escape"]


@dataclass(frozen=True)
class ChatTexts:
    """The texts in one language; `refusals` has a sentence for each reason."""

    conversations: str
    conversation: str
    settings: str
    name: str
    delete: str
    delete_failed: str
    export_markdown: str
    export_json: str
    kept: str
    not_kept: str
    system: str
    temperature: str
    max_tokens: str
    thinking: str
    thinking_choices: Mapping[str, str]
    default: str
    regenerate: str
    edit: str
    editing: str
    cancel: str
    remove_pictures: str
    not_sent: str
    not_sent_hint: str
    leave_out: str
    waiting_question: str
    delay: str
    speed: str
    examples: tuple[tuple[str, str], ...]  # question, and the name of a picture or ""
    you: str
    thought: str
    picture: str
    a_file: str
    refusals: Mapping[Reason, str]


CHAT_TEXTS: Mapping[str, ChatTexts] = {
    ENGLISH.name: ChatTexts(
        conversations="Conversations",
        conversation="This conversation",
        settings="Settings",
        name="Name",
        delete="Delete",
        delete_failed="It could not be deleted; see the journal of the page.",
        export_markdown="Export as Markdown",
        export_json="Export as JSON",
        kept="Kept on the server for this browser, for 90 days after the last change.",
        not_kept="This browser sends no cookies: conversations end with the page.",
        system="System prompt",
        temperature="Temperature",
        max_tokens="Longest answer, in tokens",
        thinking="Thinking",
        thinking_choices={"default": "Default", "on": "On", "off": "Off"},
        default="default",
        regenerate="Regenerate",
        edit="Edit question",
        editing="You are editing the last question; its answer will be replaced.",
        cancel="Cancel",
        remove_pictures="Remove pictures",
        not_sent="Not sent",
        not_sent_hint="Your question is kept below. Attach another file, or go on without.",
        leave_out="Go on without",
        waiting_question="Sent when this answer has ended",
        delay="first token after {seconds}\u00a0s",
        speed="{rate}\u00a0tokens/s",
        examples=(
            ("What is in this picture?", "red circle"),
            ("What colour is it?", "blue square"),
            ("What can you do?", ""),
            ("Tell me a story.", ""),
        ),
        you="You",
        thought="Thinking",
        picture="Picture",
        a_file="A file",
        refusals={
            Reason.FILE_SIZE: "{name} is larger than {limit}, the most that can be attached.",
            Reason.PIXELS: "{name}: the picture is {found} pixels; at most {limit} million are allowed.",
            Reason.SHAPE: "{name}: the picture is {found} pixels; one side may be at most {limit} times the other.",
            Reason.PDF: "{name} is a PDF. Send its pages as pictures: PNG, JPEG, WebP, GIF or BMP.",
            Reason.SVG: "{name} is an SVG drawing. Save it as a picture: PNG, JPEG, WebP, GIF or BMP.",
            Reason.NO_PICTURE: "{name} is no picture that can be read. PNG, JPEG, WebP, GIF and BMP work.",
            Reason.BROKEN: "{name} is damaged or incomplete, and cannot be read as a picture.",
            Reason.COUNT: "{name}: this conversation would have {found} pictures; at most {limit} can be sent at once.",
            Reason.REQUEST_SIZE: "{name}: the pictures of this conversation would have {found} when sent; at most "
            "{limit} are allowed.",
            Reason.MISSING: "{name} did not arrive: its upload failed, or the page was restarted meanwhile.",
        },
    ),
    CHINESE.name: ChatTexts(
        conversations="历史对话",
        conversation="当前对话",
        settings="设置",
        name="名称",
        delete="删除",
        delete_failed="无法删除，请查看页面的日志。",
        export_markdown="导出为 Markdown",
        export_json="导出为 JSON",
        kept="按浏览器保存在服务器上，最后一次修改后保留 90 天。",
        not_kept="此浏览器未发送 Cookie：关闭页面后对话不会保留。",
        system="系统提示词",
        temperature="温度",
        max_tokens="回答的最大长度（token）",
        thinking="思考",
        thinking_choices={"default": "默认", "on": "开启", "off": "关闭"},
        default="默认",
        regenerate="重新生成",
        edit="编辑问题",
        editing="正在编辑上一个问题，原有回答将被替换。",
        cancel="取消",
        remove_pictures="移除图片",
        not_sent="未发送",
        not_sent_hint="问题已保留在下方。请换一个文件，或不附带该文件继续。",
        leave_out="不附带，继续",
        waiting_question="当前回答结束后发送",
        delay="首个 token 用时 {seconds} 秒",
        speed="{rate} token/秒",
        examples=(
            ("这张图片里有什么？", "red circle"),
            ("它是什么颜色？", "blue square"),
            ("你能做什么？", ""),
            ("请讲一个故事。", ""),
        ),
        you="用户",
        thought="思考",
        picture="图片",
        a_file="文件",
        refusals={
            Reason.FILE_SIZE: "{name}：文件超过可附加的上限 {limit}。",
            Reason.PIXELS: "{name}：图片为 {found} 像素，上限为 {limit} 百万像素。",
            Reason.SHAPE: "{name}：图片为 {found} 像素，长边不得超过短边的 {limit} 倍。",
            Reason.PDF: "{name} 是 PDF 文件。请将页面转换为 PNG、JPEG、WebP、GIF 或 BMP 图片后发送。",
            Reason.SVG: "{name} 是 SVG 图形。请另存为 PNG、JPEG、WebP、GIF 或 BMP 图片后发送。",
            Reason.NO_PICTURE: "{name} 不是可识别的图片。支持 PNG、JPEG、WebP、GIF 和 BMP。",
            Reason.BROKEN: "{name} 已损坏或不完整，无法识别为图片。",
            Reason.COUNT: "{name}：此对话将有 {found} 张图片，一次最多发送 {limit} 张。",
            Reason.REQUEST_SIZE: "{name}：此对话的图片发送时将有 {found}，上限为 {limit}。",
            Reason.MISSING: "未收到 {name}：上传失败，或页面在此期间重新启动。",
        },
    ),
}


def chat_texts(texts: Texts) -> ChatTexts:
    """Return the chat's texts in the language of `texts`."""
    return CHAT_TEXTS[texts.name]


def escape(text: str) -> str:
    """Return `text` as Markdown that shows it as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~:$&-])", r"\\\1", " ".join(text.split()))
