"""Training data of consistency distillation: what is recorded, how it is stored, and what training reads."""

from __future__ import annotations

import pickle

import pytest
import tiny
import torch
from diffusers import CogVideoXVideoToVideoPipeline, QwenImageImg2ImgPipeline, WanVideoToVideoPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.utils.data import DataLoader

from vaccel import demo
from vaccel import models as families
from vaccel.distill import Batch, Shards, demo_clips, prepare

NAMES = ("wan", "cogvideox", "qwen-image")
CALLS = {"wan": tiny.WAN_CALL, "cogvideox": tiny.COG_CALL, "qwen-image": tiny.QWEN_CALL}
FRAMES = {"wan": 9, "cogvideox": 9, "qwen-image": 1}
CAPTIONS = ("a red cat runs", "a blue dog runs", "a blue cat sleeps")


def call_of(name: str, guidance: float = 5.0) -> dict:
    """The family's call, guided."""
    return {**CALLS[name], ("true_cfg_scale" if name == "qwen-image" else "guidance_scale"): guidance}


def clips_of(name: str, count: int = 3, seed: int = 0, captions=CAPTIONS) -> list[tuple[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    size = FRAMES[name], CALLS[name]["height"], CALLS[name]["width"], 3
    return [(captions[i % len(captions)], torch.rand(size, generator=g)) for i in range(count)]


def prepared(name: str, folder, count: int = 3, guidance: float = 5.0, **settings):
    pipe = tiny.family(name)[0]
    settings = {"negative_prompt": "a dog sleeps", **settings}
    prepare(pipe, clips_of(name, count), folder, call=call_of(name, guidance), **settings)
    return pipe, Shards(folder, model=pipe.transformer)


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same(a, b) -> None:
    """Bit for bit, whatever it is made of."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


def cog_1_5():
    """A pipeline like CogVideoX 1.5's, whose patches take two frames."""
    transformer = tiny.cog_transformer()
    config = {k: v for k, v in transformer.config.items() if not k.startswith("_")}
    return tiny.cog_pipeline(transformer=type(transformer)(**{**config, "patch_size_t": 2}).eval())


class TestEncode:
    @pytest.mark.parametrize("name", [*NAMES, "cogvideox-1.5"])
    def test_the_pipeline_decodes_what_the_vae_said(self, name, monkeypatch):
        """Encoded latents in place of a run's last ones reach the decoder as they left the encoder."""
        pipe = cog_1_5() if name == "cogvideox-1.5" else tiny.family(name)[0]
        name = name.removesuffix("-1.5")
        clip = clips_of(name, 1)[0][1][None]
        latents = families.find(pipe.transformer).encode(pipe, clip)
        decoded, decode = [], pipe.vae.decode
        monkeypatch.setattr(pipe.vae, "decode", lambda z, **kwargs: decoded.append(z) or decode(z, **kwargs))
        seen = []

        def replace(pipe, step, timestep, tensors):
            seen.append(tensors["latents"].shape)
            return {"latents": latents}

        arguments = {**call_of(name, 1.0), "output_type": "np", "callback_on_step_end": replace}
        pipe("a red cat", num_inference_steps=2, callback_on_step_end_tensor_inputs=["latents"], **arguments)
        assert seen[-1] == latents.shape
        with torch.no_grad():
            mode = pipe.vae.encode(clip.permute(0, 4, 1, 2, 3) * 2 - 1).latent_dist.mode()
        torch.testing.assert_close(decoded[-1].view(mode.shape), mode, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", NAMES)
    def test_equals_the_pipelines_that_begin_with_a_video(self, name, monkeypatch):
        pipe = tiny.family(name)[0]
        clip = torch.stack([c for _, c in clips_of(name, 2)])
        video = clip.permute(0, 4, 1, 2, 3) * 2 - 1

        class Clean:
            init_noise_sigma = 1.0

            def add_noise(self, latents, noise, timestep):
                return latents

            def scale_noise(self, latents, timestep, noise):
                return latents

        monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        size = {k: CALLS[name][k] for k in ("height", "width")}
        shared = {"batch_size": 2, "dtype": torch.float32, "device": "cpu", "generator": None, "timestep": None, **size}
        others = {"wan": WanVideoToVideoPipeline, "cogvideox": CogVideoXVideoToVideoPipeline}
        parts = {k: getattr(pipe, k) for k in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}
        other = others.get(name, QwenImageImg2ImgPipeline)(**parts)
        vars(other)["scheduler"] = Clean()
        channels = 16 if name == "wan" else 4
        with torch.no_grad():
            first = {"image": video} if name == "qwen-image" else {"video": video}
            expected = other.prepare_latents(**first, num_channels_latents=channels, **shared)
        latents = families.FAMILIES[name].encode(pipe, clip)
        if name == "qwen-image":  # its pipeline encodes both images in one batch
            torch.testing.assert_close(latents, expected)
        else:
            assert torch.equal(latents, expected)
        assert latents.dtype == torch.float32

    def test_padding_repeats_the_first_frame(self):
        pipe = cog_1_5()
        clip = clips_of("cogvideox", 1)[0][1][None]
        latents = families.FAMILIES["cogvideox"].encode(pipe, clip)
        assert latents.shape[1] == 4
        assert torch.equal(latents[:, 0], latents[:, 1])

    def test_the_demo_family(self):
        pipe = demo.load().pipe
        _, clip = next(iter(demo_clips(1, seed=3)))
        latents = families.FAMILIES["wan"].encode(pipe, clip[None])
        torch.testing.assert_close(latents, pipe.vae.normalised_latents(clip[None]))

    def test_qwen_images_have_one_frame(self):
        pipe = tiny.qwen_pipeline()
        with pytest.raises(ValueError, match="1 frame, not 9"):
            families.FAMILIES["qwen-image"].encode(pipe, torch.rand(1, 9, 32, 48, 3))


@pytest.mark.parametrize("name", NAMES)
def test_families_name_what_the_models_have(name):
    family, model = families.FAMILIES[name], tiny.family(name)[0].transformer
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    for fresh in family.fresh:
        assert fresh in modules or (fresh in parameters and "." not in fresh)
    for target in family.attention_targets:
        assert any(n.endswith("." + target) and isinstance(m, torch.nn.Linear) for n, m in modules.items())
    t = torch.tensor([1000.0, 20.0])
    assert torch.equal(family.timestep(t), t / 1000 if name == "qwen-image" else t)


class TestRecording:
    @pytest.mark.parametrize("guidance", [5.0, 1.0])
    @pytest.mark.parametrize("name", NAMES)
    def test_equals_what_a_run_passes(self, name, guidance, tmp_path):
        pipe, shards = prepared(name, tmp_path, guidance=guidance)
        calls = []
        hook = pipe.transformer.register_forward_pre_hook(lambda m, a, k: calls.append(k), with_kwargs=True)
        negative = {"negative_prompt": "a dog sleeps"}
        pipe(CAPTIONS[1], num_inference_steps=2, **call_of(name, guidance), **negative)
        hook.remove()
        batch = shards.collate([shards[1]])
        passed = [{k: v for k, v in c.items() if k not in ("hidden_states", "timestep", "return_dict")} for c in calls]
        if guidance == 1:
            assert batch.uncond is None
            expected = {"cond": passed[0]}
        elif name == "cogvideox":
            family = families.FAMILIES[name]
            split = {b: family.rows(calls[0], [r]) for b, r in (("uncond", 0), ("cond", 1))}
            expected = {b: {k: v for k, v in c.items() if k in passed[0]} for b, c in split.items()}
        else:
            expected = dict(zip(("cond", "uncond"), passed, strict=False))
        for branch, arguments in expected.items():
            assert_same(dict(sorted(getattr(batch, branch).items())), dict(sorted(arguments.items())))
        assert shards[1]["latents"].shape == calls[0]["hidden_states"].shape[1:]

    @pytest.mark.parametrize("name", NAMES)
    def test_leaves_the_pipeline_as_it_was(self, name, tmp_path):
        pipe = tiny.family(name)[0]
        pipe.transformer.forward = own = pipe.transformer.forward  # as hooks that sit on an instance have it
        state = torch.get_rng_state()
        before = [dict(vars(thing)) for thing in (pipe.transformer, pipe.scheduler)]
        scheduler, bars, config = pipe.scheduler, pipe._progress_bar_config, dict(pipe.config)
        prepare(pipe, clips_of(name, 1), tmp_path, call=call_of(name), negative_prompt="a dog")
        assert [dict(vars(thing)) for thing in (pipe.transformer, pipe.scheduler)] == before
        assert pipe.transformer.forward is own
        assert pipe.scheduler is scheduler
        assert pipe._progress_bar_config is bars
        assert dict(pipe.config) == config
        assert torch.equal(torch.get_rng_state(), state)

    def test_an_interruption_inside_leaves_it_too(self, tmp_path, monkeypatch):
        pipe = tiny.wan_pipeline()

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(pipe, "check_inputs", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(pipe, clips_of("wan"), tmp_path / "data", call=call_of("wan"))
        assert "forward" not in vars(pipe.transformer)
        assert not (tmp_path / "data").exists()

    def test_a_caption_is_recorded_once(self, tmp_path, monkeypatch):
        pipe = tiny.wan_pipeline()
        encode, seen = pipe.encode_prompt, []
        monkeypatch.setattr(pipe, "encode_prompt", lambda **kw: seen.append(kw["prompt"]) or encode(**kw))
        prepare(pipe, clips_of("wan", 7), tmp_path, call=call_of("wan"), shard_size=2)
        assert seen == list(CAPTIONS)
        shards = Shards(tmp_path)
        for early, late in ((0, 3), (1, 4), (2, 5), (0, 6)):
            assert_same(shards[early]["cond"], shards[late]["cond"])
            assert not torch.equal(shards[early]["latents"], shards[late]["latents"])

    def test_shared_arguments_must_be_shared(self, tmp_path):
        pipe = tiny.wan_pipeline()
        transformer = pipe.transformer
        encode, calls = pipe.encode_prompt, []

        def changing(**kwargs):
            calls.append(kwargs)
            positive, negative = encode(**kwargs)
            return positive, negative + len(calls)

        pipe.encode_prompt = changing
        with pytest.raises(ValueError, match=r"uncond\.encoder_hidden_states for 'a blue dog runs'"):
            prepare(pipe, clips_of("wan"), tmp_path, call=call_of("wan"))
        assert "forward" not in vars(transformer)
        assert len(Shards(tmp_path)) == 1  # what came before the error is kept

    def test_conditions_beside_the_noise_are_refused(self, tmp_path):
        pipe = tiny.wan_pipeline(transformer=tiny.wan_transformer(in_channels=20))
        with pytest.raises(ValueError, match="takes only text"):
            prepare(pipe, clips_of("wan"), tmp_path, call=call_of("wan"))

    def test_several_clips_a_prompt_are_refused(self, tmp_path):
        call = {**call_of("wan"), "num_videos_per_prompt": 2}
        with pytest.raises(ValueError, match=r"\[2, 2\] rows"):
            prepare(tiny.wan_pipeline(), clips_of("wan"), tmp_path, call=call)


class TestReading:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_batch_is_its_samples(self, name, tmp_path):
        pipe, shards = prepared(name, tmp_path, shard_size=2)
        family, model = shards.family, pipe.transformer
        g = torch.Generator().manual_seed(1)
        batch = shards.collate([shards[i] for i in (2, 0, 1)])
        noise = torch.randn(batch.latents.shape, generator=g)
        t = torch.tensor([900.0, 500.0, 20.0])
        x = batch.latents + noise

        def forward(x, t, arguments):
            return model(hidden_states=x, timestep=family.timestep(t), **arguments, return_dict=False)[0]

        with torch.no_grad():
            for branch in ("cond", "uncond"):
                together = forward(x, t, getattr(batch, branch))
                for row, i in enumerate((2, 0, 1)):
                    alone = getattr(shards.collate([shards[i]]), branch)
                    one = forward(x[row : row + 1], t[row : row + 1], alone)
                    torch.testing.assert_close(together[row : row + 1], one, rtol=1e-4, atol=1e-5)

    def test_texts_of_several_lengths_come_back_as_they_were(self, tmp_path):
        pipe = tiny.qwen_pipeline()
        captions = ("a cat", "a red cat runs", "a blue dog")
        clips = clips_of("qwen-image", 3, captions=captions)
        prepare(pipe, clips, tmp_path, call=call_of("qwen-image"), negative_prompt="a dog")
        shards = Shards(tmp_path)
        for i, caption in enumerate(captions):
            expected, _ = pipe.encode_prompt(caption)
            assert_same(shards[i]["cond"]["encoder_hidden_states"], expected[0])
        with pytest.raises(ValueError, match=r"encoder_hidden_states: the samples .* batch of one"):
            shards.collate([shards[0], shards[1]])
        batch = shards.collate([shards[1], shards[1]])
        assert len(batch.uncond["encoder_hidden_states"]) == len(batch.cond["img_shapes"]) == 2

    def test_travels_to_other_processes(self, tmp_path):
        _, shards = prepared("wan", tmp_path, count=5, shard_size=2)
        assert_same(pickle.loads(pickle.dumps(shards))[3], shards[3])
        assert_same(shards[-1], shards[4])
        with pytest.raises(IndexError, match="sample 5 of 5"):
            shards[5]
        loader = DataLoader(shards, batch_size=2, collate_fn=shards.collate, num_workers=1)
        batches = list(loader)
        assert [len(b.latents) for b in batches] == [2, 2, 1]
        assert_same(batches[1], shards.collate([shards[2], shards[3]]))
        moved = batches[0].to("meta")
        assert isinstance(moved, Batch)
        assert moved.cond["encoder_hidden_states"].is_meta
        assert shards.captions == [CAPTIONS[i % 3] for i in range(5)]

    def test_another_model_is_refused(self, tmp_path):
        prepared("wan", tmp_path)
        with pytest.raises(ValueError, match="prepare the data with its pipeline"):
            Shards(tmp_path, model=tiny.wan_small())

    def test_a_shard_that_is_gone(self, tmp_path):
        prepared("wan", tmp_path, shard_size=2)
        (tmp_path / "shard-00001.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match="shard-00001"):
            Shards(tmp_path)


class TestResuming:
    @pytest.mark.parametrize("stops", [[0], [1], [2], [3], [5, 6], [1, 2, 3, 4, 5, 6, 7]])
    def test_files_are_those_of_one_run(self, stops, tmp_path):
        pipe, call = tiny.wan_pipeline(), call_of("wan")
        clips = clips_of("wan", 7)
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        data = prepare(pipe, clips, whole, call=call, shard_size=3)
        assert [s["count"] for s in data["shards"]] == [3, 3, 1]
        for stop in stops:

            def interrupted(stop=stop):
                yield from clips[:stop]
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                prepare(pipe, interrupted(), parts, call=call, shard_size=3)
            assert parts.exists() == (stop > 0)
            if stop:
                assert len(Shards(parts)) == stop
        assert prepare(pipe, clips, parts, call=call, shard_size=3) == data
        assert files(parts) == files(whole)
        assert prepare(pipe, clips, parts, call=call, shard_size=3) == data  # there is nothing left to do
        assert files(parts) == files(whole)

    def test_texts_of_several_lengths(self, tmp_path):
        pipe, call = tiny.qwen_pipeline(), call_of("qwen-image")
        clips = clips_of("qwen-image", 4, captions=("a cat", "a red cat runs", "a blue dog"))
        for total in (1, 2, 4):
            prepare(pipe, clips, tmp_path / "parts", call=call, negative_prompt="", total=total)
        prepare(pipe, clips, tmp_path / "whole", call=call, negative_prompt="")
        assert files(tmp_path / "parts") == files(tmp_path / "whole")

    def test_killed_between_a_shard_and_the_index(self, tmp_path):
        pipe, call = tiny.wan_pipeline(), call_of("wan")
        clips = clips_of("wan", 4)
        prepare(pipe, clips, tmp_path / "whole", call=call, shard_size=3)
        prepare(pipe, clips, tmp_path / "parts", call=call, shard_size=3, total=2)
        shard = "shard-00000.safetensors"
        (tmp_path / "parts" / shard).write_bytes((tmp_path / "whole" / shard).read_bytes())
        assert len(Shards(tmp_path / "parts")) == 2
        prepare(pipe, clips, tmp_path / "parts", call=call, shard_size=3)
        assert files(tmp_path / "parts") == files(tmp_path / "whole")

    def test_other_settings_are_refused(self, tmp_path):
        pipe, clips = tiny.wan_pipeline(), clips_of("wan", 1)
        prepare(pipe, clips, tmp_path, call=call_of("wan"))
        for settings, what in (
            ({"call": call_of("wan", 3.0)}, "call"),
            ({"negative_prompt": "a dog"}, "negative_prompt"),
            ({"shard_size": 4}, "shard_size"),
            ({"dtype": torch.bfloat16}, "dtype"),
        ):
            with pytest.raises(ValueError, match=f"another {what}; choose"):
                prepare(pipe, clips, tmp_path, **{"call": call_of("wan"), **settings})
        other = tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=2))
        with pytest.raises(ValueError, match="another model"):
            prepare(other, clips, tmp_path, call=call_of("wan"))
        with pytest.raises(ValueError, match="holds other clips: clip 0"):
            prepare(pipe, [("a dog", clips[0][1])], tmp_path, call=call_of("wan"))

    def test_latents_can_be_stored_in_half(self, tmp_path):
        _, shards = prepared("wan", tmp_path, dtype=torch.bfloat16)
        assert shards[0]["latents"].dtype == torch.bfloat16
        assert shards[0]["cond"]["encoder_hidden_states"].dtype == torch.float32

    def test_clips_that_do_not_fit(self, tmp_path):
        pipe, call = tiny.wan_pipeline(), call_of("wan")
        for clip, message in (
            (torch.rand(5, 32, 32, 3), "frames, height and width"),
            (torch.zeros(9, 32, 32, 3, dtype=torch.uint8), "of floats"),
            (torch.rand(9, 32, 32, 3) * 2 - 1, r"lie in \[0, 1\]"),
        ):
            with pytest.raises(ValueError, match=message):
                prepare(pipe, [("a cat", clip)], tmp_path, call=call)
        with pytest.raises(ValueError, match="at least 1"):
            prepare(pipe, clips_of("wan"), tmp_path, call=call, total=0)
        with pytest.raises(ValueError, match="no clips"):
            prepare(pipe, [], tmp_path, call=call)
        assert not list(tmp_path.iterdir())

    def test_progress(self, tmp_path):
        seen = []
        clips = clips_of("wan", 2)
        prepare(tiny.wan_pipeline(), clips, tmp_path, call=call_of("wan"), progress=lambda *a: seen.append(a))
        assert seen == [(0, 2, CAPTIONS[0]), (1, 2, CAPTIONS[1]), (2, 2, "done")]


def test_the_demo_family_from_end_to_end(tmp_path):
    loaded = demo.load()
    data = prepare(loaded.pipe, demo_clips(3, seed=5), tmp_path, call=loaded.call, shard_size=2)
    assert data["call"]["guidance_scale"] == 4.0
    shards = Shards(tmp_path, model=loaded.pipe.transformer)
    assert len(shards) == 3
    clips = list(demo_clips(3, seed=5))
    assert shards.captions == [caption for caption, _ in clips]
    assert all(not demo.Scene.parse(caption).held_out for caption in shards.captions)
    batch = shards.collate([shards[0], shards[1]])
    torch.testing.assert_close(
        batch.latents, loaded.pipe.vae.normalised_latents(torch.stack([clip for _, clip in clips[:2]]))
    )
    with torch.no_grad():
        arguments = {"hidden_states": batch.latents, "timestep": torch.tensor([500.0, 20.0]), "return_dict": False}
        for branch in (batch.cond, batch.uncond):
            assert loaded.pipe.transformer(**arguments, **branch)[0].shape == batch.latents.shape
