"""The dual-expert consistency model's training, written from the paper and METHODS section 5: slow, nothing of vaccel.

Everything is in double precision and for one sample at a time.  A model is a function ``(x, timestep, text) ->
prediction``; whoever calls wraps a network into one and casts there what the network wants cast.  Points of the
teacher's solver are numbered in time, not in execution order: 0 is the last before the clean end, n - 1 is pure noise,
and -1 is the clean end itself, which the lists hold in their last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Model = Callable[[Tensor, float, Any], Tensor]  # (x, timestep, text) -> velocity, noise or v-prediction
Affine = tuple[Tensor, Tensor]  # weight and bias


def shifted(u: float, shift: float) -> float:
    """The noise level of a flow model at unshifted time ``u``: 0 is clean, 1 is noise."""
    return shift * u / (1 + (shift - 1) * u)


def points(n: int = 50, shift: float = 17.0) -> list[float]:
    """Noise levels by index: n of them and the clean end, so that index -1 is 0."""
    return [*(shifted((i + 1) / n, shift) for i in range(n)), 0.0]


def ddim_points(alphas_cumprod: Tensor, n: int = 50) -> list[tuple[int, float, float]]:
    """(training timestep, alpha, sigma) by index for eq. 1; index -1 is the clean end (-1: no model runs there).

    Eq. 1 calls the cumulative product alpha_t and prints a standard deviation where a covariance belongs; here alpha
    and sigma are the factors of the clean sample and of the noise.
    """
    out = []
    for i in range(n):
        t = round(1000 * (i + 1) / n) - 1
        bar = alphas_cumprod[t].item()
        out.append((t, math.sqrt(bar), math.sqrt(1 - bar)))
    return [*out, (-1, 1.0, 0.0)]


def phase(stage: str, split: int, n: int = 50) -> tuple[list[int], int]:
    """The indices a training step may start from and the index every solve of the phase ends at (eqs. 4, 6, 7)."""
    if stage == "semantic":
        return list(range(split, n)), split - 1
    if stage == "detail":
        return list(range(split)), -1
    assert stage == "single", stage
    return list(range(n)), -1


def guided(teacher: Model, x: Tensor, t: float, guidance: float, cond: Any, uncond: Any) -> Tensor:
    """The teacher's prediction with CFG, u + w (c - u); without ``uncond`` the conditional one alone."""
    c = teacher(x, t, cond).double()
    if uncond is None:
        return c
    u = teacher(x, t, uncond).double()
    return u + guidance * (c - u)


def euler(x: Tensor, velocity: Tensor, sigma: float, to: float) -> Tensor:
    """The solver Phi of flow matching: the velocity is noise - x0, so x moves by it times the change of the level."""
    return x + (to - sigma) * velocity


def ddim(x: Tensor, out: Tensor, kind: str, at: tuple[float, float], to: tuple[float, float]) -> Tensor:
    """The solver Phi of diffusion models: the clean sample and the noise of a prediction, mixed for the level ``to``.

    ``at`` and ``to`` are (alpha, sigma).  v = alpha noise - sigma x0.
    """
    alpha, sigma = at
    if kind == "v_prediction":
        clean, noise = alpha * x - sigma * out, sigma * x + alpha * out
    else:
        assert kind == "epsilon", kind
        clean, noise = (x - sigma * out) / alpha, out
    return to[0] * clean + to[1] * noise


def consistency_sample(
    student: Model,
    target: Model,
    teacher: Model,
    x0: Tensor,
    noise: Tensor,
    index: int,
    stage: str,
    split: int,
    shift: float,
    guidance: float,
    cond: Any,
    uncond: Any = None,
    n: int = 50,
) -> tuple[Tensor, Tensor, Tensor]:
    """(student_end, target_end, teacher_next) of eqs. 4 to 7 and 9 for one sample of a flow model.

    Student and target see the conditional text only: the teacher's guidance is what they learn.
    """
    sigma = points(n, shift)
    starts, end = phase(stage, split, n)
    assert index in starts
    x = (1 - sigma[index]) * x0.double() + sigma[index] * noise.double()
    with torch.no_grad():
        velocity = guided(teacher, x, 1000 * sigma[index], guidance, cond, uncond)
        teacher_next = euler(x, velocity, sigma[index], sigma[index - 1])  # eq. 5
        target_end = teacher_next
        if index - 1 != end:
            velocity = target(teacher_next, 1000 * sigma[index - 1], cond).double()
            target_end = euler(teacher_next, velocity, sigma[index - 1], sigma[end])
    velocity = student(x, 1000 * sigma[index], cond).double()
    return euler(x, velocity, sigma[index], sigma[end]), target_end, teacher_next


def ddim_consistency_sample(
    student: Model,
    target: Model,
    teacher: Model,
    x0: Tensor,
    noise: Tensor,
    index: int,
    stage: str,
    split: int,
    alphas_cumprod: Tensor,
    guidance: float,
    cond: Any,
    uncond: Any = None,
    kind: str = "v_prediction",
    n: int = 50,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for one sample of a diffusion model, with DDIM steps between training timesteps."""
    levels = ddim_points(alphas_cumprod, n)
    starts, last = phase(stage, split, n)
    assert index in starts
    (t, *here), (t_next, *after), (_, *end) = levels[index], levels[index - 1], levels[last]
    x = here[0] * x0.double() + here[1] * noise.double()
    with torch.no_grad():
        out = guided(teacher, x, t, guidance, cond, uncond)
        teacher_next = ddim(x, out, kind, here, after)  # eq. 5
        target_end = teacher_next
        if index - 1 != last:
            out = target(teacher_next, t_next, cond).double()
            target_end = ddim(teacher_next, out, kind, after, end)
    out = student(x, t, cond).double()
    return ddim(x, out, kind, here, end), target_end, teacher_next


def consistency_loss(
    student_end: Sequence[Tensor], target_end: Sequence[Tensor], kind: str = "huber", c: float = 0.001
) -> Tensor:
    """Eqs. 4, 6, 7 per element, averaged over a sample's elements and over samples (a list, or the batch axis)."""
    losses = []
    for s, t in zip(student_end, target_end, strict=True):
        d = s.double() - t.double()
        if kind == "huber":
            losses.append((torch.sqrt(d**2 + c**2) - c).mean())
        else:
            assert kind == "l2", kind
            losses.append((d**2).mean())
    return sum(losses) / len(losses)


def temporal_coherence_loss(
    student_end: Sequence[Tensor], target_end: Sequence[Tensor], lag: int = 3, frame_axis: int = -3
) -> Tensor:
    """Eq. 8 as a mean of squares, averaged over samples; 0 when there is no frame ``lag`` frames after another.

    ``frame_axis`` is an axis of one sample.
    """
    losses = []
    for s, t in zip(student_end, target_end, strict=True):
        s, t = s.double().movedim(frame_axis, 0), t.double().movedim(frame_axis, 0)
        total = 0.0 * s.sum()
        for frame in range(lag, len(s)):
            moved, wanted = s[frame] - s[frame - lag], t[frame] - t[frame - lag]
            total = total + ((moved - wanted) ** 2).mean()
        losses.append(total / max(len(s) - lag, 1))
    return sum(losses) / len(losses)


def renoise(end: Tensor, noise: Tensor, index: int, shift: float, n: int = 50) -> Tensor:
    """Section 3.4's fake or real sample: the forward process (eq. 1) on a clean estimate, to a point of the solver."""
    sigma = points(n, shift)[index]
    return (1 - sigma) * end.double() + sigma * noise.double()


def ddim_renoise(end: Tensor, noise: Tensor, index: int, alphas_cumprod: Tensor, n: int = 50) -> Tensor:
    """The same for a diffusion model."""
    _, alpha, sigma = ddim_points(alphas_cumprod, n)[index]
    return alpha * end.double() + sigma * noise.double()


def hinge_discriminator_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """L_D of eq. 10 with a hinge on each term; one tensor of logits (one per token) for each head."""
    losses = []
    for real, fake in zip(real_logits, fake_logits, strict=True):
        losses.append(torch.relu(1 - real.double()).mean() + torch.relu(1 + fake.double()).mean())
    return sum(losses) / len(losses)


def hinge_generator_loss(fake_logits: Sequence[Tensor], form: str = "linear") -> Tensor:
    """The adversarial part of L_G of eq. 10: "linear" is -f (eq. 10 less its constant 1), "hinge" is relu(1 - f)."""
    assert form in ("linear", "hinge")
    losses = [(-f.double() if form == "linear" else torch.relu(1 - f.double())).mean() for f in fake_logits]
    return sum(losses) / len(losses)


def feature_matching_loss(fake_feats: Sequence[Tensor], real_feats: Sequence[Tensor]) -> Tensor:
    """L_FM of eq. 10: mean over layers of the mean of squares; nothing flows back into the real features."""
    pairs = zip(fake_feats, real_feats, strict=True)
    losses = [((fake.double() - real.double().detach()) ** 2).mean() for fake, real in pairs]
    return sum(losses) / len(losses)


def detail_objective(consistency: Tensor, adversarial: Tensor, matching: Tensor, lam: float = 1.0) -> Tensor:
    """Stage 2: eq. 7 and L_G of eq. 10, with METHODS' weights."""
    return consistency + 0.1 * (5 * adversarial + lam * matching)


def conv1x1(h: Tensor, affine: Affine) -> Tensor:
    """A 1x1 convolution over tokens [N, C]; the weight is [out, in], whatever axes of length 1 follow."""
    weight, bias = affine
    return h @ weight.double().flatten(1).T + bias.double()


def group_norm(h: Tensor, affine: Affine, groups: int, eps: float) -> Tensor:
    """Each group of channels, over all tokens given, to mean 0 and (biased) variance 1; then affine by channel."""
    weight, bias = affine
    parts = [part - part.mean() for part in h.chunk(groups, dim=1)]
    parts = [part / torch.sqrt((part**2).mean() + eps) for part in parts]
    return torch.cat(parts, dim=1) * weight.double() + bias.double()


def head(
    features: Tensor,
    conv_in: Affine,
    conv: Affine,
    norm: Affine,
    conv_out: Affine,
    norm_in: Affine | None = None,
    groups: int = 32,
    slope: float = 0.01,
    eps: float = 1e-5,
) -> Tensor:
    """One discriminator head on the features [N, C] of one sample: N logits.

    Order: h = conv_in(features); h = h + lrelu(norm(conv(h))); conv_out(h).  With ``norm_in`` the first convolution
    is followed by a normalisation and an activation too.  Slope 0.01 is torch's own, as METHODS names no other.  The
    width (1024 there) is the weights'.
    """
    h = conv1x1(features.double(), conv_in)
    if norm_in is not None:
        h = F.leaky_relu(group_norm(h, norm_in, groups, eps), slope)
    h = h + F.leaky_relu(group_norm(conv1x1(h, conv), norm, groups, eps), slope)
    return conv1x1(h, conv_out)[:, 0]


def clip(grads: Sequence[Tensor], max_norm: float = 1.0, eps: float = 1e-6) -> tuple[list[Tensor], float]:
    """Gradients scaled so that the norm of all together is at most ``max_norm``, and the norm before."""
    norm = math.sqrt(sum((g.double() ** 2).sum().item() for g in grads))
    factor = min(1.0, max_norm / (norm + eps))
    return [g.double() * factor for g in grads], norm


def adamw_step(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Any] | None,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.001,
    eps: float = 1e-8,
) -> tuple[Tensor, dict[str, Any]]:
    """The parameter after one AdamW step, and the new state; ``None`` is the state before the first."""
    p, g = param.detach().double(), grad.double()
    state = state or {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
    step = state["step"] + 1
    m = betas[0] * state["m"] + (1 - betas[0]) * g
    v = betas[1] * state["v"] + (1 - betas[1]) * g**2
    p = p - lr * weight_decay * p
    p = p - lr * (m / (1 - betas[0] ** step)) / (torch.sqrt(v / (1 - betas[1] ** step)) + eps)
    return p, {"step": step, "m": m, "v": v}


def sigmas(steps: int, split: int, shift: float, n: int = 50) -> list[float]:
    """Few-step inference (supplementary 6): half of the steps in each phase, the first has the odd one.

    Inside a phase evenly in unshifted time from its start; the clean end is not in the list.
    """
    boundary = split / n
    first = (steps + 1) // 2
    second = steps - first
    semantic = [1 - (1 - boundary) * k / first for k in range(first)]
    detail = [boundary - boundary * k / second for k in range(second)]
    return [shifted(u, shift) for u in semantic + detail]
