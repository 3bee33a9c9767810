"""Trains the glyph family from scratch: ``python -m vaccel.demo.train_images --out FOLDER``.

The U-Net predicts the noise of noisy latents (Ho et al., 2020) on Stable Diffusion's schedule; the text encoder learns
with it, and one caption in eight is dropped for guidance.  The images are drawn once, before the first step, and kept
as latents beside the checkpoint.  Matrices and convolutions are trained with Muon, everything else with AdamW; the
learning rate is flat and falls linearly over the last part.

Every step draws its batch from a generator seeded by (seed, step), so a resumed run continues exactly where it
stopped.  A run may be resumed with another ``--steps``: while the rate has not begun to fall that changes nothing that
came before.  Drawing needs fonts (``vaccel.demo.glyphs.PACKAGES``), sampling does not.

The shipped family was trained in about 75 minutes on one core that others used too, with the defaults and all fonts::

    python -m vaccel.demo.train_images --out FOLDER

``--small-for FAMILY`` trains a small U-Net beside a family that is there, on its text encoder and its latents, for the
methods that use one; FOLDER then holds that family with the small U-Net in ``small/``.  The shipped one::

    python -m vaccel.demo.train_images --out FOLDER --small-for vaccel/demo/image_weights --widths 16,16,32

One thread is the default: the layers are small, and two threads that share their cores wait for each other.
"""

from __future__ import annotations

import copy
import functools
import time
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import nn

from ..distill import checkpoint
from . import glyphs, image_family
from .image_vae import PixelTransformVAE

FITTED_ON = 1024  # images, at most


class FlatMuon(torch.optim.Muon):
    """Muon for weights of any shape: a convolution is the matrix of its output channels by everything else."""

    def __init__(self, weights: list[nn.Parameter], **settings):
        self.weights = weights
        super().__init__([nn.Parameter(w.detach().flatten(1)) for w in weights], **settings)

    @torch.no_grad()
    def step(self, closure=None):
        matrices = self.param_groups[0]["params"]
        for matrix, weight in zip(matrices, self.weights, strict=True):
            matrix.grad = weight.grad.flatten(1)
            matrix.copy_(weight.flatten(1))
        super().step(closure)
        for matrix, weight in zip(matrices, self.weights, strict=True):
            weight.copy_(matrix.view_as(weight))
            matrix.grad = None


def make_optimizers(models: nn.ModuleDict) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and convolutions inside the blocks, AdamW for the rest."""
    muon, adamw = [], []
    for name, p in models.named_parameters():
        inside = "blocks." in name or "mid_block." in name or "encoder.layers." in name
        (muon if p.ndim >= 2 and inside else adamw).append(p)
    return [
        FlatMuon(muon, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adamw, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int, decay: float, warmup: int = 100) -> float:
    """Warm-up, flat, then linear to zero over the last ``decay`` of ``steps``; a factor in [0, 1]."""
    return min(1.0, (step + 1) / warmup, max(0.0, (steps - step) / (decay * steps)))


class Images:
    """The training set: latents as the U-Net sees them, token ids of the captions, and the VAE they come from."""

    def __init__(
        self,
        path: Path,
        count: int,
        seed: int,
        fonts: glyphs.Fonts | None,
        vae: PixelTransformVAE | None = None,
    ):
        if not path.is_file():
            self._draw(path, count, seed, fonts, vae)
        tensors, about = checkpoint.read(path, {"vae": dict})
        if len(tensors["ids"]) != count:
            raise ValueError(f"{path} holds {len(tensors['ids'])} images, not {count}; remove it to draw them anew")
        self.latents, self.ids = tensors["latents"], tensors["ids"]
        self.vae = PixelTransformVAE(**about["vae"])
        self.vae.load_state_dict(checkpoint.part(tensors, "vae."))

    @staticmethod
    def _draw(path: Path, count: int, seed: int, fonts: glyphs.Fonts | None, vae: PixelTransformVAE | None) -> None:
        generator, began = torch.Generator().manual_seed(seed), time.monotonic()
        tokenizer, latents, ids = image_family.build_tokenizer(), [], []
        while (have := FITTED_ON * len(ids)) < count:
            captions, images = glyphs.draw_batch(min(FITTED_ON, count - have), generator, fonts=fonts)
            vae = vae or PixelTransformVAE.fit(images)
            latents.append(vae.scaled_latents(images).half())
            ids.append(tokenizer(captions, padding="max_length", return_tensors="pt").input_ids.to(torch.int16))
            if len(ids) % 8 == 0:
                typer.echo(f"drew {min(have + FITTED_ON, count)} of {count} images in {time.monotonic() - began:.0f} s")
        tensors = {"latents": torch.cat(latents), "ids": torch.cat(ids)}
        tensors |= {f"vae.{k}": v for k, v in vae.state_dict().items()}
        config = {k: v for k, v in vae.config.items() if not k.startswith("_")}
        checkpoint.write(path, tensors, {"vae": config})


class Trainer:
    """The state of the training; ``save`` and ``resume`` keep all of it in safetensors."""

    def __init__(
        self,
        out: Path,
        *,
        batch: int = 32,
        seed: int = 0,
        images: int = 40_000,
        widths: tuple[int, int, int] = (32, 64, 112),
        fonts: glyphs.Fonts | None = None,
        small_for: Path | None = None,
    ):
        torch.manual_seed(seed)
        self.out, self.batch, self.seed, self.images, self.widths, self.fonts = out, batch, seed, images, widths, fonts
        self.small_for = image_family.load(small_for) if small_for else None
        models = {"unet": image_family.build_unet(widths)}
        if self.small_for is None:
            models = {"text": image_family.build_text_encoder(), **models}
        self.models = nn.ModuleDict(models).train()
        # In a list, so that what is only used is neither trained nor saved.
        self.text = [
            self.models["text"] if "text" in models else self.small_for.pipe.text_encoder.requires_grad_(False)
        ]
        self.ema = copy.deepcopy(self.models).requires_grad_(False).eval()
        self.optimizers = make_optimizers(self.models)
        self.alphas = image_family.build_scheduler().alphas_cumprod
        self.empty = torch.tensor(image_family.build_tokenizer()("", padding="max_length").input_ids)
        self.step = 0

    @functools.cached_property
    def data(self) -> Images:
        vae = self.small_for.pipe.vae if self.small_for else None
        return Images(self.out / "images.safetensors", self.images, self.seed, self.fonts, vae)

    def loss(self) -> torch.Tensor:
        """Mean squared error of the noise predicted on the step's batch; one caption in eight is dropped."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step + 1)
        index = torch.randint(len(self.data.ids), (self.batch,), generator=generator)
        latents, ids = self.data.latents[index].float(), self.data.ids[index].long()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(len(self.alphas), (self.batch,), generator=generator)
        drop = torch.rand(self.batch, generator=generator) < 0.125
        ids = torch.where(drop[:, None], self.empty, ids)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        text = self.text[0](ids).last_hidden_state
        predicted = self.models["unet"](noisy, timesteps, text, return_dict=False)[0]
        return F.mse_loss(predicted, noise)

    def update(self, lr: float) -> float:
        """One optimisation step at ``lr`` times the base rates; returns the loss."""
        loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.setdefault("base_lr", group["lr"])
            optimizer.step()
        self.models.zero_grad(set_to_none=True)
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.models.parameters()), 1 - decay)
        self.step += 1
        return float(loss.detach())

    @property
    def settings(self) -> dict[str, str]:
        """The settings that a checkpoint must share to be resumed."""
        settings = {name: str(getattr(self, name)) for name in ("seed", "batch", "images", "widths")}
        return settings if self.small_for is None else {**settings, "small": "a family's small U-Net"}

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.safetensors"

    def save(self) -> None:
        """Writes a checkpoint; an interrupted write keeps the last one."""
        tensors = {f"model.{k}": v for k, v in self.models.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            tensors |= checkpoint.of_optimizer(optimizer, f"optimizer.{i}.")
        checkpoint.write(self.checkpoint, tensors, {"step": self.step, "settings": self.settings})

    def resume(self) -> None:
        """Loads the checkpoint; raises ``ValueError`` if it was made with other settings."""
        tensors, about = checkpoint.read(self.checkpoint, {"step": int, "settings": dict})
        if about["settings"] != self.settings:
            raise ValueError(f"{self.checkpoint} was made with {about['settings']}, not with {self.settings}")
        self.models.load_state_dict(checkpoint.part(tensors, "model."))
        self.ema.load_state_dict(checkpoint.part(tensors, "ema."))
        for i, optimizer in enumerate(self.optimizers):
            kept = frozenset({"momentum_buffer"}) if isinstance(optimizer, torch.optim.Muon) else checkpoint.ADAMW
            checkpoint.load_optimizer(self.checkpoint, optimizer, tensors, f"optimizer.{i}.", kept)
        self.step = about["step"]

    def export(self) -> None:
        """Writes the averaged weights as a family's folder."""
        ema = copy.deepcopy(self.ema)
        if self.small_for is not None:
            image_family.save_small(self.out, self.small_for.folder, ema["unet"])
            return
        image_family.save(
            self.out,
            tokenizer=image_family.build_tokenizer(),
            text_encoder=ema["text"],
            vae=self.data.vae,
            unet=ema["unet"],
        )


def main(
    out: Annotated[Path, typer.Option(help="Folder of the family; images, checkpoints and the log go there too.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps in all.")] = 7_500,
    minutes: Annotated[float, typer.Option(min=0.0, help="Stop after so long, to be resumed; 0: no limit.")] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 32,
    images: Annotated[int, typer.Option(min=1, help="Images drawn to train on.")] = 40_000,
    widths: Annotated[str, typer.Option(help="Channels of the U-Net's three levels, multiples of 16.")] = "32,64,112",
    decay: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Last share of the steps over which the rate falls.")
    ] = 0.35,
    rate: Annotated[float, typer.Option(min=0.0, help="Factor on the learning rates.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the images and every batch.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 250,
    threads: Annotated[int, typer.Option(min=0, help="Threads to compute with; 0: as many as there are cores.")] = 1,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint, if it holds one.")] = True,
    any_fonts: Annotated[bool, typer.Option(help="Make do with matplotlib's fonts where others are missing.")] = False,
    small_for: Annotated[
        Path | None, typer.Option(help="Train a small U-Net beside this folder's family, on its latents and captions.")
    ] = None,
) -> None:
    """Train the glyph family (an hour and more on two CPU cores). Resumable."""
    out.mkdir(parents=True, exist_ok=True)
    if threads:
        torch.set_num_threads(threads)
    first, second, third = (int(width) for width in widths.split(","))
    fonts = glyphs.find_fonts(fallback=True) if any_fonts else None
    wide = first, second, third
    trainer = Trainer(out, batch=batch, seed=seed, images=images, widths=wide, fonts=fonts, small_for=small_for)
    if resume and trainer.checkpoint.is_file():
        trainer.resume()
        typer.echo(f"resumed at step {trainer.step}")
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in trainer.models.items()}
    typer.echo(f"weights: {parameters}; {len(trainer.data.ids)} images")
    began, start, mean = time.monotonic(), trainer.step, None
    try:
        while trainer.step < steps:
            loss = trainer.update(rate * learning_rate(trainer.step, steps, decay))
            mean = loss if mean is None else 0.99 * mean + 0.01 * loss
            elapsed = time.monotonic() - began
            if trainer.step % 50 == 0 or trainer.step == steps:
                left = elapsed / (trainer.step - start) * (steps - trainer.step) / 60
                typer.echo(
                    f"step {trainer.step}/{steps}  loss {loss:.4f}  mean {mean:.4f}  "
                    f"{elapsed / 60:.1f} min, {left:.1f} min left"
                )
            if trainer.step % save_every == 0 and trainer.step < steps:
                trainer.save()
                trainer.export()
            if minutes and elapsed > 60 * minutes:
                typer.echo(f"stopped at step {trainer.step} after {minutes:g} min; run it again to go on")
                break
    except KeyboardInterrupt:
        typer.echo(f"interrupted at step {trainer.step}; run the same command again to go on")
    trainer.save()
    trainer.export()
    typer.echo(f"family written to {out}")


if __name__ == "__main__":
    typer.run(main)
