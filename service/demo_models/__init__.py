"""Small checkpoints with the files and architecture of GLM-4.6V-Flash, for tests, benchmarks and the demo.

`tiny` makes checkpoints with random weights; `shapes` trains models that answer questions about drawn shapes, and holds
two trained releases. Start with `layout`, which writes the files around the weights.
"""
