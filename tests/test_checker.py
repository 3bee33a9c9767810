"""The checker of moving-shapes clips: right on true clips, robust to mild damage, and not to be fooled."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy import ndimage

from vaccel import demo
from vaccel.demo.checker import accuracy, check, observe
from vaccel.demo.shapes import COLOURS, HEIGHT, NUM_FRAMES, WIDTH, Scene, draw_batch, draw_clip

CLIPS = 400
FEW = 60  # clips for the tests whose outcome has no close margin
ALL = ("correct", "colour", "kind", "direction", "speed", "background")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """The windows of a check are too small to share between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def drawn() -> tuple[list[str], torch.Tensor]:
    """Held-out captions and their clips, [CLIPS, F, H, W, 3] in [0, 1]."""
    return draw_batch(CLIPS, torch.Generator().manual_seed(77), held_out=True)


@pytest.fixture(scope="module")
def decoded(drawn) -> torch.Tensor:
    """The same clips after a round trip through the VAE that ships; one of a test's own takes as long as all else."""
    vae = demo.load().pipe.vae
    with torch.no_grad():
        video = vae.decode(vae.encode(drawn[1].permute(0, 4, 1, 2, 3) * 2 - 1).latent_dist.mode()).sample
    return (video.permute(0, 2, 3, 4, 1) + 1) / 2


def draw(caption: str, seed: int = 0) -> torch.Tensor:
    return draw_clip(Scene.parse(caption), torch.Generator().manual_seed(seed))


def test_drawn_clips_are_right(drawn):
    captions, clips = drawn
    scores = accuracy(clips, captions)
    assert tuple(scores) == ALL
    assert min(scores.values()) >= 0.99, scores


def test_decoded_clips_are_right(drawn, decoded):
    scores = accuracy(decoded, drawn[0])
    assert min(scores.values()) >= 0.99, scores


def test_mild_noise_is_tolerated(drawn):
    captions, clips = drawn
    noise = 0.03 * torch.randn(clips[:200].shape, generator=torch.Generator().manual_seed(1))
    scores = accuracy((clips[:200] + noise).clamp(0, 1), captions[:200])
    assert min(scores.values()) >= 0.97, scores


def test_blur_and_flicker_are_tolerated(drawn, decoded):
    captions, clips = drawn[0][:FEW], decoded[:FEW].numpy()
    light = 1 + 0.1 * np.random.default_rng(0).standard_normal((FEW, NUM_FRAMES, 1, 1, 1))
    assert accuracy(ndimage.gaussian_filter(clips, (0, 0, 1, 1, 0)), captions)["correct"] >= 0.95
    assert accuracy(clips * light, captions)["correct"] >= 0.95


def test_shuffled_captions_are_near_chance(drawn):
    captions, clips = drawn
    # A scene has one shape with probability 0.8 and two with 0.2, and another number of shapes never passes.
    # One against one: colour, kind and direction agree in 1 of 6 * 4 * 4 = 96.  Two against two: the pair of colours
    # agrees in 1 of 15, then kind and direction of each shape in 1 of 16.  Together
    # 0.8^2 / 96 + 0.2^2 / (15 * 16^2) = 0.7 %, which is 1.3 of 200 clips in the mean, with a deviation of 1.2.
    scores = accuracy(clips[:200], captions[1:201])
    assert scores["correct"] <= 0.03
    assert scores["kind"] < 0.4
    assert scores["direction"] < 0.4
    assert scores["background"] < 0.3


def test_reversed_and_static_clips_fail_on_direction(drawn):
    singles = [i for i, caption in enumerate(drawn[0]) if " and " not in caption][:FEW]
    captions, clips = [drawn[0][i] for i in singles], drawn[1][singles]
    for damaged in (clips.flip(1), clips[:, 8:9].expand_as(clips)):
        scores = accuracy(damaged, captions)
        assert scores["direction"] == scores["correct"] == 0
        assert scores["colour"] == scores["kind"] == scores["background"] == 1


def test_swapped_channels_fail_on_colour(drawn):
    # White is the one colour that survives any exchange of channels.
    chosen = [i for i, caption in enumerate(drawn[0]) if "white" not in caption][:FEW]
    scores = accuracy(drawn[1][chosen].roll(1, dims=-1), [drawn[0][i] for i in chosen])
    assert scores["correct"] == 0
    assert scores["colour"] <= 0.05  # of two shapes, one may turn into the other's colour
    assert scores["direction"] == scores["kind"] == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_fails(drawn, channels):
    noise = torch.rand(8, NUM_FRAMES, HEIGHT, WIDTH, channels, generator=torch.Generator().manual_seed(2))
    scores = accuracy(noise.expand(-1, -1, -1, -1, 3), drawn[0][:8])
    assert scores["correct"] == scores["kind"] == scores["background"] == 0


def test_observation_names_what_is_there():
    seen = observe(draw("a purple cross moves up quickly on a dotted background"))
    (shape,) = seen.shapes
    assert (shape.colour, shape.kind, shape.direction, shape.speed) == ("purple", "cross", "up", "quickly")
    assert shape.velocity == pytest.approx((0, -1.4), abs=0.05)
    assert 6 < shape.radius < 10
    assert shape.fit > 0.8
    assert seen.background == "dotted"


def test_empty_clip_shows_no_shape():
    clip = torch.full((NUM_FRAMES, HEIGHT, WIDTH, 3), 0.1)
    assert observe(clip).shapes == ()
    verdict = check(clip, "a red circle moves left slowly on a dark background")
    assert not verdict.correct
    assert verdict.background


def test_number_of_shapes_matters():
    one = "a red circle moves left slowly"
    both = draw(one + " and a green square moves up quickly on a gray background", seed=3)
    extra = check(both, one + " on a gray background").shapes[0]
    assert (extra.colour, extra.kind, extra.direction, extra.speed) == (False, True, True, True)

    missing = check(
        draw(one + " on a gray background"), one + " and a green square moves up quickly on a gray background"
    )
    assert not missing.correct
    assert missing.shapes[0].correct
    assert not missing.shapes[1].colour


def test_exchanged_colours_fail():
    clip = draw("a red circle moves left slowly and a blue square moves up quickly on a dark background")
    verdict = check(clip, "a blue circle moves left slowly and a red square moves up quickly on a dark background")
    assert [s.colour for s in verdict.shapes] == [False, False]
    assert [s.kind and s.direction for s in verdict.shapes] == [True, True]


def test_order_of_shapes_does_not_matter():
    clip = draw("a red circle moves left slowly and a blue square moves up quickly on a dark background")
    assert check(clip, "a blue square moves up quickly and a red circle moves left slowly on a dark background").correct


def test_wrong_speed_is_seen_but_not_part_of_correct():
    verdict = check(
        draw("a red circle moves left slowly on a dark background"),
        "a red circle moves left quickly on a dark background",
    )
    assert verdict.correct
    assert not verdict.shapes[0].speed


def test_shape_that_changes_fails():
    # The same seed gives the same path and texture, so that only the named property changes half-way.
    caption = "a red circle moves left slowly on a striped background"
    clip, middle = draw(caption), NUM_FRAMES // 2
    for other, failed in (("red square", "kind"), ("green circle", "colour")):
        clip_b = draw(caption.replace("red circle", other))
        verdict = check(torch.cat([clip[:middle], clip_b[middle:]]), caption)
        assert not getattr(verdict.shapes[0], failed), other


@pytest.mark.parametrize("colour", COLOURS)
def test_input_formats_agree(colour):
    caption = f"a {colour} triangle moves down quickly on a checkered background"
    clip = draw(caption)
    for same in (clip, clip.numpy(), clip.double().numpy(), clip.bfloat16(), clip.clone().requires_grad_()):
        assert check(same, caption).correct


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="expected a clip"):
        observe(torch.zeros(3, NUM_FRAMES, HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="grammar"):
        check(torch.zeros(NUM_FRAMES, HEIGHT, WIDTH, 3), "a dog runs")
    with pytest.raises(ValueError, match="at least one"):
        accuracy([], [])


def test_speed(drawn):
    captions, clips = drawn
    times = []
    for clip, caption in zip(clips[:FEW], captions, strict=False):
        start = time.process_time()
        check(clip, caption)
        times.append(time.process_time() - start)
    assert float(np.median(times)) < 0.06  # seconds of one core; about 0.01 where nothing else runs
