"""What a worker imports before it serves: half of transformers, no SQLAlchemy, and all of torch still works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = Path(__file__).resolve().parent.parent


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CODE, timeout=120)


def test_unused_parts_of_transformers_are_left_out() -> None:
    """Neither torch._dynamo nor torch.distributed.tensor nor scipy is imported, and no device is looked for.

    A process that has called the CUDA driver cannot be forked, and the imports are done before the fork.
    """
    done = run(
        "import json, sys, torch;"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = None;"
        "torch.accelerator.is_available = torch.accelerator.current_accelerator = None;"
        "from service.model.imports import import_transformers; import_transformers();"
        "import service.engine.model_engine; print(json.dumps(sorted(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    assert "imported whole" not in done.stderr
    imported = set(json.loads(done.stdout))
    assert {"transformers.models.glm4v.modeling_glm4v", "transformers.models.glm46v.processing_glm46v"} <= imported
    assert not imported & {"torch._dynamo", "torch.distributed.tensor", "torch.distributed.fsdp", "scipy"}


def test_what_most_servers_never_use_is_left_out() -> None:
    """The application comes without the database of batches, and without the command line of httpx."""
    done = run("import json, sys, service.app; print(json.dumps(sorted(sys.modules)))")
    imported = set(json.loads(done.stdout))
    assert "httpx" in imported
    assert not imported & {"sqlalchemy", "click", "rich", "torch"}


def test_torch_works_whole_afterwards() -> None:
    """torch.compile's tracer and flex attention import as if nothing had been left out."""
    done = run(
        "from service.model.imports import import_transformers; import_transformers(); import torch;"
        "from torch.nn.attention.flex_attention import create_block_mask, flex_attention;"
        "from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex;"
        "traced = torch.compile(lambda x: x + 1, backend='eager', fullgraph=True)(torch.ones(2));"
        "mask = create_block_mask(lambda b, h, q, k: q >= k, 1, 1, 128, 128, device='cpu');"
        "x = torch.ones(1, 1, 128, 16); print(traced.tolist(), flex_attention(x, x, x, block_mask=mask).sum().item())"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("]")[0] == "[2.0, 2.0"


@pytest.mark.long
def test_a_version_that_cannot_be_imported_so_is_imported_whole() -> None:
    """Something unforeseen in transformers costs time, not service; what other packages imported stays as it is."""
    done = run(
        "import service.model.imports as imports, logging, sys, torch; logging.basicConfig();"
        "other = __import__('types').ModuleType('another');"
        "fails = lambda: sys.modules.update(another=other) or {'torch._dynamo': type(other)('torch._dynamo')};"
        "imports._dynamo_stand_in = fails;"
        "imports.import_transformers(); from transformers import Glm4vForConditionalGeneration;"
        "print('torch._dynamo' in sys.modules, sys.modules['another'] is other)"
    )
    assert done.returncode == 0, done.stderr
    assert "imported whole" in done.stderr
    assert done.stdout.strip() == "True True"
