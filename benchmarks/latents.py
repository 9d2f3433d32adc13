"""Compare a fit on models of latents with what its passes and its encodings alone cost.

The models are diffusers' own classes with small random weights, so that whatever else costs time shows. The bare cost
is that of the images' encodings and of the forward passes that search and features need, each up to the deepest layer
that is wanted, at the speed of the bare networks in the same process. All are seconds of the processor, which other
work on the machine does not lengthen. Needs no data:

    OMP_NUM_THREADS=1 python benchmarks/latents.py
"""

from __future__ import annotations

import argparse
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import Results, bare_pass, in_new_process, machine, markdown_table, mean_of, sources, write_table

KEY = ("family", "images", "threads", "repeat")
VALUES = ("fit", "encodings", "passes", "bare", "machine")
FAMILIES = ("Stable Diffusion", "DiT", "Flux")
N_IMAGES, SIDE, REPEATS = 2_000, 64, 3
_ROUNDS = 50


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


def fit(family: str) -> dict[str, float]:
    """Fit on random images; return the seconds of the fit, and those of its encodings and passes alone."""
    from skdiec import DiffusionEmbeddedClustering, load_backbone
    from skdiec.features import suited_batch_size

    model, options = pipeline(family)
    images = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    fitted = DiffusionEmbeddedClustering(10, backbone=load_backbone(model, **options), search="halving", random_state=0)
    started = time.process_time()
    fitted.fit(images)
    taken = time.process_time() - started
    backbone = fitted.backbone_
    batch_size = suited_batch_size(backbone)
    batch = torch.zeros((batch_size, *backbone.image_shape))

    def per_image(run: Any) -> float:
        run()
        started = time.process_time()
        for _ in range(_ROUNDS):
            run()
        return (time.process_time() - started) / _ROUNDS / batch_size

    def bare(layer: str) -> float:
        return per_image(bare_pass(backbone, layer, fitted.timestep_, batch_size))

    n_passes, n_encodings = N_IMAGES * fitted.n_draws, N_IMAGES * (1 + fitted.n_draws)
    cost = n_passes * bare(fitted.layer_) + n_encodings * per_image(lambda: backbone.encode(batch))
    for stage in fitted.search_result_.stages:
        deepest = max((cell.layer for cell in stage.cells), key=fitted.layers_.index)
        cost += stage.n_forward * bare(deepest)
        n_passes += stage.n_forward
    return {"fit": taken, "encodings": n_encodings, "passes": n_passes, "bare": cost}


def results_of() -> Results:
    return Results("latents", KEY, VALUES)


def table(results: Results) -> list[str]:
    header = ("family", "images", "fits", "encodings", "passes", "fit s", "bare s", "ratio")
    lines = []
    for family, count, threads in dict.fromkeys((row["family"], row["images"], row["threads"]) for row in results.rows):
        key = {"family": family, "images": count, "threads": threads}
        rows = results.find(**key)
        counts = [f"{int(float(rows[0][name])):,}" for name in ("encodings", "passes")]
        times = [results.mean(name, 1, spread=False, **key) for name in ("fit", "bare")]
        ratio = mean_of([float(row["fit"]) / float(row["bare"]) for row in rows], 2)
        lines.append((family, f"{int(count):,}", len(rows), *counts, *times, ratio))
    return [
        *markdown_table(header, lines),
        "",
        f'Random images of {SIDE} x {SIDE}, random weights, 10 clusters, search="halving" as in the table of fits. '
        "Seconds of the processor. Ratio: the whole fit, over what its encodings and passes cost at the bare networks' "
        "speed.",
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
