"""Small checkpoints of the real model's layout, for tests, benchmarks and the demo.

`tiny` makes one with random weights; `shapes` holds two that were trained to answer questions about drawn shapes.
"""
