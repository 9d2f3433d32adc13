"""Compare a fit on models of latents with what its passes and its encodings alone cost.

The models are diffusers' own classes with small random weights, so that whatever else costs time shows. Passes and
encodings are timed and counted inside the fit itself, call by call: the machine's other work slows them as much as the
rest. All are seconds of the processor, on one thread. Needs no data:

    OMP_NUM_THREADS=1 python benchmarks/latents.py
"""

from __future__ import annotations

import argparse
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import Results, in_new_process, machine, markdown_table, mean_of, sources, write_table

KEY = ("family", "images", "threads", "repeat")
VALUES = ("fit", "inside", "encoded", "to_encode", "passed", "to_pass", "machine")
FAMILIES = ("DiT", "Stable Diffusion", "Flux")
N_IMAGES, SIDE, REPEATS = 2_000, 64, 1


def pipeline(family: str) -> tuple[Any, dict[str, Any]]:
    """Return a pipeline of random weights, and what loading it takes."""
    import diffusers

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = diffusers.AutoencoderKL(block_out_channels=(16, 32, 32), norm_num_groups=8, latent_channels=4, **blocks)
    heads = {"num_attention_heads": 4, "attention_head_dim": 24}
    ddim = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    if family == "Stable Diffusion":
        unet = diffusers.UNet2DConditionModel(
            sample_size=SIDE // 4,
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=64,
            norm_num_groups=8,
        )
        told = {"encoder_hidden_states": torch.randn(1, 77, 64)}
        return SimpleNamespace(components={"unet": unet, "vae": vae, "scheduler": ddim}), {"condition": told}
    if family == "DiT":
        dit = diffusers.DiTTransformer2DModel(
            **heads, in_channels=4, out_channels=8, num_layers=8, sample_size=SIDE // 4
        )
        return SimpleNamespace(components={"transformer": dit, "vae": vae, "scheduler": ddim}), {}
    flux = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=4,
        num_attention_heads=4,
        attention_head_dim=24,
        axes_dims_rope=(4, 10, 10),
        joint_attention_dim=64,
        pooled_projection_dim=64,
    )
    told = {"encoder_hidden_states": torch.randn(1, 64, 64), "pooled_projections": torch.randn(1, 64)}
    parts = {"transformer": flux, "vae": vae, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}
    return SimpleNamespace(components=parts), {"condition": told, "image_size": SIDE}


class Meter:
    """Times the calls of a method, and counts the images that they are of."""

    def __init__(self, kind: type, name: str) -> None:
        self.seconds, self.images, method = 0.0, 0, getattr(kind, name)

        def timed(backbone: Any, images: torch.Tensor, *rest: Any) -> torch.Tensor:
            started = time.thread_time()  # other threads may score meanwhile
            try:
                return method(backbone, images, *rest)
            finally:  # passes end by an exception at the deepest layer that is wanted
                if images.device.type != "meta":
                    self.seconds += time.thread_time() - started
                    self.images += len(images)

        setattr(kind, name, timed)


def fit(family: str) -> dict[str, float]:
    """Fit on random images; return the seconds of the fit, and those inside the autoencoder and the network."""
    from skdiec import DiffusionEmbeddedClustering, load_backbone

    model, options = pipeline(family)
    images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    backbone = load_backbone(model, **options)
    encodings, passes = Meter(type(backbone), "encode"), Meter(type(backbone), "predict")
    fitted = DiffusionEmbeddedClustering(10, backbone=backbone, search="halving", random_state=0)
    started = time.process_time()
    fitted.fit(images)
    taken = time.process_time() - started
    return {
        "fit": taken,
        "inside": encodings.seconds + passes.seconds,
        "encoded": encodings.images,
        "to_encode": N_IMAGES * (1 + fitted.n_draws),
        "passed": passes.images,
        "to_pass": N_IMAGES * fitted.n_draws + sum(stage.n_forward for stage in fitted.search_result_.stages),
    }


def results_of() -> Results:
    return Results("latents", KEY, VALUES)


def table(results: Results) -> list[str]:
    header = ("family", "images", "fits", "images encoded", "of", "images passed", "of", "fit s", "inside s", "ratio")
    lines = []
    for family, count, threads in dict.fromkeys((row["family"], row["images"], row["threads"]) for row in results.rows):
        key = {"family": family, "images": count, "threads": threads}
        rows = results.find(**key)
        counts = [f"{int(float(rows[0][name])):,}" for name in ("encoded", "to_encode", "passed", "to_pass")]
        times = [results.mean(name, 1, spread=False, **key) for name in ("fit", "inside")]
        ratio = mean_of([float(row["fit"]) / float(row["inside"]) for row in rows], 2)
        lines.append((family, f"{int(count):,}", len(rows), *counts, *times, ratio))
    return [
        *markdown_table(header, lines),
        "",
        f'Random images of {SIDE} x {SIDE}, random weights, 10 clusters, search="halving" as in the table of fits. '
        "Images encoded and passed through the network, of those that search and features need: the others fill "
        "batches, and are of the guard. Seconds of the processor, of the whole fit and inside autoencoder "
        "and network, with the hooks that keep maps; the ratio is of the two.",
        *sources(results),
        "Command: `python benchmarks/latents.py`.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES, metavar="FAMILY")
    parser.add_argument("--table", action="store_true", help="only write the table of what was measured")
    arguments = parser.parse_args()
    results = results_of()
    for family in () if arguments.table else arguments.families:
        for repeat in range(REPEATS):
            key = {"family": family, "images": N_IMAGES, "threads": torch.get_num_threads(), "repeat": repeat}
            if not results.find(**key):
                row, _, _ = in_new_process(fit, family)
                results.add(**key, **row, machine=machine())
    write_table("latents", table(results))


if __name__ == "__main__":
    main()
