"""The texts of the page for operators in English and Chinese."""

# ruff: noqa: RUF001  Chinese punctuation

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["OPERATE_TEXTS", "OperateTexts"]


@dataclass(frozen=True)
class OperateTexts:
    """The texts in one language. `actions` has title and explanation of each verb that is confirmed."""

    title: str
    off: str
    locked: str
    key: str
    unlock: str
    lock: str
    unlocked: str
    wrong_key: str
    too_many: str
    deploy: str
    version: str
    version_hint: str
    strategy: str
    strategy_help: str
    canary: str
    canary_help: str
    step: str
    step_help: str
    bake: str
    bake_help: str
    dry_run: str
    rehearsing: str
    possible: str
    impossible: str
    rollout: str
    before: str
    slot: str
    idle: str
    releases: str
    path: str
    path_help: str
    name: str
    name_help: str
    confirm: str
    run: str
    cancel: str
    refused: str
    operations: str
    none_yet: str
    operation: str
    by: str
    began: str
    operator: str
    command: str
    outcome: str
    running: str
    done: str
    failed: str
    lost: str
    silent: str
    actions: Mapping[str, tuple[str, str]]


ENGLISH = OperateTexts(
    title="Operate",
    off="Operating is off on this host. SECURITY.md of the project says how to turn it on.",
    locked="An operator's key is needed to change anything. Until then this page only reads.",
    key="Operator's key",
    unlock="Unlock",
    lock="Lock",
    unlocked="You act as **{name}**. The key is kept until the page is reloaded or closed.",
    wrong_key="This is not the key of an operator.",
    too_many="Too many wrong keys from your address. Wait a minute.",
    deploy="Deploy",
    version="Version",
    version_hint="Choose a release",
    strategy="Strategy",
    strategy_help="overlap loads the version beside the live one, weights puts its weights into the running processes, "
    "swap unloads the live one first. auto chooses.",
    canary="Canary, in percent",
    canary_help="Shares of the requests before the cutover, such as 10,50. Empty: no canary.",
    step="Duration of each canary step",
    step_help="Such as 60s or 5m; pause: until it is promoted.",
    bake="Bake",
    bake_help="How long the new version is watched after the cutover, such as 60s or 10m.",
    dry_run="Dry run",
    rehearsing="The dry run is under way …",
    possible="The dry run found nothing against it:",
    impossible="This cannot be deployed:",
    rollout="The rollout under way, and the way back",
    before="Empty: the version that served before",
    slot="Slot",
    idle="Empty: the slot that is not live",
    releases="Releases",
    path="Directory on the host",
    path_help="An absolute path of a checkpoint in the format of Hugging Face.",
    name="Name of the release",
    name_help="Empty: the name of the directory.",
    confirm="This command runs on the host:",
    run="Run",
    cancel="Cancel",
    refused="Not begun: {reason}",
    operations="What operators did here",
    none_yet="Nothing yet.",
    operation="Operation",
    by="{name} · {at}",
    began="Began",
    operator="Operator",
    command="Command",
    outcome="Outcome",
    running="running",
    done="done",
    failed="exit code {code}",
    lost="its end is not known",
    silent="(no output yet)",
    actions={
        "deploy": ("Deploy", "Moves every client to the version."),
        "promote": ("Promote", "Ends the present canary step: the next share follows, or the cutover."),
        "abort": ("Abort", "Ends the canary and its rollout: the live slot answers everything again."),
        "rollback": ("Roll back", "Moves every client back."),
        "retire": ("Retire", "Stops the slot that is not live, after its requests, and frees its memory."),
        "release add": ("Add release", "Copies a checkpoint of the host and publishes it as a release."),
        "release verify": ("Verify release", "Compares every file of a release with its digest."),
    },
)

CHINESE = OperateTexts(
    title="操作",
    off="此主机未开启操作功能。开启方法见项目的 SECURITY.md。",
    locked="任何更改都需要操作员密钥。在此之前，本页只能查看。",
    key="操作员密钥",
    unlock="解锁",
    lock="锁定",
    unlocked="当前身份：**{name}**。密钥保留到页面重新加载或关闭为止。",
    wrong_key="这不是操作员的密钥。",
    too_many="您的地址尝试错误密钥的次数过多，请等待一分钟。",
    deploy="部署",
    version="版本",
    version_hint="选择版本",
    strategy="策略",
    strategy_help="overlap：与在线版本同时加载；weights：将权重载入运行中的进程；swap：先卸载在线版本；auto：自动选择。",
    canary="金丝雀比例（百分比）",
    canary_help="切换前分配的请求比例，例如 10,50。留空：不使用金丝雀。",
    step="每个金丝雀阶段的时长",
    step_help="例如 60s 或 5m；pause：直到手动推进。",
    bake="观察时长",
    bake_help="切换后观察新版本的时长，例如 60s 或 10m。",
    dry_run="试运行",
    rehearsing="正在试运行 …",
    possible="试运行未发现问题：",
    impossible="无法部署：",
    rollout="进行中的发布与回退",
    before="留空：此前提供服务的版本",
    slot="槽位",
    idle="留空：非在线槽位",
    releases="版本库",
    path="主机上的目录",
    path_help="Hugging Face 格式检查点的绝对路径。",
    name="版本名称",
    name_help="留空：使用目录名。",
    confirm="将在主机上运行此命令：",
    run="运行",
    cancel="取消",
    refused="未开始：{reason}",
    operations="操作记录",
    none_yet="暂无记录。",
    operation="操作",
    by="{name} · {at}",
    began="开始时间",
    operator="操作员",
    command="命令",
    outcome="结果",
    running="进行中",
    done="完成",
    failed="退出码 {code}",
    lost="结束状态未知",
    silent="（暂无输出）",
    actions={
        "deploy": ("部署", "将所有客户端切换到该版本。"),
        "promote": ("推进", "结束当前金丝雀阶段：进入下一比例或切换。"),
        "abort": ("中止", "结束金丝雀及其发布：在线槽位重新处理全部请求。"),
        "rollback": ("回滚", "将所有客户端切回。"),
        "retire": ("退役", "待请求处理完后停止非在线槽位，释放其内存。"),
        "release add": ("添加版本", "复制主机上的检查点并发布为版本。"),
        "release verify": ("校验版本", "将版本的每个文件与其摘要比对。"),
    },
)

OPERATE_TEXTS: Mapping[str, OperateTexts] = {"en": ENGLISH, "zh": CHINESE}
