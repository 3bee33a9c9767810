"""The distillation's losses and objectives: against the plain-loop oracle, finite differences, and zero where due."""

from __future__ import annotations

import dataclasses
import json

import oracle_distill as oracle
import pytest
import tiny
import torch
from torch import nn

from vaccel.distill import losses
from vaccel.distill.discriminator import Discriminator, Head, tapped
from vaccel.distill.networks import Networks
from vaccel.distill.objective import Draws, Objective
from vaccel.distill.settings import PUBLISHED, Distillation
from vaccel.distill.shards import Batch
from vaccel.models import find
from vaccel.planning.trajectory import Trajectory

SMALL = {"split": 35, "shift": 5.0, "guidance": 3.0, "lag": 1, "rank": 2, "alpha": 4, "head_width": 32, "batch": 3}


def scene(name, dtype=torch.float64, frames=3, rows=3):
    """A tiny family's transformer, batch and trajectory in ``dtype``."""
    torch.manual_seed(0)
    pipe, _ = tiny.family(name)
    model = pipe.transformer.to(dtype).eval().requires_grad_(False)
    with torch.no_grad():
        for p in model.parameters():  # diffusers begins some layers with zeros, which would hide what is behind them
            p.add_(0.05 * torch.randn_like(p))
    family = find(model)
    if name == "wan":
        shape, text = (rows, model.config.in_channels, frames, 4, 4), model.config.text_dim
    else:
        shape, text = (rows, frames, model.config.in_channels, 4, 4), model.config.text_embed_dim
    texts = [torch.randn(rows, tiny_text_length(model), text, dtype=dtype) for _ in range(2)]
    arguments = [{"encoder_hidden_states": t} for t in texts]
    batch = Batch(torch.randn(shape, dtype=dtype), *arguments)
    settings = {**SMALL, **({} if name == "wan" else {"shift": None})}
    return model, family, batch, Trajectory.of(pipe.scheduler, settings["shift"]), settings


def tiny_text_length(model):
    return getattr(model.config, "max_text_seq_length", 6)


def callable_of(model, family, arguments, row):
    """One sample's forward as the oracle calls it: (x, timestep, condition) -> prediction."""

    def call(x, t, which):
        inputs = {k: v[row : row + 1] for k, v in arguments[which].items()}
        timestep = torch.tensor([float(t)])
        return model(hidden_states=x[None].to(next(model.parameters()).dtype), timestep=timestep, return_dict=False,
                     **inputs)[0][0]  # fmt: skip

    return call


def draws(settings, latents, indices):
    made = Draws.of(settings, latents, range(len(latents)))
    return dataclasses.replace(made, index=torch.tensor(indices))


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
@pytest.mark.parametrize(
    ("stage", "indices"), [("semantic", [35, 40, 49]), ("detail", [0, 1, 34]), ("single", [0, 35, 49])]
)
def test_the_pair_is_the_oracles(name, stage, indices):
    model, family, batch, trajectory, settings = scene(name)
    settings = Distillation(stage, **settings, gan=0.0)
    student = Networks(settings, family, model, None).student
    with torch.no_grad():
        for p in student.parameters():
            if p.requires_grad:
                p.add_(0.02 * torch.randn_like(p))
    objective, chance = Objective(settings, trajectory, family, model), draws(settings, batch.latents, indices)
    mine, theirs = objective.pair(student, student, batch, chance)
    arguments = {"cond": batch.cond, "uncond": batch.uncond}
    for row, index in enumerate(indices):
        given = (
            callable_of(student, family, arguments, row), callable_of(student, family, arguments, row),
            callable_of(model, family, arguments, row), batch.latents[row], chance.noise[row], index, stage,
            settings.split,
        )  # fmt: skip
        if name == "wan":
            expected = oracle.consistency_sample(*given, settings.shift, settings.guidance, "cond", "uncond")
        else:
            cumulative = torch.tensor(trajectory.alphas_cumprod, dtype=torch.float64)
            expected = oracle.ddim_consistency_sample(
                *given, cumulative, settings.guidance, "cond", "uncond", trajectory.prediction
            )
        torch.testing.assert_close(mine[row], expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(theirs[row], expected[1], rtol=1e-5, atol=1e-6)
        if index - 1 == settings.end:  # the teacher's next point is the end itself: nothing is solved on
            torch.testing.assert_close(theirs[row], expected[2], rtol=1e-5, atol=1e-6)
    assert mine.requires_grad
    assert not theirs.requires_grad


@pytest.mark.parametrize("kind", ["huber", "l2"])
def test_losses_are_the_oracles(kind):
    torch.manual_seed(1)
    a, b = torch.randn(2, 3, 4, 5, 6, 6, dtype=torch.float64)
    own = losses.pseudo_huber(a, b, 0.001) if kind == "huber" else losses.squared(a, b)
    torch.testing.assert_close(own, oracle.consistency_loss(list(a), list(b), kind, 0.001))
    for lag, axis in ((3, 2), (1, 2), (2, 1)):
        expected = oracle.temporal_coherence_loss(list(a), list(b), lag, axis - 1)
        torch.testing.assert_close(losses.temporal_coherence(a, b, lag, axis), expected)


def test_the_discriminators_losses_are_the_oracles():
    torch.manual_seed(2)
    real, fake = [[2 * torch.randn(3, n, dtype=torch.float64) for n in (7, 5)] for _ in range(2)]
    torch.testing.assert_close(losses.discriminator_hinge(real, fake), oracle.hinge_discriminator_loss(real, fake))
    torch.testing.assert_close(losses.generator_hinge(fake), oracle.hinge_generator_loss(fake, form="hinge"))
    torch.testing.assert_close(losses.feature_matching(fake, real), oracle.feature_matching_loss(fake, real))


def test_a_head_is_the_oracles():
    torch.manual_seed(3)
    head, features = Head(8, 64).double(), torch.randn(2, 5, 8, dtype=torch.float64)

    def affine(layer):
        return layer.weight, layer.bias

    for row, scores in zip(features, head(features), strict=True):
        expected = oracle.head(
            row, affine(head.first), affine(head.second), affine(head.norms[1]), affine(head.out),
            norm_in=affine(head.norms[0]),
        )  # fmt: skip
        torch.testing.assert_close(scores, expected.flatten())


@pytest.mark.parametrize("stage", ["semantic", "detail"])
def test_the_total_is_what_the_paper_adds_up(stage):
    model, family, batch, trajectory, settings = scene("wan")
    settings = Distillation(stage, **settings, matching=10.0)
    networks = Networks(settings, family, model, None)
    objective = Objective(settings, trajectory, family, model)
    chance = Draws.of(settings, batch.latents, range(3))
    heads = networks.heads.double() if networks.heads is not None else None
    found, features = objective.student_losses(networks.student, networks.target, batch, chance, heads)
    if stage == "semantic":
        assert features is None
        torch.testing.assert_close(found["total"], found["consistency"] + found["temporal"])
        return
    expected = oracle.detail_objective(found["consistency"], found["adversarial"], found["matching"], 10.0)
    torch.testing.assert_close(found["total"], expected)
    # The features are the frozen teacher's, of both ends noised again at one level with one noise.
    mine, theirs = objective.pair(networks.student, networks.student, batch, chance)
    arguments, number = {"cond": batch.cond}, heads.numbers[-1]
    for row in range(3):
        index = int(chance.gan_point[row])
        assert 0 <= index < settings.split
        for end, side in ((mine, features[0]), (theirs, features[1])):
            x = oracle.renoise(end[row].detach(), chance.gan_noise[row], index, settings.shift)
            with tapped(model, family, (number,)) as take:
                callable_of(model, family, arguments, row)(x, 1000 * oracle.points(50, settings.shift)[index], "cond")
                torch.testing.assert_close(side[-1][row], take()[0][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["semantic", "detail", "single"])
@pytest.mark.parametrize("kind", ["huber", "l2"])
def test_gradients_are_finite_differences(stage, kind):
    """Along random directions through all trained weights at once, in fp64 (Wan's norms would compute in fp32)."""
    model, family, batch, trajectory, settings = scene("cogvideox")
    # Far from its edge, where pseudo-Huber's second derivative is 1 / c, a difference quotient means something.
    settings = Distillation(stage, **settings, loss=kind, huber_c=0.1)
    networks = Networks(settings, family, model, None)
    networks.double()
    frozen = Networks(settings, family, model, None).double().student
    objective, chance = Objective(settings, trajectory, family, model), Draws.of(settings, batch.latents, range(3))
    trained = list(networks.trained().values())
    with torch.no_grad():
        for p in trained:
            p.add_(0.02 * torch.randn_like(p))

    def total():
        return objective.student_losses(networks.student, frozen, batch, chance, networks.heads)[0]["total"]

    gradients = torch.autograd.grad(total(), trained)
    torch.manual_seed(4)
    step = 1e-5
    for _ in range(3):
        way = [torch.randn_like(p) for p in trained]
        expected = sum((g * w).sum() for g, w in zip(gradients, way, strict=True))
        values = []
        for sign in (1, -2, 1):  # forwards, backwards, home again
            with torch.no_grad():
                for p, w in zip(trained, way, strict=True):
                    p.add_(sign * step * w)
                values.append(total())
        quotient = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(quotient, expected, rtol=1e-4, atol=1e-7)


def test_the_discriminators_gradient_is_a_finite_difference_and_stays_its_own():
    model, family, batch, trajectory, settings = scene("cogvideox")
    settings = Distillation("detail", **settings)
    networks = Networks(settings, family, model, None).double()
    objective, chance = Objective(settings, trajectory, family, model), Draws.of(settings, batch.latents, range(3))
    _, features = objective.student_losses(networks.student, networks.target, batch, chance, networks.heads)
    loss = objective.discriminator_loss(networks.heads, features)
    loss.backward()
    assert all(p.grad is None for p in networks.trained().values())
    assert all(p.grad is None for p in model.parameters())
    weight = networks.heads.heads[0].out.weight
    step = 1e-6
    with torch.no_grad():
        for at in range(3):
            values = []
            for sign in (1, -2, 1):
                weight[0, at] += sign * step
                values.append(objective.discriminator_loss(networks.heads, features))
            torch.testing.assert_close((values[0] - values[1]) / (2 * step), weight.grad[0, at], rtol=1e-4, atol=1e-8)


def test_each_loss_is_zero_where_it_must_be():
    torch.manual_seed(5)
    a = torch.randn(2, 4, 5, 3, 3)
    assert losses.pseudo_huber(a, a) == 0
    assert losses.squared(a, a) == 0
    assert losses.feature_matching([a], [a]) == 0
    constant = a + torch.randn(2, 4, 1, 3, 3)  # the same in every frame: no change over time differs
    torch.testing.assert_close(losses.temporal_coherence(a, constant, 3, 2), torch.zeros(()), atol=1e-12, rtol=0)
    assert losses.temporal_coherence(a, a * 1.1, 3, 2) > 0
    sure = [torch.full((2, 5), 1.5)]
    assert losses.discriminator_hinge(sure, [-sure[0]]) == 0
    assert losses.generator_hinge(sure) == 0
    assert losses.discriminator_hinge([torch.zeros(2, 5)], [torch.zeros(2, 5)]) == 2


def test_a_model_that_knows_the_way_has_no_loss():
    """Predictions that are exact on every straight path: both ends, and the teacher's next point, lie on it."""
    clean, noise = torch.randn(2, 3, 4, 5, 4, 4, dtype=torch.float64)

    class Exact(nn.Module):
        def forward(self, hidden_states, timestep, return_dict):
            return (noise - clean,)

    family, trajectory = find(tiny.wan_transformer()), Trajectory("flow", 17.0)
    for stage in ("semantic", "detail", "single"):
        settings = Distillation(stage, split=35)
        objective = Objective(settings, trajectory, family, Exact())
        batch = Batch(clean, {}, None)
        chance = dataclasses.replace(Draws.of(settings, clean, range(3)), noise=noise)
        mine, theirs = objective.pair(Exact(), Exact(), batch, chance)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        end = objective.level(torch.tensor([settings.end]))
        torch.testing.assert_close(mine, trajectory.noised(clean, noise, end), rtol=0, atol=1e-12)


def test_phases_and_published_settings():
    hunyuan, wan = Distillation.published("semantic", "hunyuanvideo"), Distillation.published("detail", "wan")
    assert hunyuan.starts == (38, 49)
    assert hunyuan.end == 37
    assert (wan.starts, wan.end) == ((0, 34), -1)
    levels = [Trajectory("flow", s.shift).level([s.boundary]).sigma.item() for s in (hunyuan, wan)]
    assert [round(v, 4) for v in levels] == [0.9818, 0.9754]
    # The end point of the semantic phase is where inference changes over, and where the detail phase begins.
    objective = Objective(hunyuan, Trajectory("flow", 17.0), find(tiny.wan_transformer()), nn.Identity())
    assert objective.level(torch.tensor([hunyuan.end])).sigma.item() == levels[0]
    assert objective.level(torch.tensor([-1])).sigma.item() == 0
    assert objective.level(torch.tensor([49])).sigma.item() == 1
    assert (wan.matching, wan.guidance, hunyuan.guidance) == (10.0, 6.0, 6.016)
    assert (wan.learning_rate, hunyuan.learning_rate, wan.head_rate) == (5e-6, 1e-6, 1e-5)
    cog = Distillation.published("detail", "cogvideox")
    assert (cog.steps, cog.learning_rate, cog.shift) == (500, 1e-6, None)
    assert Distillation.published("semantic", "unheard of").split == PUBLISHED["hunyuanvideo"]["split"]
    assert json.loads(json.dumps(wan.to_json())) == wan.to_json()


def test_noise_levels_are_told_apart_whatever_the_latents_dtype():
    """At shift 17 neighbouring levels near pure noise are closer than bf16 tells."""
    trajectory = Trajectory("flow", 17.0)
    x, v = torch.zeros(49, 2, dtype=torch.bfloat16), torch.ones(49, 2, dtype=torch.bfloat16)
    points = torch.arange(1, 50)
    moved = trajectory.solve(x, v, trajectory.level((points + 1) / 50), trajectory.level(points / 50))
    assert (moved < 0).all()


def test_draws_stay_in_their_phase_and_follow_their_slot():
    latents = torch.zeros(4, 2, 3)
    for stage, first, last in (("semantic", 35, 49), ("detail", 0, 34), ("single", 0, 49)):
        settings = Distillation(stage, split=35)
        many = [Draws.of(settings, latents, range(4 * i, 4 * i + 4)) for i in range(100)]
        index = torch.cat([d.index for d in many])
        assert index.min() == first
        assert index.max() == last
        if settings.discriminates:
            points = torch.cat([d.gan_point for d in many])
            assert points.min() == 0
            assert points.max() == 34
            assert not torch.equal(many[0].noise, many[0].gan_noise)
        else:
            assert many[0].gan_point is many[0].gan_noise is None
        alone = Draws.of(settings, latents[:1], [6])
        assert torch.equal(alone.noise[0], many[1].noise[2])
        assert alone.index[0] == many[1].index[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": 50}, "split must lie inside"),
        ({"stage": "third"}, "unknown stage"),
        ({"loss": "l1"}, "'huber' or 'l2'"),
        ({"ema": 1.0}, "ema must be at least 0"),
        ({"head_width": 100}, "multiple of 32"),
        ({"gan": -1.0}, "gan must be from 0"),
        ({"batch": 0}, "batch must be a whole number from 1"),
        ({"rate": float("nan")}, "rate must be above 0 .*, got nan"),
        ({"detail_rate": 0.0}, "detail_rate must be above 0"),
        ({"head_rate": float("inf")}, "head_rate must be"),
        ({"rate": 10**400}, "rate must be"),
        ({"weight_decay": -0.1}, "weight_decay must be from 0"),
        ({"iterations": -1}, "iterations must be a whole number from 1"),
        ({"detail_iterations": 1.5}, "detail_iterations must be a whole number"),
        ({"batch": True}, "batch must be a whole number"),
        ({"shift": 0.0}, "shift must be above 0"),
        ({"guidance": float("nan")}, "guidance must be above 0"),
        ({"points": 10**9}, "points must be a whole number from 2 to 65536"),
        ({"warmup": -1}, "warmup must be"),
        ({"seed": 2**70}, "seed must be"),
        ({"rate": "1e-3"}, "rate must be above 0 .*, got '1e-3'"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**{"stage": "detail", **change})


def test_a_lag_longer_than_the_clip():
    with pytest.raises(ValueError, match="3 latent frames back; these clips have 3"):
        losses.temporal_coherence(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 3, 2)


def test_heads_sit_on_every_second_block():
    assert Discriminator(8, 5, width=32).numbers == (0, 2, 4)
    assert Discriminator(8, 1, width=32).numbers == (0,)
