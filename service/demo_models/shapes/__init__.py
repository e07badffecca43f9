"""A small model that answers questions about drawn shapes: GLM-4.6V-Flash's architecture, 0.7 M parameters.

`releases/` holds two trained versions. To "What is in this picture?" 1.0.0, which knows colours, answers "a red thing",
and 1.1.0, which knows colours and shapes, "a red circle". To other questions they answer what they know. They were made
by

    python -m service.demo_models.shapes service/demo_models/shapes/releases/1.0.0 --version 1.0.0
    python -m service.demo_models.shapes service/demo_models/shapes/releases/1.1.0 --version 1.1.0

in minutes on two cores. The seed is fixed: the same machine gives the same weights, while another type of CPU sums in
another order and gives other weights of equal accuracy. Accuracy is highest for large, upright shapes on a light
background. A picture to ask about is made by

    python -m service.demo_models.shapes red-circle.png --draw red circle

Start with `dataset` (questions and answers); then `drawing`, `batching`, `training` and `evaluation`.
"""
