"""The digest of the weights in force: what changes it, what does not, what is read again."""

from __future__ import annotations

import copy
import gc

import pytest
import tiny
import torch
from accelerate import cpu_offload, disk_offload
from diffusers import WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing

from vaccel.models import contents
from vaccel.models.contents import BLOCK
from vaccel.models.weights_digest import digest, digest_of

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8,
    torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip
#: Around the sizes where something begins: words, blocks, chunks.
SIZES = [1, 2, 3, 5, 127, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 2**18 + 5]


def holding(*tensors: torch.Tensor) -> nn.Module:
    """A module with these as parameters or, where they cannot be any, buffers: p0, p1, ..."""
    module = nn.Module()
    for number, tensor in enumerate(tensors):
        if tensor.is_floating_point() or tensor.is_complex():
            module.register_parameter(f"p{number}", nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(f"p{number}", tensor)
    return module


def numbers(size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    made = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 20
    return (made > 0) if dtype is torch.bool else made.to(dtype)


def fresh(model: nn.Module) -> str:
    """Read anew, by a process that has seen nothing of it."""
    contents._KNOWN.clear()
    return digest(model)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.view(BITS[tensor.element_size()]).view(-1)


def reads(monkeypatch) -> list[torch.Tensor]:
    """Every tensor whose contents are read from now on."""
    read, content = [], contents._Reader.content

    def counting(self, tensor):
        read.append(tensor)
        return content(self, tensor)

    monkeypatch.setattr(contents._Reader, "content", counting)
    return read


# --- contents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_counts(dtype):
    for size in SIZES:
        model = holding(numbers(size, dtype))
        before = digest(model)
        assert digest(model) == before == fresh(copy.deepcopy(model))
        raw = bits(model.p0)
        width = 1 if dtype is torch.bool else 8 * raw.element_size()
        for place in {0, 1, size // 2, size - 1, raw.numel() - 1} & set(range(raw.numel())):
            for bit in {0, 7, width // 2, width - 1} & set(range(width)):
                mask = 1 << bit if bit < 8 * raw.element_size() - 1 or dtype is torch.uint8 else -(1 << bit)
                with torch.no_grad():
                    raw[place] ^= mask
                    assert digest(model) != before, (size, place, bit)
                    raw[place] ^= mask
        assert digest(model) == before


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_two_places_may_be_exchanged(data):
    """Not even where values differ in their signs alone, or are small."""
    size = data.draw(st.sampled_from([2, 3, 8, 100, 2 * BLOCK]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.int8]))
    values = torch.tensor(data.draw(st.sampled_from([[0.0, 1.0], [1.0, -1.0], [1.0, 2.0, 3.0], [0.0, -0.0]])))
    made = values.repeat(size // len(values) + 1)[:size].to(dtype)
    i, j = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    other = made.clone()
    other[[i, j]] = made[[j, i]]
    same = torch.equal(bits(made), bits(other))
    assert (fresh(holding(made)) == fresh(holding(other))) == same


def test_factors_tell_words_apart():
    factors = contents._FACTORS
    assert (factors % 2 == 1).all()
    assert len({int(f) % 2**33 for f in factors}) == BLOCK


def test_rows_columns_names_shapes_and_dtypes_count():
    weight = torch.randn(64, 300)
    found = {
        "as it is": holding(weight), "rows": holding(weight.flip(0)), "columns": holding(weight.flip(1)),
        "turned": holding(weight.T), "flat": holding(weight.flatten()), "other shape": holding(weight.view(300, 64)),
        "half": holding(weight.half()), "brain": holding(weight.bfloat16()), "double": holding(weight.double()),
        "bits": holding(weight.view(torch.int32)), "twice": holding(weight, weight), "none": holding(),
        "empty": holding(torch.empty(0, 3)), "empty, other shape": holding(torch.empty(3, 0)),
        "longer by a zero": holding(torch.cat([weight.flatten(), torch.zeros(1)])), "inner": nn.Sequential(nn.Module()),
        "bytes": holding(torch.ones(5, dtype=torch.uint8)), "padded": holding(torch.ones(8, dtype=torch.uint8)),
    }  # fmt: skip
    found["inner"][0].p0 = nn.Parameter(weight)
    digests = {name: fresh(model) for name, model in found.items()}
    assert len(set(digests.values())) == len(digests)
    assert all(len(d) == 32 and int(d, 16) >= 0 for d in digests.values())
    a, b = torch.randn(2, 40, 40)
    assert fresh(holding(a, b)) != fresh(holding(b, a))


@pytest.mark.parametrize("chunk", [BLOCK, 2 * BLOCK, 2**18])
@pytest.mark.parametrize("shape", [(70, 500), (3, 40_000), (2, 5, 7, 600), (1, 1), (90_001,)])
def test_neither_strides_nor_chunks_matter(shape, chunk, monkeypatch):
    tensor = torch.randn(shape)
    whole = fresh(holding(tensor))
    monkeypatch.setitem(contents.CHUNK, "cpu", chunk)
    turned = tensor.permute(*reversed(range(tensor.ndim))).contiguous().permute(*reversed(range(tensor.ndim)))
    padded = torch.randn(*shape[:-1], 2 * shape[-1] + 3)[..., 1 : 2 * shape[-1] + 1 : 2].copy_(tensor)
    for same in (tensor, turned, padded, tensor.expand(1, *shape)[0]):
        assert fresh(holding(same)) == whole
    for dtype in (torch.uint8, torch.int16):
        values = torch.arange(tensor.numel()).to(dtype)
        shifted = torch.zeros(tensor.numel() + 1, dtype=dtype)[1:].copy_(values)
        assert fresh(holding(shifted)) == fresh(holding(values))
    one = torch.randn(1, 1, 50_000)
    assert fresh(holding(one.expand(3, 4, -1))) == fresh(holding(one.expand(3, 4, -1).contiguous()))


def test_no_copy_of_the_weights_is_made(monkeypatch):
    sizes, as_words = [], contents._as_words
    monkeypatch.setattr(contents, "_as_words", lambda e: (sizes.append(e.numel()), as_words(e))[1])
    digest(holding(torch.randn(1000, 1500).T, torch.randn(3, 700_000).half()), cached=False)
    assert max(sizes) * 4 <= 2 * 4 * contents.CHUNK["cpu"]


def test_it_is_the_same_wherever_it_is_summed():
    """As an accelerator sums: by products and reductions in int64, which wrap."""
    words = torch.randint(-(2**31), 2**31, (5, BLOCK), dtype=torch.int32)
    factors = torch.from_numpy(contents._FACTORS)
    by_hand = [sum(w * f for w, f in zip(row, factors.tolist(), strict=True)) for row in words.tolist()]
    wrapped = [(s + 2**63) % 2**64 - 2**63 for s in by_hand]
    assert (words * factors).sum(1).tolist() == contents._Reader()._sums(words, factors).tolist() == wrapped


@pytest.mark.gpu
def test_it_is_the_same_on_a_gpu():
    tensors = [numbers(s, d) for d in DTYPES for s in SIZES] + [torch.randn(3000, 2000).T]
    model = holding(*tensors)
    here = digest(model)
    assert digest(model.cuda()) == here == digest(model.cpu())


# --- models ---------------------------------------------------------------------------------------------------------


def test_copies_and_files_have_the_same(tmp_path):
    model = tiny.wan_transformer()
    made = digest(model)
    assert digest(copy.deepcopy(model)) == made == digest(tiny.wan_transformer())
    model.save_pretrained(tmp_path)
    assert digest(WanTransformer3DModel.from_pretrained(tmp_path)) == made
    assert digest(WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)) != made
    assert digest(tiny.wan_transformer(seed=1)) != made
    assert digest(torch.compile(model)) == made
    with torch.inference_mode():
        assert digest(model, cached=False) == made
    replaced = copy.deepcopy(model)
    replaced.blocks[1] = tiny.wan_transformer(seed=1).blocks[1]
    assert digest(replaced) != made
    pair = {"transformer": model, "transformer_2": replaced}
    assert digest_of(pair) == digest_of(dict(reversed(pair.items())))
    swapped = {"transformer": replaced, "transformer_2": model}
    assert len({digest_of(pair), digest_of(swapped), digest_of({"transformer": model}), made}) == 4


def test_adapters_count():
    model = tiny.wan_transformer()
    plain = digest(model)
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k"], init_lora_weights=False), "one")
    seen = {"plain": plain, "loaded": digest(model)}
    layer = model.blocks[0].attn1.to_q
    with torch.no_grad():
        layer.lora_B["one"].weight *= 2
        seen["other weights"] = digest(model)
        layer.lora_B["one"].weight /= 2
    model.set_adapters("one", 0.5)
    seen["half"] = digest(model)
    model.set_adapters("one", 1.0)
    model.disable_adapters()
    seen["disabled"] = digest(model)
    model.enable_adapters()
    assert digest(model) == seen["loaded"]
    other = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False)
    model.add_adapter(other, "two")
    seen["the other"] = digest(model)
    model.set_adapters(["one", "two"], [1.0, 1.0])
    seen["both"] = digest(model)
    model.delete_adapters("two")
    model.set_adapters("one", 1.0)
    assert digest(model) == seen["loaded"]
    model.fuse_lora(adapter_names=["one"])
    seen["fused"] = digest(model)
    assert digest(model) == fresh(model)
    model.unload_lora()
    seen["fused for good"] = digest(model)
    assert digest(model) == fresh(model), "though peft adds past the version counters"
    assert len(set(seen.values())) == len(seen), seen
    again = tiny.wan_transformer()
    digest(again)
    again.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    again.unload_lora()
    assert digest(again) == plain


def test_buffers_count_where_they_are_saved():
    module = nn.BatchNorm1d(4)
    module.register_buffer("table", torch.ones(3), persistent=False)
    before = digest(module)
    module.table += 1
    assert digest(module) == before
    module.running_mean += 1
    assert digest(module) != before


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_offloaded_weights_are_found(where, tmp_path, monkeypatch):
    """And read one at a time, and not again."""
    model = tiny.wan_transformer()
    made = digest(model)
    cpu_offload(model, "cpu") if where == "memory" else disk_offload(model, str(tmp_path), "cpu")
    assert all(p.device.type == "meta" for p in model.blocks.parameters())
    assert digest(model) == made
    read = reads(monkeypatch)
    assert digest(model) == made
    assert read == []
    other = tiny.wan_transformer(seed=1)
    cpu_offload(other, "cpu") if where == "memory" else disk_offload(other, str(tmp_path / "other"), "cpu")
    assert digest(other) == digest(tiny.wan_transformer(seed=1)) != made


def test_what_lies_nowhere_counts_by_name_and_shape():
    one, other = (nn.Linear(3, n, device="meta") for n in (4, 5))
    assert digest(one) == digest(nn.Linear(3, 4, device="meta")) != digest(other)
    assert digest(nn.LazyLinear(3)) != digest(nn.LazyLinear(3, bias=False))
    gone = nn.Linear(3, 4)
    gone.weight.untyped_storage().resize_(0)
    assert len(digest(gone)) == 32


# --- quantised ------------------------------------------------------------------------------------------------------


class Quantised(torch.Tensor):
    """As torchao makes them: a wrapper over tensors with a scale."""

    @staticmethod
    def __new__(cls, data, scale, how):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data, scale, how):
        self.data_, self.scale, self.how = data, scale, how

    def __tensor_flatten__(self):
        return ["data_", "scale"], (self.how, object())

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs=None):
        (self,) = (a for a in args if isinstance(a, cls))
        out = cls(self.data_, self.scale, self.how)
        return return_and_correct_aliasing(func, args, kwargs or {}, out)


class OtherQuantised(Quantised):
    pass


class State:
    def __init__(self, absmax):
        self.absmax, self.blocksize, self.code = absmax, 64, None


class Packed(nn.Parameter):
    """As bitsandbytes and diffusers' GGUF make them: a parameter with attributes."""

    def __new__(cls, data, state=None, kind=0):
        made = torch.Tensor._make_subclass(cls, data, False)
        made.quant_state, made.kind, made.module = state, kind, nn.Linear(1, 1)
        return made


def test_quantised_tensors_count_with_what_they_are_made_of():
    ones, scale = torch.ones(4, 4, dtype=torch.int8), torch.tensor([0.5])

    def of(kind, *parts):
        module = nn.Module()
        module.weight = nn.Parameter(kind(*parts), requires_grad=False) if kind is not Packed else kind(*parts)
        return module

    makes = {
        "one": lambda: of(Quantised, ones.clone(), scale.clone(), "rows"),
        "other data": lambda: of(Quantised, ones + 1, scale.clone(), "rows"),
        "other scale": lambda: of(Quantised, ones.clone(), scale + 1, "rows"),
        "other settings": lambda: of(Quantised, ones.clone(), scale.clone(), "columns"),
        "other class": lambda: of(OtherQuantised, ones.clone(), scale.clone(), "rows"),
        "packed": lambda: of(Packed, ones.clone(), State(scale.clone()), 1),
        "packed, other data": lambda: of(Packed, ones + 1, State(scale.clone()), 1),
        "packed, other state": lambda: of(Packed, ones.clone(), State(scale + 1), 1),
        "packed, other kind": lambda: of(Packed, ones.clone(), State(scale.clone()), 2),
        "plain": lambda: holding(ones),
    }
    digests = {name: digest(make()) for name, make in makes.items()}
    assert len(set(digests.values())) == len(digests)
    assert digests == {name: fresh(make()) for name, make in makes.items()}
    model = makes["one"]()
    before = digest(model)
    model.weight.scale += 1
    assert digest(model) == digests["other scale"] != before


# --- what is read again ---------------------------------------------------------------------------------------------


def test_only_what_changed_is_read_again(monkeypatch):
    model = tiny.wan_transformer()
    digest(model)
    read = reads(monkeypatch)
    made = digest(model)
    assert read == []
    weight = model.blocks[0].attn1.to_q.weight
    with torch.no_grad():
        weight[0, 0] += 1
    assert digest(model) != made
    assert len(read) == 1
    model.blocks[1].ffn.net[2].weight = nn.Parameter(torch.randn_like(model.blocks[1].ffn.net[2].weight))
    digest(model)
    assert len(read) == 2
    weight.data = weight.data.clone()  # as .to() moves it
    same = digest(model)
    assert len(read) == 3
    assert digest(model, cached=False) == same
    assert len(read) == 3 + len(list(model.parameters()))


def test_a_write_past_the_version_counters_has_all_read_again(monkeypatch):
    model = holding(torch.randn(400, 300), torch.randn(10))
    made, version = digest(model), model.p0._version
    model.p0.data += 1e-3
    assert model.p0._version == version
    read = reads(monkeypatch)
    assert digest(model) != made
    assert len(read) == 2
    assert digest(model) == fresh(model)


def test_tensors_of_inference_are_read_every_time():
    with torch.inference_mode():
        model = holding(torch.randn(1000))
        before = digest(model)
        model.p0[1] += 1
        assert digest(model) != before


def test_nothing_is_kept_of_what_is_gone():
    gc.collect()
    before = len(contents._KNOWN)
    model = holding(*torch.randn(5, 10))
    digest(model)
    assert len(contents._KNOWN) == before + 5
    del model
    gc.collect()
    assert len(contents._KNOWN) == before


def test_nothing_global_is_touched():
    model = tiny.wan_transformer()
    state = torch.random.get_rng_state()
    digest(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
