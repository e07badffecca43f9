"""The texts of the compare page in English and Chinese."""

# ruff: noqa: RUF001  Chinese punctuation

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["COMPARE_TEXTS", "CompareTexts"]


@dataclass(frozen=True)
class CompareTexts:
    """The texts in one language."""

    title: str
    both: str
    one_slot: str
    one_slot_hint: str
    prompt: str
    no_prompt: str
    sides: Mapping[str, str]
    stop: str
    total: str
    differences: str
    mark: str
    differing: str
    no_difference: str
    too_long: str
    vote: str
    better: str
    equal: str
    neither: str
    voted: str
    vote_failed: str
    same_slot: str
    tally: str
    tally_hint: str
    columns: tuple[str, str, str, str, str]


COMPARE_TEXTS: Mapping[str, CompareTexts] = {
    "en": CompareTexts(
        title="Compare",
        both="One question, answered at once by **{live}** (slot {live_slot}, live) and **{other}** "
        "(slot {other_slot}, {role}).",
        one_slot="Only **{version}** in slot {slot} answers, so that there is nothing to compare it with.",
        one_slot_hint="Two versions answer while both slots run: during a canary, which "
        "`glmctl deploy VERSION --canary 1 --step pause` begins, during a bake, and after a deploy with `--keep-warm`. "
        "This page then shows both.",
        prompt="A question for both",
        no_prompt="Only one version answers at present",
        sides={"live": "live", "candidate": "candidate", "idle": "not live"},
        stop="Stop both",
        total="{seconds} s in all",
        differences="Differences",
        mark="Mark differing words",
        differing="Words that differ: {count}. The text is shown as it was received, without formatting.",
        no_difference="No word differs.",
        too_long="The answers are too long to be compared word by word.",
        vote="Which answer is better?",
        better="{version} is better",
        equal="Both are good",
        neither="Neither is good",
        voted="Your vote counts; choose another one to change it.",
        vote_failed="The vote could not be kept; see the journal of the page.",
        same_slot="Both answers came from slot {slot}: the other one has stopped answering meanwhile. They cannot be "
        "voted on.",
        tally="Votes so far",
        tally_hint="Of all who use this page. Questions and answers are not kept.",
        columns=("Versions", "First is better", "Second is better", "Both good", "Neither good"),
    ),
    "zh": CompareTexts(
        title="对比",
        both="同一个问题由 **{live}**（{live_slot} 槽位，在线）和 **{other}**（{other_slot} 槽位，{role}）同时回答。",
        one_slot="目前只有 {slot} 槽位的 **{version}** 应答，没有可对比的版本。",
        one_slot_hint="两个槽位都在运行时有两个版本应答：在金丝雀发布期间（运行 "
        "`glmctl deploy VERSION --canary 1 --step pause` 即可开始），以及使用 `--keep-warm` 部署之后或观察期内。"
        "届时本页会显示两个版本。",
        prompt="向两个版本提问",
        no_prompt="目前只有一个版本应答",
        sides={"live": "在线", "candidate": "候选", "idle": "未上线"},
        stop="全部停止",
        total="共 {seconds} 秒",
        differences="差异",
        mark="标出不同的词",
        differing="不同的词：{count} 个。文本按收到的原样显示，不含排版。",
        no_difference="没有不同的词。",
        too_long="回答过长，无法逐词对比。",
        vote="哪个回答更好？",
        better="{version} 更好",
        equal="两个都好",
        neither="两个都不好",
        voted="已记录您的投票；可另选以更改。",
        vote_failed="无法保存投票，请查看页面的日志。",
        same_slot="两个回答都来自 {slot} 槽位：另一个槽位已在此期间停止应答，不能投票。",
        tally="投票统计",
        tally_hint="包括本页所有用户的投票；不保存问题和回答。",
        columns=("版本", "前者更好", "后者更好", "都好", "都不好"),
    ),
}
