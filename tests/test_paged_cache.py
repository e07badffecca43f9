"""The paged cache: pages, masks, admission and preemption. Whole schedules are in test_batching.py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.overrides import TorchFunctionMode
from transformers import Glm4vForConditionalGeneration

from service.engine import compiler, paged_cache, runner
from service.engine.cache import Budget, Shape, SlotCache
from service.engine.graph import Graph
from service.engine.pace import Pace
from service.engine.paged_attention import Flex, compiled_flex, mask_of_chunk, mask_of_rows
from service.engine.paged_cache import PagedCache, cache_for
from service.engine.pages import PageTable
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence
from tests.batching_fixtures import COLUMNS, PAGE, PAGES_OF_A_ROW, RequestFactory, one_thread, run
from tests.bench import device
from tests.flex_fixtures import kernel

many = partial(settings, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZE = 4  # tokens of a page, where no model is needed


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RequestFactory]:
    with one_thread():
        yield RequestFactory(tmp_path_factory.mktemp("model") / "model")


class Pages:
    """A cache without keys and values."""

    def __init__(self, rows: int, pages: int, longest: int) -> None:
        self.budget = SimpleNamespace(rows=rows, capacity=pages * SIZE)
        self.table = PageTable(rows, pages, SIZE, longest)
        self.fits, self.reserve, self.release = self.table.fits, self.table.reserve, self.table.release

    def move(self, source: int, target: int, _columns: int) -> None:
        self.table.move(source, target)

    def held(self, row: int) -> list[int]:
        """The pages of a row."""
        return [page for page in self.table.table[row].tolist() if page]


joins = st.tuples(st.integers(1, 30), st.integers(1, 30), st.sampled_from(["interactive", "batch"]))


@many(max_examples=60)
@given(
    moves=st.lists(st.one_of(joins, st.integers(0, 9), st.none()), max_size=40),
    rows=st.integers(1, 5),
    spare=st.integers(0, 12),
    chunk=st.sampled_from([3, 16, 100]),
)
def test_every_row_has_the_pages_of_its_tokens(moves: list[Any], rows: int, spare: int, chunk: int) -> None:
    """Whatever arrives, ends and is preempted: a step has a page for each token that it computes, no page has two rows,
    the oldest interactive request keeps its row, and all requests end.
    """
    longest = -(-60 // SIZE)
    cache = Pages(rows, longest + spare, longest)
    scheduler = Scheduler(cast("Any", cache), Pace(chunk))
    sequences: list[Sequence] = []

    def step() -> bool:
        living = [one for one in scheduler.rows if not one.cancelled and one.priority == "interactive"]
        planned = scheduler.schedule()
        if planned is None:
            return False
        assert not living or min(living, key=lambda one: one.number) in scheduler.rows
        counts = {**dict.fromkeys(planned.decoding, 1), **dict(planned.chunks)}
        for sequence, count in counts.items():
            assert len(cache.held(sequence.row)) * SIZE >= sequence.cached + count
        held = [page for row in range(rows) for page in cache.held(row)]
        assert len(held) == len(set(held)) == cache.table.used
        sampled = [sequence for sequence, own in zip(planned.sequences, planned.sampled, strict=True) if own]
        scheduler.advance(planned)
        for sequence in sampled:
            sequence.tokens.append(0)
            sequence.ended = len(sequence.tokens) >= sequence.max_new_tokens
        scheduler.reap()
        return True

    for move in moves:
        if isinstance(move, tuple):
            prompt, tokens, priority = move
            length = cast("Any", SimpleNamespace(length=prompt))
            sequences.append(Sequence(length, cast("Any", None), cast("Any", None), tokens, priority=priority))
            scheduler.add(sequences[-1])
        elif move is not None and sequences:
            sequences[move % len(sequences)].cancelled = True
        step()
    for _ in range(4000):
        if not step():
            break
    assert all(one.cancelled or len(one.tokens) == one.max_new_tokens for one in sequences)
    assert cache.table.used == 0
    assert not cache.table.table.any()


def test_pages_are_taken_from_the_newest(factory: RequestFactory) -> None:
    """When the pages run out, the newest request waits until others have ended; its tokens are not disturbed."""
    core = factory.core(rows=3, pages=PAGES_OF_A_ROW)
    requests = [factory.request(number) for number in (4, 3, 0)]
    for request in requests:
        core.scheduler.add(request.sequence)
    preempted = []
    while core.step():
        preempted += [number for number, one in enumerate(requests) if one.tokens and one.sequence.row < 0]
        ended = [number for number, one in enumerate(requests) if one.end]
        preempted = [number for number in preempted if number not in ended]
        if preempted:
            break
    assert preempted == [2]
    run(core)
    assert [request.tokens for request in requests] == [factory.expected[number] for number in (4, 3, 0)]


def test_one_request_may_have_the_whole_cache(factory: RequestFactory) -> None:
    """Three rows share the pages of one context: a request of that length is answered, and short ones beside it."""
    core = factory.core(rows=3, pages=PAGES_OF_A_ROW)
    prompt = factory.prompts[4].length
    long = factory.request(4, max_tokens=COLUMNS - prompt)
    short = [factory.request(number, max_tokens=3) for number in (0, 1, 2)]
    for request in (long, *short):
        core.scheduler.add(request.sequence)
    run(core)
    assert len(long.tokens) == COLUMNS - prompt
    assert long.tokens[:20] == factory.expected[4]
    assert [request.tokens for request in short] == [factory.expected[number][:3] for number in (0, 1, 2)]


def test_interactive_requests_take_the_pages_of_batch_requests(factory: RequestFactory) -> None:
    """Rows are free but no pages: the batch request that has them is preempted, and answered later."""
    core = factory.core(rows=4, pages=PAGES_OF_A_ROW + 1)
    low = [factory.request(4, priority="batch") for _ in range(2)]
    for request in low:
        core.scheduler.add(request.sequence)
    for _ in range(3):
        core.step()
    high = factory.request(3)
    core.scheduler.add(high.sequence)
    core.step()
    assert [request.sequence.row for request in (*low, high)] == [0, -1, 1]
    run(core)
    assert [request.tokens for request in (*low, high)] == [factory.expected[number] for number in (4, 4, 3)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@example(lengths=[1, 3, 4, 5, 20], starts=[0, 6], seed=1, attend=flex_attention)
@many(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 5 * SIZE), min_size=1, max_size=5),
    starts=st.lists(st.integers(0, 4 * SIZE), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    attend=st.just(kernel),
)
def test_masks_show_each_token_its_own_row(lengths: list[int], starts: list[int], seed: int, attend: Any) -> None:
    """One token of each row, and prompt tokens of several rows at once, attend to what plain attention would."""
    torch.manual_seed(seed)
    rows, longest = max(len(lengths), len(starts)), 6
    pool = rows * longest + 1
    table = torch.zeros(rows, longest + 1, dtype=torch.long)
    table[:, :longest] = (torch.randperm(pool - 1) + 1).view(rows, longest)
    keys, values = (torch.randn(1, 2, pool * SIZE, 8) for _ in range(2))

    def plain(query: torch.Tensor, row: int, end: int) -> torch.Tensor:
        slots = (table[row][:, None] * SIZE + torch.arange(SIZE)).flatten()[:end]
        return sdpa(query, keys[:, :, slots], values[:, :, slots], enable_gqa=True)

    query = torch.randn(len(lengths), 4, 1, 8)
    mask = mask_of_rows(table[: len(lengths)], torch.tensor(lengths), pool, SIZE)
    output = attend(query, keys, values, block_mask=mask, enable_gqa=True)
    for row, length in enumerate(lengths):
        expected = plain(query[row : row + 1], row, length)
        torch.testing.assert_close(output[row : row + 1], expected, rtol=1e-5, atol=1e-5)
    columns = torch.cat([torch.arange(start, start + SIZE + row) for row, start in enumerate(starts)])
    places = torch.cat([torch.full((SIZE + row,), row) for row in range(len(starts))])
    padding = -len(columns) % SIZE
    places, columns = (torch.nn.functional.pad(each, (0, padding)) for each in (places, columns))
    query = torch.randn(1, 4, len(columns), 8)
    mask = mask_of_chunk(table, places, columns, pool, SIZE)
    output = attend(query, keys, values, block_mask=mask, enable_gqa=True)
    for token, (row, column) in enumerate(zip(places.tolist(), columns.tolist(), strict=True)):
        expected = plain(query[:, :, token : token + 1], row, column + 1)
        torch.testing.assert_close(output[:, :, token : token + 1], expected, rtol=1e-5, atol=1e-5)


def test_a_block_visits_no_page_in_vain() -> None:
    """The lists have the pages of the block's rows up to its last token, and complete ones are not compared."""
    table = torch.tensor([[3, 1, 5, 0], [2, 4, 0, 0]])
    rows, columns = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([5, 6, 7, 8, 0, 1, 2, 3])
    mask = mask_of_chunk(table, rows, columns, 6, SIZE)
    listed = [
        [sorted(numbers[:count].tolist()) for count, numbers in zip(counts[0, 0], of_block[0, 0], strict=True)]
        for counts, of_block in (
            (mask.kv_num_blocks, mask.kv_indices),
            (cast("Any", mask.full_kv_num_blocks), cast("Any", mask.full_kv_indices)),
        )
    ]
    assert listed == [[[1, 5], [2]], [[3], []]]


def test_the_mask_of_a_chunk_reads_no_values_of_pairs() -> None:
    """A kernel keeps what it reads for each pair of query and key in shared memory, which then is not enough."""
    table = torch.tensor([[3, 1, 5, 0], [2, 4, 0, 0]])
    rows, columns = torch.tensor([0] * SIZE + [1] * SIZE), torch.arange(2 * SIZE)
    mask = mask_of_chunk(table, rows, columns, 6, SIZE)
    read = []

    class Reads(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function is torch.Tensor.__getitem__:
                read.append(result.numel())
            return result

    queries, keys = torch.arange(2 * SIZE)[:, None], torch.arange(6 * SIZE)
    with Reads():
        seen = mask.mask_mod(torch.tensor(0), torch.tensor(0), queries, keys)
    assert seen.shape == (len(queries), len(keys))
    assert sorted(set(read)) == [len(queries), len(keys)]


def test_a_captured_step_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture may neither read a value back nor use a tensor of the host. The device `meta` refuses both."""
    with torch.device("meta"):
        model = Glm4vForConditionalGeneration(device.config("small")).eval().requires_grad_(False)
    monkeypatch.setattr(compiler, "works", lambda _: True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    attended = []

    def attend(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        attended.append(tuple(query.shape))
        if query.shape[2] == 1:
            assert query.stride() == (heads * size, size, size, 1)  # another one is another kernel
        return torch.empty_like(query)

    text = model.config.text_config
    heads, size = text.num_attention_heads, text.hidden_size // text.num_attention_heads
    cache = PagedCache(model, Budget(4, 2 * paged_cache.PAGE, 6 * paged_cache.PAGE), attention=attend)
    steps = runner.Runner(model, cache)
    with torch.inference_mode(), torch.device("meta"):
        tokens = torch.zeros(3, 4, dtype=torch.long)
        assert steps._compute(Shape(4), tokens).shape == (4, text.vocab_size)
        chunk = torch.zeros(256, text.hidden_size), torch.zeros(5, 256, dtype=torch.long), torch.zeros(4).long()
        assert steps._compute(Shape(4, 256), tokens, *chunk).shape == (4, text.vocab_size)
        assert steps._compute(Shape(0, 256), tokens[:, :0], *chunk).shape == (4, text.vocab_size)
    rows, prompts = (4, heads, 1, size), (1, heads, 256, size)
    assert attended == [each for step in ([rows], [rows, prompts], [prompts]) for each in step * text.num_hidden_layers]


def test_padding_attends_to_one_page(factory: RequestFactory) -> None:
    """Also beside a long row, whose pages it would have to visit in vain."""
    core = factory.core(rows=4, pages=3 * PAGES_OF_A_ROW)
    cache = core._runner.cache
    assert isinstance(cache, PagedCache)
    assert cache.reserve(0, COLUMNS)
    cache.refresh()
    spare = torch.full((4 + 2 * PAGE,), cache.spare_column)
    layout = cache.layout(Shape(4, 2 * PAGE), torch.zeros_like(spare), spare)
    for mask, counts in ((layout.of_rows, [[[1]]] * 4), (layout.of_chunk, [[[1, 1]]])):
        assert isinstance(mask, BlockMask)
        assert mask.kv_num_blocks.tolist() == counts
        assert mask.full_kv_num_blocks is None or not mask.full_kv_num_blocks.any()


@pytest.mark.parametrize("cache", [{"pad": True}, {"pages": 2 * PAGES_OF_A_ROW}])
def test_a_capture_disturbs_no_running_request(
    factory: RequestFactory, monkeypatch: pytest.MonkeyPatch, cache: dict[str, Any]
) -> None:
    """A shape may be captured while requests run, which computes the step more than once; so may all of them."""
    monkeypatch.setattr(Graph, "_capture", lambda self, inputs: [self._function(*inputs) for _ in range(3)])
    create = Graph.__init__

    def capturing(self: Graph, *arguments: Any, **options: Any) -> None:
        create(self, *arguments, **options)
        _, inputs, _ = arguments
        self._capture(inputs)

    monkeypatch.setattr(Graph, "__init__", capturing)
    core = factory.core(rows=4, chunk=16, **cache)
    requests = [factory.request(number) for number in (0, 4, 6, 2)]
    for number, request in enumerate(requests):
        core.scheduler.add(request.sequence)
        for _ in range(3):
            core.step()
        if number == 2:
            core.warm_up()
    run(core)
    assert [request.tokens for request in requests] == [factory.expected[number] for number in (0, 4, 6, 2)]


def test_the_graphs_of_one_cache_share_their_memory(factory: RequestFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not with those of another, for a pool of memory cannot be used any more when its graphs are gone."""
    made: list[tuple[Graph, Graph | None]] = []
    create = Graph.__init__

    def record(self: Graph, *arguments: Any, beside: Graph | None = None) -> None:
        made.append((self, beside))
        create(self, *arguments, beside=beside)

    monkeypatch.setattr(Graph, "__init__", record)
    for _ in range(2):
        made.clear()
        factory.core(rows=2, chunk=16, pages=2 * PAGES_OF_A_ROW).warm_up()
        first = made[0][0]
        assert [beside for _, beside in made] == [None, *[first] * (len(made) - 1)]


def test_the_shapes_of_steps_are_few(factory: RequestFactory) -> None:
    """After the warm-up no schedule meets a new shape; a warm-up that may take no time captures none."""
    core = factory.core(rows=4, chunk=64, pages=3 * PAGES_OF_A_ROW)
    core.warm_up(0.0)
    assert not core._runner._graphs
    shares: list[float] = []
    core.warm_up(progress=shares.append)
    assert shares == [number / 9 for number in range(9)]
    captured = set(core._runner._graphs)
    chunks = {(rows, chunk, 0) for rows in (0, 4) for chunk in (16, 32, 64)}
    assert captured == chunks | {(1, 0, 0), (2, 0, 0), (4, 0, 0)}
    for number in range(9):
        core.scheduler.add(factory.request(number, max_tokens=number + 1).sequence)
        core.step()
    run(core)
    assert set(core._runner._graphs) == captured


def test_the_cache_is_paged_where_functions_are_compiled(
    factory: RequestFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU and without a compiler rows have columns of their own; elsewhere one may have all tokens."""
    model, size = factory.checkpoint.model, {"tokens": 8192, "rows": 4, "context": 131_072}
    slots = cache_for(model, **size)
    assert isinstance(slots, SlotCache)
    assert slots.budget == Budget(4, 2048)
    monkeypatch.setattr(compiler, "works", lambda _: True)
    paged = cache_for(model, **size)
    assert isinstance(paged, PagedCache)
    assert paged.budget == Budget(4, 8192, 8192)
    assert paged.budget.capacity == slots.budget.capacity == 8192


@given(tokens=st.integers(1, 3_000_000))
@example(tokens=262_144)
@example(tokens=8192)
def test_the_pool_has_one_of_few_sizes(tokens: int) -> None:
    """A start with some megabytes less than before finds the kernels of the start before on the disk."""
    size = paged_cache._rounded(tokens)
    assert tokens * 31 / 32 < size <= tokens
    assert paged_cache._rounded(size) == size
    assert size % (1 << max(0, tokens.bit_length() - 6)) == 0
    assert tokens not in {8192, 262_144} or size == tokens


def test_a_missing_compiler_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The CPU needs none; a device where nothing can be compiled is used without, after one warning with the reason."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", fail)
    assert not compiler.works(torch.device("cpu"))
    assert caplog.messages == []
    for _ in range(2):
        assert not compiler.works(torch.device("meta"))
    [message] = caplog.messages
    assert "Failed to find C compiler" in message
    assert "install" in message


def compiled_for_a_cpu() -> Flex:
    """compiled_flex, whose masks get lists of complete pages, all empty.

    torch 2.13 does not compile masks of single tokens without such lists for a CPU ("full_kv_num_blocks was not
    declared"). On a GPU, for which they are made, they are left out for a reason: see mask_of_rows.
    """
    attend = compiled_flex()

    def call(query: Tensor, keys: Tensor, values: Tensor, *, block_mask: BlockMask, **options: Any) -> Tensor:
        if block_mask.full_kv_num_blocks is None:
            block_mask = BlockMask.from_kv_blocks(
                block_mask.kv_num_blocks,
                block_mask.kv_indices,
                torch.zeros_like(block_mask.kv_num_blocks),
                torch.zeros_like(block_mask.kv_indices),
                BLOCK_SIZE=block_mask.BLOCK_SIZE,
                mask_mod=block_mask.mask_mod,
                seq_lengths=block_mask.seq_lengths,
                compute_q_blocks=False,
            )
        return attend(query, keys, values, block_mask=block_mask, **options)

    return call


@pytest.mark.long
def test_compiled_attention_gives_the_tokens_of_generate(factory: RequestFactory) -> None:
    """flex_attention as torch compiles it, with pages of the real size."""
    model = factory.checkpoint.model
    cache = PagedCache(model, Budget(2, COLUMNS, 3 * 2 * paged_cache.PAGE), attention=compiled_for_a_cpu())
    core = factory.core_of(runner.Runner(model, cache))
    requests = [factory.request(number, max_tokens=4) for number in (0, 4, 6)]
    for request in requests:
        core.scheduler.add(request.sequence)
    run(core)
    assert [request.tokens for request in requests] == [factory.expected[number][:4] for number in (0, 4, 6)]
