"""The texts of the batches page in English and Chinese."""

# ruff: noqa: RUF001  Chinese punctuation

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ui.batches.jsonl import Reason
from ui.client import Fault

__all__ = ["BATCH_TEXTS", "BatchTexts"]


@dataclass(frozen=True)
class BatchTexts:
    """The texts in one language; `problems` has a sentence for each reason."""

    title: str
    hint: str
    line_hint: str
    file: str
    file_help: str
    upload: str
    upload_limit: str
    valid: str
    invalid: str
    more: str
    line: str
    problem: str
    start: str
    sending: str
    started: str
    not_started: str
    missing: str
    a_file: str
    api_key: str
    key: str
    key_help: str
    key_needed: str
    bad_key: str
    use_key: str
    forget_key: str
    own_key: str
    batches: str
    own_batches: str
    none: str
    unknown: str
    since: str
    progress: str
    checking: str
    cancel: str
    cancel_sure: str
    cancel_failed: str
    output: str
    errors: str
    too_large: str
    expired: str
    input_errors: str
    service_message: str
    statuses: Mapping[str, str]
    problems: Mapping[Reason, str]
    faults: Mapping[Fault, str]

    def fault(self, fault: Fault) -> str:
        """Return the sentence for a failed request."""
        return self.faults.get(fault, self.faults[Fault.FAILED])


BATCH_TEXTS: Mapping[str, BatchTexts] = {
    "en": BatchTexts(
        title="Batches",
        hint="Many requests in one file, answered when there is room; a rollout does not disturb them.",
        line_hint="One request a line:",
        file="File of requests (JSON Lines)",
        file_help="At most {size} and {lines} requests. It is checked here before it is sent.",
        upload="Upload",
        upload_limit="at most {size}",
        valid="{count} requests, {size}; nothing wrong was found.",
        invalid="**{name} is not sent**: correct it and choose it again.",
        more="Only the first {count} are listed.",
        line="Line",
        problem="What is wrong",
        start="Start the batch",
        sending="Sending the file …",
        started="The batch of {name} has been started.",
        not_started="**The batch was not started.** {reason} The file is still here: try again.",
        missing="{name} did not arrive: its upload failed, or the page was restarted meanwhile. Choose it again.",
        a_file="The file",
        api_key="API key",
        key="Your API key",
        key_help="Kept in memory until you close or reload this page. All batches of the key are then listed.",
        key_needed="The service asks for an API key, and does not accept that of the page. Enter yours.",
        bad_key="An API key has printable ASCII characters alone.",
        use_key="Use this key",
        forget_key="Forget the key",
        own_key="All batches of the key that you have entered.",
        batches="Latest batches",
        own_batches="Those that this browser has started.",
        none="No batch yet.",
        unknown="The batches are unknown. {reason}",
        since="started {at}",
        progress="{done} of {total} done",
        checking="the file is being checked",
        cancel="Cancel",
        cancel_sure="Cancel this batch",
        cancel_failed="It was not cancelled. {reason}",
        output="Download results",
        errors="Download errors",
        too_large="{title}: {size} are too large for the page. On the host:",
        expired="The results are no longer there.",
        input_errors="What the service found wrong in the file",
        service_message="The service reported: {detail}",
        statuses={
            "validating": "checking",
            "in_progress": "running",
            "finalizing": "finishing",
            "completed": "completed",
            "failed": "failed",
            "cancelling": "being cancelled",
            "cancelled": "cancelled",
            "expired": "expired",
            "failures": "{count} failed",
        },
        problems={
            Reason.FILE_SIZE: "The file is larger than {limit}. Split it, or send it with the API.",
            Reason.EMPTY: "The file has no request.",
            Reason.TOO_MANY: "More than {limit} requests. Split the file.",
            Reason.LINE_SIZE: "Longer than {limit}.",
            Reason.COMPLEX: "More than {limit} brackets, commas and colons.",
            Reason.JSON: "No valid JSON: {found}.",
            Reason.NO_OBJECT: "Not a JSON object.",
            Reason.MISSING: "“{found}” is missing.",
            Reason.CUSTOM_ID: "“custom_id” must be a text of 1 to {limit} characters.",
            Reason.DUPLICATE: "The custom_id “{found}” is that of line {limit} too.",
            Reason.METHOD: "“method” is {found}; it must be POST.",
            Reason.URL: "“url” is {found}; it must be {limit}.",
            Reason.BODY: "“body” must be a JSON object.",
        },
        faults={
            Fault.UNREACHABLE: "The service is not reachable.",
            Fault.TIMEOUT: "The service did not answer in time.",
            Fault.INTERRUPTED: "The connection broke off.",
            Fault.BUSY: "The service has more to do than it can take right now.",
            Fault.TOO_LARGE: "The service does not take so much.",
            Fault.UNAUTHORIZED: "The service does not accept the API key.",
            Fault.INVALID_RESPONSE: "Something else answers at this address.",
            Fault.FAILED: "The service could not do it.",
        },
    ),
    "zh": BatchTexts(
        title="批处理",
        hint="一个文件包含多个请求，在有空闲时回答；发布新版本不会影响批处理。",
        line_hint="每行一个请求：",
        file="请求文件（JSON Lines）",
        file_help="最大 {size}，最多 {lines} 个请求。发送前会在此检查。",
        upload="上传",
        upload_limit="最大 {size}",
        valid="{count} 个请求，{size}；未发现问题。",
        invalid="**{name} 未发送**：请修正后重新选择。",
        more="只列出前 {count} 项。",
        line="行",
        problem="问题",
        start="开始批处理",
        sending="正在发送文件 …",
        started="{name} 的批处理已开始。",
        not_started="**批处理未开始。**{reason}文件仍保留在此，请重试。",
        missing="未收到 {name}：上传失败，或页面在此期间重新启动。请重新选择。",
        a_file="文件",
        api_key="API 密钥",
        key="您的 API 密钥",
        key_help="仅保存在本页面的内存中，关闭或刷新后清除。输入后会列出该密钥的所有批处理。",
        key_needed="服务要求 API 密钥，且不接受本页面的密钥。请输入您的密钥。",
        bad_key="API 密钥只能包含可打印的 ASCII 字符。",
        use_key="使用此密钥",
        forget_key="清除密钥",
        own_key="您输入的密钥的所有批处理。",
        batches="最近的批处理",
        own_batches="由此浏览器开始的批处理。",
        none="暂无批处理。",
        unknown="无法获取批处理列表。{reason}",
        since="开始于 {at}",
        progress="已完成 {done} / {total}",
        checking="正在检查文件",
        cancel="取消",
        cancel_sure="取消此批处理",
        cancel_failed="未能取消。{reason}",
        output="下载结果",
        errors="下载错误",
        too_large="{title}：{size}，过大，无法通过页面下载。请在主机上运行：",
        expired="结果已不存在。",
        input_errors="服务在文件中发现的问题",
        service_message="服务返回：{detail}",
        statuses={
            "validating": "检查中",
            "in_progress": "运行中",
            "finalizing": "收尾中",
            "completed": "已完成",
            "failed": "失败",
            "cancelling": "取消中",
            "cancelled": "已取消",
            "expired": "已过期",
            "failures": "{count} 个失败",
        },
        problems={
            Reason.FILE_SIZE: "文件超过上限 {limit}。请拆分，或通过 API 发送。",
            Reason.EMPTY: "文件中没有请求。",
            Reason.TOO_MANY: "超过 {limit} 个请求，请拆分文件。",
            Reason.LINE_SIZE: "超过上限 {limit}。",
            Reason.COMPLEX: "括号、逗号和冒号超过 {limit} 个。",
            Reason.JSON: "不是有效的 JSON：{found}。",
            Reason.NO_OBJECT: "不是 JSON 对象。",
            Reason.MISSING: "缺少“{found}”。",
            Reason.CUSTOM_ID: "“custom_id”必须是 1 到 {limit} 个字符的文本。",
            Reason.DUPLICATE: "custom_id“{found}”与第 {limit} 行相同。",
            Reason.METHOD: "“method”为 {found}，必须是 POST。",
            Reason.URL: "“url”为 {found}，必须是 {limit}。",
            Reason.BODY: "“body”必须是 JSON 对象。",
        },
        faults={
            Fault.UNREACHABLE: "无法连接到服务。",
            Fault.TIMEOUT: "服务未能及时应答。",
            Fault.INTERRUPTED: "连接中断。",
            Fault.BUSY: "服务当前请求过多，暂时无法处理。",
            Fault.TOO_LARGE: "超出服务的大小上限。",
            Fault.UNAUTHORIZED: "服务不接受此 API 密钥。",
            Fault.INVALID_RESPONSE: "该地址上应答的是其他程序。",
            Fault.FAILED: "服务未能完成。",
        },
    ),
}
