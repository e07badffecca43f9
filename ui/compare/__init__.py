"""One question to both slots of a canary, side by side, and votes on the answers.

Start with `view`, which draws it; `comparison` asks both sides, `differences` marks words, and `votes` keeps votes.
"""
