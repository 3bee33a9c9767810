"""What every op must pass, once: an op's own file says what it computes and takes the tests made for it here.

Correct means an error against fp64 of at most twice that of the plain formula in the working dtype.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from vaccel import ops, reference
from vaccel.ops import _dispatch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Odd sizes about every boundary of the kernels' chunks and vectors, and a Wan latent; 65537 is prime.
SHAPES = ((1, 1), (3, 7), (4, 5, 33), (2, 4096), (2, 4097), (3, 16384), (2, 65537), (2, 64, 5, 6, 6))
PRODUCTION = ((1, 16, 21, 60, 104), (1, 1024, 1536))
#: What Triton's interpreter, a thousand times slower, is given of it.  A chunk past the first does what the first does,
#: whatever the dtype: so every small size in all dtypes, and each size of many chunks in one.
INTERPRETED = [(shape, dtype) for shape in SHAPES[:5] for dtype in DTYPES]
INTERPRETED += zip(SHAPES[5:], (torch.float16, torch.bfloat16, torch.float32), strict=True)
#: Unaligned tensors each stand another number of elements past a boundary; shifted ones, and ``out``, all one.
LAYOUTS = ("contiguous", "transposed", "sliced", "unaligned", "shifted")
GPU = torch.cuda.is_available()


def names() -> list[str]:
    """The implementations this process can run.  Without a GPU those for one are not even listed, but for Triton's,
    under its interpreter; on a GPU machine a process with the interpreter is there for Triton alone."""
    if GPU and _dispatch.INTERPRETED:
        return ["triton"]
    found = ["torch"] + (["cpp"] if ops.native() else [])
    return found + (["cuda", "triton"] if GPU else ["triton"] if _dispatch.INTERPRETED else [])


def impls(*values: Any) -> list[Any]:
    """Parameters for a test: ``values`` and every implementation, marked where it needs a GPU."""
    return [pytest.param(*values, name, marks=pytest.mark.gpu if device_of(name) == "cuda" else ()) for name in names()]


def interpreted(impl: str) -> bool:
    return impl == "triton" and _dispatch.INTERPRETED


def device_of(impl: str) -> str:
    return "cuda" if impl in ("cuda", "triton") and not interpreted(impl) else "cpu"


def tensors(count: int, shape: tuple[int, ...], dtype: torch.dtype, *, layout: str = "contiguous", device: str = "cpu",
            seed: int = 0) -> list[torch.Tensor]:  # fmt: skip
    """Normal values, the same for every layout; what lies around a slice is NaN."""
    generator = torch.Generator(device).manual_seed(seed)
    made = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(count)]
    return [laid_out(t, layout, 2 + i) for i, t in enumerate(made)]


def laid_out(t: torch.Tensor, layout: str, past: int = 2) -> torch.Tensor:
    if layout == "transposed" and t.ndim > 2:
        return t.transpose(1, -1).contiguous().transpose(1, -1)
    if layout == "sliced":
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"), dtype=t.dtype, device=t.device)
        wide[..., ::2] = t
        return wide[..., ::2]
    if layout in ("unaligned", "shifted"):
        past = past if layout == "unaligned" else 1
        flat = torch.full((t.numel() + past,), float("nan"), dtype=t.dtype, device=t.device)
        flat[past:] = t.flatten()
        return flat[past:].view(t.shape)
    return t


@dataclasses.dataclass(frozen=True)
class Case:
    """An op of ``inputs`` tensors like x.

    Attributes:
        arguments: what else it takes, by (inputs, generator).
        plain: the formula as one would type it, every operation in the inputs' dtype.
        terms: what rounding errors are relative to where terms cancel; by default the result.
        writes: whether it writes into ``out``.
        differentiable: whether inputs that need gradients may be given; by default where nothing is written.
        grouped: what the op is called with, of the flat arguments that the tests make and ``plain`` takes.
        options: what the op is called with by name.
    """

    op: str
    inputs: int
    plain: Callable[..., Any]
    arguments: Callable[[list[torch.Tensor]], tuple] = lambda inputs: ()
    terms: Callable[..., torch.Tensor] | None = None
    writes: bool = False
    differentiable: bool | None = None
    grouped: Callable[[tuple], tuple] = lambda args: args
    options: dict[str, int] = dataclasses.field(default_factory=dict)

    def make(self, shape: tuple[int, ...], dtype: torch.dtype, **how: Any) -> tuple:
        inputs = tensors(self.inputs, shape, dtype, **how)
        return (*inputs, *self.arguments(inputs))

    def run(self, args: tuple, impl: str | None, function: Callable | None = None) -> list[torch.Tensor]:
        """The results, ``out`` full of NaN beforehand; ``function`` in place of the public one."""
        function = function or functools.partial(getattr(ops, self.op), impl=impl, **self.options)
        given = self.grouped(args)
        if not self.writes:
            return [function(*given)]
        out = torch.full(args[0].shape, float("nan"), dtype=args[0].dtype, device=args[0].device)
        if not torch.compiler.is_compiling():
            out = laid_out(out, "shifted" if args[0].storage_offset() == 1 else "contiguous")
        result = function(*given, out)
        return [out] if result is out else [out, *result]

    def truth(self, args: tuple) -> list[torch.Tensor]:
        return _listed(getattr(reference, self.op)(*self.grouped(args), **self.options))

    def plainly(self, args: tuple) -> list[torch.Tensor]:
        """The plain formula's results.  In fp16 its sums of squares overflow: there it has fp32 for all but storage."""
        if args[0].dtype != torch.float16:
            return _listed(self.plain(*args))
        wide = tuple(a.float() if isinstance(a, torch.Tensor) else a for a in args)
        return [result.half() if result.shape == args[0].shape else result for result in _listed(self.plain(*wide))]


def _listed(result: Any) -> list[torch.Tensor]:
    """One tensor, or what is stored and the rows of the statistics."""
    return [result] if isinstance(result, torch.Tensor) else [result[0], *result[1]]


def within_twice(
    result: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, scale: torch.Tensor, what: str
) -> None:
    """Twice the plain formula's error, and never asked to beat the formula's own tail of four roundings of eps / 2.

    Where terms are no number (a sum that cancels out in half precision, over its norm), the result is all there is.
    """
    scale = torch.where(scale.isfinite(), scale, truth)
    rounding = scale.abs().max() * torch.finfo(result.dtype).eps * 2
    plainly = (plain.double() - truth).abs().max().nan_to_num(0.0, posinf=0.0)  # an overflow excuses nothing
    error = (result.double() - truth).abs().max()
    assert error <= torch.maximum(2 * plainly, rounding), f"{what}: error {error:.3g}, plainly {plainly:.3g}"


def check(case: Case, args: tuple, impl: str | None, function: Callable | None = None) -> None:
    results, truths = case.run(args, impl, function), case.truth(args)
    plains = case.plainly(args)
    scales = truths if case.terms is None else [case.terms(*args)]
    assert results[0].shape == args[0].shape or results[0].shape == args[0].shape[:1]
    for result, plain, truth, scale in zip(results, plains, truths, scales, strict=True):
        within_twice(result, plain, truth, scale, f"{case.op} {impl}")
    for first, again in zip(results, case.run(args, impl, function), strict=True):
        assert torch.equal(first, again), f"{case.op} {impl}: two runs differ"


def tests(case: Case) -> dict[str, Callable]:
    """All that an op must pass, by name, for its own file's namespace."""
    made = [against_fp64, any_layout, any_shape, special_values, each_sample_is_its_own, registered, compiles, of_fakes,
            refuses, threads_change_no_bit, *((captured, past_two_to_the_31) if GPU else (on_a_gpu,))]  # fmt: skip
    if not case.writes if case.differentiable is None else case.differentiable:
        made.append(gradients)
    return {f"test_{case.op}_{make.__name__}": make(case) for make in made}


# -- the tests, made for one op ----------------------------------------------------------------------------------------


def against_fp64(case: Case) -> Callable:
    sizes = [(shape, dtype) for shape in SHAPES + PRODUCTION for dtype in DTYPES]
    listed = [param for size in sizes for param in impls(*size)]
    listed = [param for param in listed if param.values[:2] in INTERPRETED or not interpreted(param.values[2])]

    @pytest.mark.parametrize(("shape", "dtype", "impl"), listed, ids=str)
    def test(shape: tuple[int, ...], dtype: torch.dtype, impl: str) -> None:
        check(case, case.make(shape, dtype, device=device_of(impl)), impl)

    return test


def any_layout(case: Case) -> Callable:
    @pytest.mark.parametrize("impl", impls())
    @pytest.mark.parametrize("layout", LAYOUTS[1:])
    def test(layout: str, impl: str) -> None:
        for dtype in DTYPES:
            check(case, case.make((2, 5, 8, 12), dtype, layout=layout, device=device_of(impl)), impl)

    return test


def any_shape(case: Case) -> Callable:
    @pytest.mark.parametrize("impl", impls())
    def test(impl: str) -> None:
        @settings(max_examples=10 if interpreted(impl) else 25, deadline=None)
        @given(
            shape=st.tuples(st.integers(1, 3)).flatmap(
                lambda b: st.lists(st.integers(1, 12), max_size=4).map(lambda d: (*b, *d))
            ),
            dtype=st.sampled_from(DTYPES),
            layout=st.sampled_from(LAYOUTS),
            seed=st.integers(0, 99),
        )
        @example(shape=(1,), dtype=torch.bfloat16, layout="contiguous", seed=49)  # a sum that cancels out
        def holds(shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int) -> None:
            check(case, case.make(shape, dtype, layout=layout, device=device_of(impl), seed=seed), impl)

        holds()

    return test


def special_values(case: Case) -> Callable:
    """NaN and infinities come out where the reference has them; zeros and empty tensors do what the formula does."""

    @pytest.mark.parametrize("impl", impls())
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test(dtype: torch.dtype, impl: str) -> None:
        device = device_of(impl)
        args = case.make((5, 50), dtype, device=device)
        for x in args[: case.inputs]:
            x[0, 3], x[1, 3], x[2, 4], x[3] = float("nan"), float("inf"), float("-inf"), 0.0
        for result, truth in zip(case.run(args, impl), case.truth(args), strict=True):
            truth = truth.to(result.dtype)
            assert torch.equal(result.isnan(), truth.isnan())
            assert torch.equal(result.isinf(), truth.isinf())
        for shape in ((0, 4), (2, 0), (0,)):
            for result, truth in zip(case.run(case.make(shape, dtype, device=device), impl),
                                     case.truth(case.make(shape, dtype, device=device)), strict=True):  # fmt: skip
                assert result.shape == truth.shape
                assert torch.equal(result.nan_to_num(7), truth.to(result.dtype).nan_to_num(7))

    return test


def each_sample_is_its_own(case: Case) -> Callable:
    @pytest.mark.parametrize("impl", impls())
    def test(impl: str) -> None:
        args = case.make((4, 8, 6), torch.float32, device=device_of(impl))
        together = case.run(args, impl)
        for i in range(4):
            one = tuple(a[i : i + 1] if isinstance(a, torch.Tensor) else a for a in args)
            for whole, alone in zip(together, case.run(one, impl), strict=True):
                assert torch.allclose(whole[i : i + 1], alone, rtol=1e-6)

    return test


def registered(case: Case) -> Callable:
    """Schema, fake and what it mutates, by torch's own checks."""

    # Schemas and fakes of Triton's are those of the compiled ops, which are checked in every dtype.
    listed = [param for dtype in DTYPES for param in impls(dtype) if param.values[1] != "torch"]
    listed = [param for param in listed if param.values[0] == torch.bfloat16 or not interpreted(param.values[1])]

    @pytest.mark.skipif(not ops.native(), reason="no compiled kernels")
    @pytest.mark.parametrize(("dtype", "impl"), listed, ids=str)
    def test(dtype: torch.dtype, impl: str) -> None:
        args = case.make((2, 4, 8), dtype, device=device_of(impl))
        out = (torch.empty_like(args[0]),) if case.writes else ()
        library = torch.ops.vaccel_triton if impl == "triton" else torch.ops.vaccel
        given = (*case.grouped(args), *out)
        results = torch.library.opcheck(getattr(library, case.op).default, given, case.options)
        assert set(results.values()) == {"SUCCESS"}

    return test


def compiles(case: Case) -> Callable:
    """The public function inside a full graph, with the operations around it."""

    @pytest.mark.parametrize("impl", impls() if ops.native() else ["torch"])
    def test(impl: str) -> None:
        torch._dynamo.reset()
        args = case.make((2, 4, 8), torch.float32, device=device_of(impl))

        def step(*args: Any) -> list[torch.Tensor]:
            return [2 * result for result in case.run((args[0] + 1, *args[1:]), impl)]

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for result, expected in zip(compiled(*args), step(*args), strict=True):
            assert torch.equal(result, expected)

    return test


def of_fakes(case: Case) -> Callable:
    """Of tensors without contents, a GPU's too where there is none: shapes and dtypes, and nothing is launched."""
    listed = impls() if ops.native() else ["torch"]

    @pytest.mark.parametrize("impl", listed)
    def test(impl: str) -> None:
        args = case.make((2, 4, 8), torch.bfloat16)
        expected = case.run(args, "torch")
        # Without CUDA torch cannot take a row of a fake GPU's tensor, as the statistics are.
        elsewhere = {"cuda"} if impl == "triton" and (GPU or len(expected) == 1) else set()
        for device in {device_of(impl)} | elsewhere:
            with FakeTensorMode():
                given = tree_map_only(
                    torch.Tensor, lambda t, d=device: torch.empty(t.shape, dtype=t.dtype, device=d), args
                )
                results = case.run(given, impl)
            for result, real in zip(results, expected, strict=True):
                assert isinstance(result, FakeTensor)
                assert (result.shape, result.dtype, result.device.type) == (real.shape, real.dtype, device)

    return test


def on_a_gpu(case: Case) -> Callable:
    """In place of all that would be skipped one by one."""

    @pytest.mark.gpu
    def test() -> None:
        raise AssertionError("a GPU has come up since this was listed")

    return test


def captured(case: Case) -> Callable:
    """Inside a CUDA graph, replayed on other values."""

    @pytest.mark.gpu
    @pytest.mark.parametrize("impl", ["cuda", "triton"])
    def test(impl: str) -> None:
        args = case.make((2, 16, 64), torch.bfloat16, device="cuda")
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            case.run(args, impl)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            results = case.run(args, impl)
        for mine, other in zip(args, case.make((2, 16, 64), torch.bfloat16, device="cuda", seed=1), strict=True):
            if isinstance(mine, torch.Tensor):
                mine.copy_(other)
        graph.replay()
        torch.cuda.synchronize()
        for result, expected in zip(results, case.run(args, impl), strict=True):
            assert torch.equal(result, expected)

    return test


def past_two_to_the_31(case: Case) -> Callable:
    """More elements than 32 bits count, and just below: the last ones are where a narrow index goes wrong."""

    @pytest.mark.gpu
    @pytest.mark.parametrize("impl", ["cuda", "triton"])
    @pytest.mark.parametrize("elements", [2**31 - 1, 2**31 + 4104])
    def test(elements: int, impl: str) -> None:
        args = tuple(
            torch.ones(1, elements, dtype=torch.bfloat16, device="cuda") if i < case.inputs else a
            for i, a in enumerate(case.make((1, 8), torch.bfloat16, device="cuda"))
        )
        tail = tuple(a[:, -4096:] if isinstance(a, torch.Tensor) and a.ndim > 1 else a for a in args)
        for result in case.run(args, impl):
            assert not result.isnan().any()
            if result.shape == args[0].shape and case.writes:
                assert torch.equal(result[:, -4096:], case.run(tail, "torch")[0])
        torch.cuda.empty_cache()

    return test


def refuses(case: Case) -> Callable:
    """Asked for and unable: said, never computed by something else."""

    def test() -> None:
        args = case.make((2, 3, 4), torch.float32)
        with pytest.raises(ValueError, match=rf"{case.op}: unknown impl 'cuda9'"):
            case.run(args, "cuda9")
        doubled = tuple(a.double() if isinstance(a, torch.Tensor) else a for a in args)
        for impl in ("cpp", "cuda", "triton"):
            with pytest.raises(ValueError, match=f"{case.op}: impl='{impl}' cannot run: "):
                case.run(doubled, impl)
        if case.inputs > 1:
            other = (args[0], args[1][:, :2], *args[2:])
            with pytest.raises(ValueError, match=rf"{case.op}: .*\(2, 3, 4\).*\(2, 2, 4\) differ in shape"):
                case.run(other, "torch")

    return test


def gradients(case: Case) -> Callable:
    """An op that returns its result leaves gradients to torch."""

    def test() -> None:
        args = case.make((2, 30), torch.float32)
        args[0].requires_grad_()
        case.run(args, None)[0].sum().backward()
        assert args[0].grad.abs().sum() > 0

    return test


def threads_change_no_bit(case: Case) -> Callable:
    @pytest.mark.skipif("cpp" not in names(), reason="no compiled kernels")
    def test() -> None:
        args, threads = case.make((2, 16, 21, 60, 104), torch.float32), torch.get_num_threads()
        found = []
        try:
            for several in (1, 2, 3):
                torch.set_num_threads(several)
                found.append(case.run(args, "cpp"))
        finally:
            torch.set_num_threads(threads)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))

    return test
