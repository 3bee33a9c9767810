"""The glyph family: grammar, drawing, the linear VAE, the trainer's resume, and what ships."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image
from typer.testing import CliRunner

import vaccel
from vaccel.calibrate import calibrate_forecast, calibrate_lemica
from vaccel.demo import glyphs, image_family, train_images
from vaccel.demo.image_vae import PixelTransformVAE


@pytest.fixture(scope="module")
def fonts():
    """Whatever fonts there are: a machine that runs the tests may have none but matplotlib's."""
    return glyphs.find_fonts(fallback=True)


@pytest.fixture(scope="module")
def family():
    return image_family.load()


def images_of(family, scheduler: str, **how) -> torch.Tensor:
    family.pipe.scheduler = image_family.build_scheduler(scheduler)
    captions = glyphs.held_out_captions(2)
    generator = [torch.Generator().manual_seed(i) for i in range(2)]
    arguments = {"num_inference_steps": 4, "generator": generator, "output_type": "pt", **family.call, **how}
    return family.pipe(captions, **arguments).images


def test_captions_read_back():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        scene = glyphs.draw_scene(generator)
        assert glyphs.Scene.parse(scene.caption) == scene
    for text in (
        "",
        "a cat",
        "letter g serif bold red on grass",
        "letter G serif bold red on mars",
        "letter G on grass",
    ):
        with pytest.raises(ValueError, match="not a caption"):
            glyphs.Scene.parse(text)


def test_training_never_sees_a_held_out_caption():
    held_out = set(glyphs.held_out_captions(200))
    generator = torch.Generator().manual_seed(1)
    seen = {glyphs.draw_scene(generator, held_out=False).caption for _ in range(3000)}
    assert len(held_out) == 200
    assert not held_out & seen


def test_every_word_is_a_token():
    tokenizer = image_family.build_tokenizer()
    ids = tokenizer(glyphs.held_out_captions(50), padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (50, image_family.MAX_TOKENS)
    assert not ids.eq(tokenizer.unk_token_id).any()
    words = glyphs.vocabulary()
    assert len(set(words)) == len(words)


def test_drawing_is_seeded_and_in_range(fonts):
    first = glyphs.draw_batch(6, torch.Generator().manual_seed(3), fonts=fonts)
    second = glyphs.draw_batch(6, torch.Generator().manual_seed(3), fonts=fonts)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert first[1].shape == (6, 48, 48, 3)
    assert first[1].dtype == torch.float32
    assert first[1].min() >= 0
    assert first[1].max() <= 1


@pytest.mark.parametrize("ground", glyphs.GROUNDS)
def test_every_ground_is_there_without_a_network(ground):
    drawn = glyphs.draw_ground(ground, [0.5] * 5)
    assert drawn.shape == (48, 48, 3)
    assert drawn.std() > 0.01


def test_missing_fonts_are_named(monkeypatch):
    monkeypatch.setattr(glyphs, "_FOLDERS", ())
    monkeypatch.setattr(glyphs.sys, "prefix", "/nowhere")
    find = glyphs.find_fonts.__wrapped__
    with pytest.raises(FileNotFoundError, match="apt-get install fonts-dejavu"):
        find()
    assert all(path.is_file() for paths in find(fallback=True).values() for path in paths)


def test_the_vae_is_orthonormal_and_close(fonts):
    images = glyphs.draw_batch(128, torch.Generator().manual_seed(0), fonts=fonts)[1]
    vae = PixelTransformVAE.fit(images)
    assert torch.allclose(vae.basis.T @ vae.basis, torch.eye(4), atol=1e-5)
    assert vae.scaled_latents(images).square().mean() == pytest.approx(1.0, abs=0.05)
    others = glyphs.draw_batch(32, torch.Generator().manual_seed(1), fonts=fonts)[1].permute(0, 3, 1, 2) * 2 - 1
    latents = vae.encode(others).latent_dist.mode()
    assert latents.shape == (32, 4, 24, 24)
    back = vae.decode(latents).sample
    assert back.shape == others.shape
    assert -10 * torch.log10(((back - others) / 2).square().mean()) > 27
    with pytest.raises(ValueError, match="expected"):
        vae.encode(others[:, :, :47])


def test_what_ships_is_small_and_loads(family):
    sizes = [p.stat().st_size for p in image_family.shipped_folder().rglob("*") if p.is_file()]
    assert sum(sizes) <= 6e6
    assert type(family.pipe).__name__ == "StableDiffusionPipeline"
    assert family.pipe.unet.config.in_channels == 4
    assert family.pipe.scheduler.config.prediction_type == "epsilon"
    assert family.pipe.vae_scale_factor == 2
    with pytest.raises(FileNotFoundError, match=r"vaccel\.demo\.train_images"):
        image_family.load(family.folder / "nothing")
    with pytest.raises(ValueError, match="known: ddim"):
        image_family.build_scheduler("heun")


def test_the_small_unet_takes_the_large_one_s_place(family):
    large, small = family.pipe.unet, family.small
    parameters = [sum(p.numel() for p in model.parameters()) for model in (large, small)]
    assert 10 * parameters[1] < parameters[0]
    full = images_of(family, "ddim", num_inference_steps=8)
    with vaccel.accelerate(family.pipe, vaccel.DirectionMagnitude(0.01), small=small) as handle:
        drawn = images_of(family, "ddim", num_inference_steps=8)
        assert handle.trace.calls["small"] > 0
    family.pipe.unet = small
    try:
        alone = images_of(family, "ddim", num_inference_steps=8)
    finally:
        family.pipe.unet = large
    assert (drawn - full).square().mean() < (alone - full).square().mean()
    assert (alone - full).abs().mean() < 0.35


def test_training_a_small_unet_leaves_the_family_as_it_is(tmp_path, fonts):
    settings = {"batch": 2, "images": 8, "widths": (16, 16, 32), "fonts": fonts}
    trainer = train_images.Trainer(tmp_path, small_for=image_family.shipped_folder(), **settings)
    assert list(trainer.models) == ["unet"]
    trainer.update(1.0)
    trainer.save()
    again = train_images.Trainer(tmp_path, small_for=image_family.shipped_folder(), **settings)
    again.resume()
    assert again.step == 1
    again.export()
    made, shipped = image_family.load(tmp_path), image_family.load()
    for part in ("unet", "text_encoder", "vae"):
        pairs = zip(getattr(made.pipe, part).parameters(), getattr(shipped.pipe, part).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(made.small.conv_out.bias, again.ema["unet"].conv_out.bias.half().float())
    with pytest.raises(ValueError, match="was made with"):
        train_images.Trainer(tmp_path, **settings).resume()


@pytest.mark.parametrize("scheduler", image_family.SCHEDULERS)
def test_sampling_is_finite_and_seeded(family, scheduler):
    first, second = images_of(family, scheduler), images_of(family, scheduler)
    assert first.shape == (2, 3, 48, 48)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert first.std() > 0.05


def test_guidance_and_captions_matter(family):
    plain, guided = images_of(family, "ddim", guidance_scale=1.0), images_of(family, "ddim")
    assert (plain - guided).abs().mean() > 0.01


def test_colours_are_the_captions(family):
    """One letter in two colours over one ground from one noise: the red one is redder, the blue one bluer."""
    family.pipe.scheduler = image_family.build_scheduler("dpm++")
    captions = [f"letter H sans bold {colour} on gravel" for colour in ("red", "blue")]
    generator = [torch.Generator().manual_seed(5) for _ in captions]
    red, blue = family.pipe(
        captions, num_inference_steps=15, generator=generator, output_type="pt", **family.call
    ).images
    assert (red[0] - blue[0]).mean() > 0.05
    assert (blue[2] - red[2]).mean() > 0.05


def test_the_siblings_run_from_the_same_parts(family):
    family.pipe.scheduler = image_family.build_scheduler("ddim")
    start = Image.fromarray(((images_of(family, "ddim")[0].permute(1, 2, 0)) * 255).byte().numpy())
    how = {"guidance_scale": 4.0, "num_inference_steps": 4, "strength": 0.6, "output_type": "pt"}
    caption, drawn = "letter O sans bold white on grass", []
    for kind in (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline):
        pipe = family.sibling(kind)
        assert pipe.unet is family.pipe.unet
        more = {"height": 48, "width": 48, "mask_image": Image.new("L", (48, 48), 255)}
        more = more if kind is StableDiffusionInpaintPipeline else {}
        generator = torch.Generator().manual_seed(0)
        drawn.append(pipe(caption, image=start, generator=generator, **how, **more).images)
    for images in drawn:
        assert images.shape == (1, 3, 48, 48)
        assert images.isfinite().all()


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, fonts):
    def trainer(name: str, **how) -> train_images.Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        settings = {"batch": 2, "images": 16, "widths": (16, 32, 32), "fonts": fonts, **how}
        return train_images.Trainer(tmp_path / name, **settings)

    whole = trainer("whole")
    losses = [whole.update(train_images.learning_rate(i, 10, 0.3)) for i in range(3)]
    first = trainer("parts")
    again = [first.update(train_images.learning_rate(i, 10, 0.3)) for i in range(2)]
    first.save()
    second = trainer("parts")
    second.resume()
    assert second.step == 2
    again.append(second.update(train_images.learning_rate(2, 10, 0.3)))
    assert again == losses
    for a, b in zip(whole.ema.parameters(), second.ema.parameters(), strict=True):
        assert torch.equal(a, b)
    second.export()
    exported = image_family.load(tmp_path / "parts").pipe
    assert torch.equal(exported.unet.conv_out.bias, second.ema["unet"].conv_out.bias.half().float())
    assert torch.equal(exported.vae.synthesis, second.data.vae.synthesis)
    with pytest.raises(ValueError, match="'batch': '2'"):
        trainer("parts", batch=4).resume()
    with pytest.raises(ValueError, match="holds 16 images"):
        trainer("parts", images=8).data  # noqa: B018


def test_the_training_script_resumes(tmp_path):
    import typer

    app = typer.Typer()
    app.command()(train_images.main)
    tiny = ["--out", str(tmp_path), "--images", "8", "--batch", "2", "--widths", "16,32,32", "--any-fonts"]
    one = CliRunner().invoke(app, [*tiny, "--steps", "1"])
    assert one.exit_code == 0, one.output
    assert "step 1/1" in one.output
    two = CliRunner().invoke(app, [*tiny, "--steps", "2"])
    assert two.exit_code == 0, two.output
    assert "resumed at step 1" in two.output
    assert "step 2/2" in two.output
    fresh = CliRunner().invoke(app, [*tiny, "--steps", "1", "--no-resume"])
    assert "resumed" not in fresh.output


def test_calibrations_of_a_pipeline_that_was_never_run(tmp_path):
    """A replay's first call takes what was recorded, and the model is run once to see how its answers lie."""
    for name, calibrate in (("forecast", calibrate_forecast), ("lemica", calibrate_lemica)):
        pipe = image_family.load().pipe
        call = {**image_family.CALL, "num_inference_steps": 6}
        more = {"tails": 2, "trials": (0.5,)} if name == "forecast" else {"reuse": "residual"}
        data = calibrate(pipe, glyphs.held_out_captions(1), tmp_path / f"{name}.json", call=call, **more)
        assert len(data["samples"]) == 1
