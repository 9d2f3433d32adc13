"""Make ``model_v1``, a saved model of format 1, and the labels that it predicts, for later versions to read.

Not to be run again for a later format: that gets a folder of its own.
"""

import json
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering

HERE = Path(__file__).parent


def main():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=4,
            attention_head_dim=8,
        )
    images = load_digits().images
    model = DiffusionEmbeddedClustering(
        n_clusters=3,
        backbone=DDPMPipeline(network, DDPMScheduler()),
        value_range=(0, 16),
        layer=["down_blocks.0", "mid_block"],
        timestep=50,
        pooling=2,
        n_components=8,
        n_init=3,
        hidden_size=8,
        max_epochs=3,
        random_state=0,
    )
    model.fit(images[:60])
    model.save(HERE / "model_v1")
    (HERE / "model_v1.json").write_text(json.dumps(model.predict(images[:100]).tolist()) + "\n")


if __name__ == "__main__":
    main()
