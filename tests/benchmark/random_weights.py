"""Write seeded random weights, from which a network takes as long as from real ones.

python -m tests.benchmark.random_weights wide_resnet50_2 weights.pth
"""

import sys

import torch
from torch import nn
from torchvision import models


def main(arch: str, path: str) -> None:
    """The batch norms hold the statistics of noise: activations stay near 1 at any depth."""
    torch.manual_seed(0)
    network = models.get_model(arch, weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
    torch.save(network.state_dict(), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
