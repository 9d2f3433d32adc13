"""
Bring your own diffusion model
==============================

Any diffusion model over pixels that diffusers can save will do as the backbone. This lesson trains a tiny one by hand,
saves it, and clusters with it.
"""

# %%
# A model from elsewhere
# ----------------------
# It learns to predict the noise in noisy images. This is the usual loop with diffusers, cut short.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits

from skdiec import DiffusionEmbeddedClustering
from skdiec.plotting import ClusterDisplay

images = load_digits().images[::3]
torch.manual_seed(0)
network = UNet2DModel(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
)
scheduler = DDPMScheduler()
optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
x = torch.as_tensor(images[:, None] / 8 - 1, dtype=torch.float32)  # from -1 to 1
for _ in range(150):
    x0 = x[torch.randint(len(x), (32,))]
    noise, timesteps = torch.randn_like(x0), torch.randint(400, (32,))
    loss = torch.nn.functional.mse_loss(network(scheduler.add_noise(x0, noise, timesteps), timesteps).sample, noise)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

folder = Path(tempfile.mkdtemp()) / "my-model"
DDPMPipeline(network, scheduler).save_pretrained(folder)

# %%
# As the backbone
# ---------------
# The folder is all that is needed. So is the name of a model on the Hugging Face Hub, such as
# ``backbone="google/ddpm-cifar10-32"``, or a loaded pipeline. A search looks at all blocks of the network.

model = DiffusionEmbeddedClustering(
    n_clusters=10,
    value_range=(0, 16),
    timestep=[25, 50, 100],
    pooling=[2, 4],
    backbone=folder,
    random_state=0,
).fit(images)
print("searched:", ", ".join(model.layers_))
print("chosen:", model.layer_, model.timestep_)
ClusterDisplay.from_estimator(model, images)
plt.show()

# %%
# Does it know these images?
# --------------------------
# ``share_explained_`` says how much of the noise the model finds, at three timesteps. 1 is all of it. Below 0 it finds
# less than a straight line would, and a warning comes: then images and backbone do not fit.

for timestep, share in model.share_explained_.items():
    print(f"timestep {timestep}: {share:.2f}")
