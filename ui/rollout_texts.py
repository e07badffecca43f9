"""The texts of the rollout page in English and Chinese, and the names of the pages."""

# ruff: noqa: RUF001  Chinese punctuation

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ROLLOUT_TEXTS", "RolloutTexts"]


@dataclass(frozen=True)
class RolloutTexts:
    """The texts in one language. `words` has those that glmctl prints: states, kinds, phases, outcomes, metrics."""

    chat: str
    rollout: str
    listening: str
    nothing_listens: str
    starting: str
    unknown: str
    unknown_hint: str
    live: str
    no_release: str
    share: str
    mirrored: str
    gate: str
    in_flight: str
    connections: str
    workers: str
    memory: str
    device: str
    requests: str
    p95: str
    ttft: str
    errors: str
    phases: str
    no_rollout: str
    title: str
    before: str
    previous: str
    interrupted: str
    planned: str
    until_promoted: str
    verdict: str
    so_far: str
    window: str
    metric: str
    candidate: str
    live_side: str
    counts: str
    counts_of_live: str
    p_value: str
    result: str
    receipt: str
    nothing_lost: str
    nothing_asked: str
    lost: str
    unadopted: str
    not_adding_up: str
    columns: Mapping[str, str]
    recent: str
    recent_hint: str
    no_points: str
    history: str
    kind: str
    version: str
    outcome: str
    began: str
    seconds: str
    longest_wait: str
    lost_requests: str
    all: str
    no_match: str
    details: str
    under_way: str
    words: Mapping[str, str]

    def word(self, text: str) -> str:
        """Return a word of glmctl in this language; one that is unknown stays as it is."""
        return self.words.get(text, text)


ENGLISH = RolloutTexts(
    chat="Chat",
    rollout="Rollout",
    listening="Listening on {address}",
    nothing_listens="Nothing listens for requests: run `glmctl install` on the host.",
    starting="Waiting for the first status of the host …",
    unknown="The status of the host is unknown.",
    unknown_hint="The page asks again every few seconds. `glmctl doctor` on the host tells what is wrong.",
    live="live",
    no_release="no release",
    share="Share of requests",
    mirrored="and {share} % mirrored",
    gate="Gate",
    in_flight="In flight",
    connections="Connections",
    workers="Workers",
    memory="Memory",
    device="Device",
    requests="Requests/s",
    p95="Response time, p95",
    ttft="First token, p95",
    errors="Errors",
    phases="Phases",
    no_rollout="No rollout yet. `glmctl deploy VERSION` on the host begins one.",
    title="{kind} of {version}",
    before="before: {version}",
    previous="Before",
    interrupted="Its controller was killed. `glmctl resume` on the host goes on with it or ends it.",
    planned="{seconds} s planned",
    until_promoted="until it is promoted",
    verdict="Verdicts",
    so_far="so far",
    window="Window",
    metric="Metric",
    candidate="Candidate",
    live_side="Live",
    counts="Requests",
    counts_of_live="Of live",
    p_value="p-value",
    result="Result",
    receipt="Receipt",
    nothing_lost="Nothing was lost: all {accepted} requests are accounted for.",
    nothing_asked="No client sent a request; those of glmctl itself ({accepted}) are accounted for.",
    lost="{lost} of {sent} requests failed.",
    unadopted="{unadopted} client connections were handed over and not received.",
    not_adding_up="The counts do not add up: a worker was killed before it wrote its last counts.",
    columns={
        "accepted": "accepted",
        "completed": "completed",
        "failed": "failed",
        "client_aborted": "aborted",
        "in_flight": "in flight",
        "handed_out": "handed over",
        "adopted": "adopted",
        "drained": "drained",
        "cut": "cut",
    },
    recent="The last ten minutes",
    recent_hint="Rates and times are those of the last 30 seconds at each moment.",
    no_points="Nothing is recorded yet: the plots begin when this page is first opened, with a point every 5 s.",
    history="History",
    kind="Kind",
    version="Version",
    outcome="Outcome",
    began="Began",
    seconds="Duration",
    longest_wait="Longest wait",
    lost_requests="Lost",
    all="all",
    no_match="No rollout matches the filters.",
    details="Details of a rollout",
    under_way="under way",
    words={},
)

CHINESE = RolloutTexts(
    chat="对话",
    rollout="发布",
    listening="监听地址：{address}",
    nothing_listens="没有监听任何地址：请在主机上运行 `glmctl install`。",
    starting="正在等待主机的首次状态 …",
    unknown="无法获知主机状态。",
    unknown_hint="页面每隔几秒重试一次。在主机上运行 `glmctl doctor` 可查看问题所在。",
    live="在线",
    no_release="无版本",
    share="请求占比",
    mirrored="另镜像 {share} %",
    gate="接入",
    in_flight="处理中",
    connections="连接数",
    workers="工作进程",
    memory="内存",
    device="设备",
    requests="每秒请求数",
    p95="响应时间 p95",
    ttft="首个词元 p95",
    errors="错误率",
    phases="阶段",
    no_rollout="还没有发布记录。在主机上运行 `glmctl deploy VERSION` 即可开始。",
    title="{version} 的{kind}",
    before="此前：{version}",
    previous="此前版本",
    interrupted="其控制进程已被终止。在主机上运行 `glmctl resume` 可继续或结束它。",
    planned="计划 {seconds} 秒",
    until_promoted="直到手动推进",
    verdict="判定",
    so_far="进行中",
    window="窗口",
    metric="指标",
    candidate="候选版本",
    live_side="在线版本",
    counts="请求数",
    counts_of_live="在线请求数",
    p_value="p 值",
    result="结果",
    receipt="清单",
    nothing_lost="没有丢失：全部 {accepted} 个请求都有着落。",
    nothing_asked="没有客户端发送请求；glmctl 自身的 {accepted} 个请求都有着落。",
    lost="{sent} 个请求中有 {lost} 个失败。",
    unadopted="有 {unadopted} 个客户端连接已移交但未被接收。",
    not_adding_up="计数不一致：某个工作进程在写下最后计数之前被终止。",
    columns={
        "accepted": "已接受",
        "completed": "已完成",
        "failed": "失败",
        "client_aborted": "客户端中止",
        "in_flight": "处理中",
        "handed_out": "已移交",
        "adopted": "已接收",
        "drained": "排空完成",
        "cut": "被截断",
    },
    recent="最近十分钟",
    recent_hint="每一时刻的速率和时间均取自此前 30 秒。",
    no_points="尚无数据：首次打开本页后开始记录，每 5 秒一个点。",
    history="历史",
    kind="类型",
    version="版本",
    outcome="结果",
    began="开始时间",
    seconds="用时",
    longest_wait="最长等待",
    lost_requests="丢失",
    all="全部",
    no_match="没有符合筛选条件的发布。",
    details="发布详情",
    under_way="进行中",
    words={
        "empty": "空",
        "stopped": "已停止",
        "starting": "启动中",
        "ready": "就绪",
        "stopping": "停止中",
        "vacant": "已腾空",
        "failed": "失败",
        "open": "开放",
        "closed": "关闭",
        "deploy": "部署",
        "rollback": "回滚",
        "reload": "重载",
        "preflight": "预检",
        "prepare": "准备",
        "vacate": "腾空",
        "start": "启动",
        "verify": "验证",
        "canary": "金丝雀",
        "cutover": "切换",
        "bake": "观察",
        "retire": "退役",
        "done": "完成",
        "rolled back": "已回滚",
        "refused": "被拒绝",
        "not ready": "未就绪",
        "interrupted": "被中断",
        "running": "进行中",
        "to come": "待进行",
        "errors": "错误率",
        "answer errors": "回答错误率",
        "p95": "p95",
        "ttft p95": "首个词元 p95",
        "mirrored p95": "镜像 p95",
        "mirrored ttft p95": "镜像首个词元 p95",
        "agreement": "一致率",
        "not worse": "不差",
        "worse": "更差",
        "too few requests": "请求太少",
    },
)

ROLLOUT_TEXTS: Mapping[str, RolloutTexts] = {"en": ENGLISH, "zh": CHINESE}
