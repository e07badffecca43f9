"""A tiny model that answers truly about drawn shapes: GLM-4.6V-Flash's architecture and files, 0.7 M parameters.

`releases/` holds two versions. 1.0.0 knows colours: asked "What is in this picture?" it says "a red thing". 1.1.0 knows
colours and shapes, and says "a red circle". Asked for what they do not know, they say what they know. They were made by

    python -m service.demo_models.shapes service/demo_models/shapes/releases/1.0.0 --version 1.0.0
    python -m service.demo_models.shapes service/demo_models/shapes/releases/1.1.0 --version 1.1.0

in minutes on two cores. The seed is fixed: the same machine makes the same weights again, another kind of processor
adds in another order and makes others that are as good. Pictures with an upright, large shape on a light ground are
what they know best; a picture to try them with is made by

    python -m service.demo_models.shapes red-circle.png --draw red circle
"""
