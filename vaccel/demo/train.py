"""Trains the moving-shapes family from scratch: ``python -m vaccel.demo.train --out FOLDER``.

Flow matching (Lipman et al., 2023): x_s = (1 - s) x_0 + s noise, the transformers predict noise - x_0.  Large and
small transformer see the same batches; the text encoder learns from the large one alone and is shared.  Matrices are
trained with Muon, everything else with AdamW; the learning rate is flat and falls linearly over the last part.

The shipped family was trained in six runs, about seven hours on two CPU cores: from scratch, with a large transformer
of 6 blocks; on with more of the hard clips; the small transformer alone once more on the text encoder that came out of
it; the large one deepened to its 8 blocks (``--start-from`` adds what is missing); and both together, more in the high
noise that decides the layout (with more than half of the clips of two shapes it begins to draw a lone shape twice).
Shipped is the mean of the weights of the last two, E and F::

    python -m vaccel.demo.train --out A --steps 4600 --two 0.2
    python -m vaccel.demo.train --out B --steps 2950 --two 0.65 --seed 1 --rate 0.6 --decay 0.85 --start-from A
    python -m vaccel.demo.train --out C --steps 1800 --two 0.4 --seed 2 --rate 0.6 --decay 0.9 \\
        --only small --start-from B
    python -m vaccel.demo.train --out D --steps 2200 --two 0.65 --seed 3 --rate 0.6 --decay 0.85 --start-from C
    python -m vaccel.demo.train --out E --steps 2600 --two 0.4 --seed 6 --rate 0.6 --decay 0.9 --shift 5 --start-from D
    python -m vaccel.demo.train --out F --steps 750 --two 0.5 --seed 7 --rate 0.45 --decay 0.95 --shift 5 --start-from E

Every step draws its batch from a generator seeded by (seed, step), so a resumed run continues exactly where it stopped.
"""

from __future__ import annotations

import copy
import functools
import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..distill import checkpoint
from . import family, shapes
from .vae import PatchTransformVAE

MODELS = ("text", "large", "small")


def make_optimizers(models: nn.ModuleDict) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices of the transformer blocks, AdamW for the rest."""
    muon, adamw = [], []
    for name, p in models.named_parameters():
        (muon if p.ndim == 2 and ".blocks." in name else adamw).append(p)
    return [
        torch.optim.Muon(muon, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adamw, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int, decay: float, warmup: int = 100) -> float:
    """Warm-up, flat, then linear to zero over the last ``decay`` of ``steps``; a factor in [0, 1]."""
    return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (decay * steps)))


def shapes_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


class Trainer:
    """The state of the training; ``save`` and ``resume`` keep all of it in safetensors."""

    def __init__(
        self, out: Path, batch: int, seed: int, device: str, two: float = 0.5, shift: float = 3.0, only: str = ""
    ):
        torch.manual_seed(seed)
        self.out, self.batch, self.seed, self.device = out, batch, seed, device
        self.two, self.shift, self.only = two, shift, only
        self.device_type = torch.device(device).type
        # A CPU without bf16 instructions emulates them, at twice the time of single precision.
        self.half = self.device_type != "cpu" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        self.tokenizer = family.build_tokenizer()
        models = {"text": family.build_text_encoder()}
        models |= {size: family.build_transformer(size) for size in ("large", "small")}
        self.models = nn.ModuleDict(models).to(device)
        self.ema = copy.deepcopy(self.models).requires_grad_(False)
        self.optimizers = make_optimizers(self.models)
        self.step = 0

    @functools.cached_property
    def vae(self) -> PatchTransformVAE:
        """Fitted on first use; a family that training starts from or resumes has its own."""
        clips = shapes.draw_batch(2048, torch.Generator().manual_seed(self.seed))[1]
        return PatchTransformVAE.fit(clips)

    def start_from(self, folder: Path) -> None:
        """Takes the weights of a finished family (averaged, in half precision); the optimisers start anew.

        A transformer with fewer blocks than this version's gets blocks that are the identity at first, one of
        another width starts from scratch; both are reported.
        """
        loaded = family.load(folder)
        states = {"text": loaded.pipe.text_encoder.state_dict()}
        for name, model in (("large", loaded.pipe.transformer), ("small", loaded.small)):
            states[name], old, new = model.state_dict(), len(model.blocks), len(self.models[name].blocks)
            if old < new:
                typer.echo(f"the {name} transformer of {folder} has {old} blocks: {new - old} that pass on are added")
                states[name] = family.deepen(states[name], old, new)
            if shapes_of(states[name]) != shapes_of(self.models[name].state_dict()):
                typer.echo(f"the {name} transformer of {folder} has another shape: it is trained from scratch")
                del states[name]
        for models in (self.models, self.ema):
            for name, state in states.items():
                models[name].load_state_dict(state)
        self.vae = loaded.pipe.vae

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One batch: latents, noise, sigma in (0, 1), token ids; one caption in eight is dropped."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step + 1)
        captions, clips = shapes.draw_batch(self.batch, generator, two=self.two)
        latents = self.vae.normalised_latents(clips)
        noise = torch.randn(latents.shape, generator=generator)
        u = torch.sigmoid(1.2 * torch.randn(self.batch, generator=generator))
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        drop = torch.rand(self.batch, generator=generator) < 0.125
        captions = ["" if d else c for c, d in zip(captions, drop.tolist(), strict=True)]
        ids = self.tokenizer(
            captions, padding="max_length", max_length=family.MAX_TOKENS, return_tensors="pt"
        ).input_ids
        return tuple(v.to(self.device) for v in (latents, noise, sigma, ids))

    def losses(self) -> dict[str, torch.Tensor]:
        """Mean squared error of both transformers' velocities on the step's batch."""
        latents, noise, sigma, ids = self.draw()
        s = sigma.view(-1, 1, 1, 1, 1)
        x, target = (1 - s) * latents + s * noise, noise - latents
        mask = ids.ne(0)
        losses, sizes = {}, (self.only,) if self.only else ("large", "small")
        backends = [SDPBackend.MATH] if self.device_type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.half), sdpa_kernel(backends):
            text = self.models["text"](ids, mask).last_hidden_state.float() * mask.unsqueeze(-1)
            for size in sizes:
                condition = text if size == "large" else text.detach()
                v = self.models[size](
                    hidden_states=x, timestep=sigma * 1000, encoder_hidden_states=condition, return_dict=False
                )[0]
                losses[size] = (v.float() - target).square().mean()
        return losses

    def update(self, lr: float) -> dict[str, float]:
        """One optimisation step at ``lr`` times the base rates; returns the losses."""
        losses = self.losses()
        sum(losses.values()).backward()
        for model in self.models.values():
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.setdefault("base_lr", group["lr"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.models.parameters()), 1 - decay)
        self.step += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    @property
    def settings(self) -> dict[str, str]:
        """The settings that a checkpoint must share to be resumed."""
        return {name: str(getattr(self, name)) for name in ("seed", "batch", "two", "shift", "only")}

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.safetensors"

    def save(self) -> None:
        """Writes a checkpoint; an interrupted write keeps the last one."""
        tensors = {f"model.{k}": v for k, v in self.models.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        tensors |= {f"vae.{k}": v for k, v in self.vae.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            tensors |= checkpoint.of_optimizer(optimizer, f"optimizer.{i}.")
        vae = {k: v for k, v in self.vae.config.items() if not k.startswith("_")}
        about = {"step": self.step, "vae": json.loads(json.dumps(vae)), "settings": self.settings}
        checkpoint.write(self.checkpoint, tensors, about)

    def resume(self) -> None:
        """Loads the checkpoint; raises ``ValueError`` if it was made with other settings."""
        tensors, about = checkpoint.read(self.checkpoint, {"step": int, "vae": dict, "settings": dict})
        if about["settings"] != self.settings:
            raise ValueError(f"{self.checkpoint} was made with {about['settings']}, not with {self.settings}")
        self.models.load_state_dict(checkpoint.part(tensors, "model."))
        self.ema.load_state_dict(checkpoint.part(tensors, "ema."))
        self.vae = PatchTransformVAE(**about["vae"])
        self.vae.load_state_dict(checkpoint.part(tensors, "vae."))
        for i, optimizer in enumerate(self.optimizers):
            kept = frozenset({"momentum_buffer"}) if isinstance(optimizer, torch.optim.Muon) else checkpoint.ADAMW
            checkpoint.load_optimizer(self.checkpoint, optimizer, tensors, f"optimizer.{i}.", kept)
        self.step = about["step"]

    def export(self) -> None:
        """Writes the averaged weights as a family's folder."""
        ema = copy.deepcopy(self.ema).to("cpu")
        family.save(
            self.out,
            tokenizer=self.tokenizer,
            text_encoder=ema["text"],
            vae=self.vae,
            large=ema["large"],
            small=ema["small"],
        )


def main(
    out: Annotated[Path, typer.Option(help="Folder of the family; checkpoints and the log go there too.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps in all.")] = 7600,
    batch: Annotated[int, typer.Option(min=1, help="Clips a step.")] = 24,
    decay: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Last share of the steps over which the rate falls.")
    ] = 0.3,
    rate: Annotated[float, typer.Option(min=0.0, help="Factor on the learning rates (less when training on).")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of every batch.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 250,
    device: Annotated[str, typer.Option(help="cpu or cuda; the GPU where there is one.")] = "",
    two: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the training clips with two shapes, the hard ones.")
    ] = 0.5,
    shift: Annotated[
        float, typer.Option(min=0.1, help="Shift of the noise levels: the higher, the more of what decides the layout.")
    ] = 3.0,
    only: Annotated[str, typer.Option(help="Train one transformer alone: large (and the text encoder) or small.")] = "",
    start_from: Annotated[Path | None, typer.Option(help="Finished family to train on.")] = None,
    fresh: Annotated[bool, typer.Option(help="Start again even if the folder holds a checkpoint.")] = False,
) -> None:
    """Train the moving-shapes family (hours on two CPU cores, minutes on a GPU). Resumable."""
    if only not in ("", "large", "small"):
        raise typer.BadParameter(f"--only is 'large' or 'small', not {only!r}")
    out.mkdir(parents=True, exist_ok=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(out, batch, seed, device, two, shift, only)
    if trainer.checkpoint.is_file() and not fresh:
        trainer.resume()
        typer.echo(f"resumed at step {trainer.step}")
    elif start_from is not None:
        trainer.start_from(start_from)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    began, seconds, mean = time.monotonic(), 0.0, {}
    with Progress(*columns) as progress, open(out / "log.jsonl", "a") as log:
        bar = progress.add_task("training", total=steps, completed=trainer.step)
        try:
            while trainer.step < steps:
                losses = trainer.update(rate * learning_rate(trainer.step, steps, decay))
                mean = {k: 0.98 * mean.get(k, v) + 0.02 * v for k, v in losses.items()}
                text = "  ".join(f"{k} {v:.4f}" for k, v in mean.items())
                progress.update(bar, completed=trainer.step, description=text)
                if trainer.step % 50 == 0:
                    seconds = time.monotonic() - began
                    log.write(json.dumps({"step": trainer.step, "seconds": round(seconds, 1)} | mean) + "\n")
                    log.flush()
                if trainer.step % save_every == 0:
                    trainer.save()
        except KeyboardInterrupt:
            typer.echo(f"interrupted at step {trainer.step}; run the same command again to go on")
        trainer.save()
    trainer.export()
    typer.echo(f"family written to {out}")


if __name__ == "__main__":
    typer.run(main)
