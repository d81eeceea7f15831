"""Prune a network of torchvision to half of its channels, train the result, save it and load it again."""

import torch
from torchvision.models import resnet18

import paperlib as pl


def build() -> torch.nn.Module:
    """Build the network before pruning; yours would be trained."""
    return resnet18(num_classes=10)


network = build()
plan = pl.plan_pruning(network, 0.5, importance="l1", image_size=64)
small = pl.apply_plan(network, plan)
for name, each in (("original", network), ("pruned", small)):
    cost = pl.cost(each, image_size=64)
    print(f"{name}: {cost.size_mb:.1f} MB, {cost.gmacs:.3f} GMACs")

# What is left is an ordinary network: train it with whatever trained the original.
images, labels = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
optimiser = torch.optim.SGD(small.parameters(), lr=0.01)
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(small.train()(images), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

# The file holds the pruned shapes; `build` makes the network as it was before.
pl.save_network(small, "small.safetensors")
loaded = pl.load_network("small.safetensors", build=build)
print("equal after loading:", torch.equal(loaded(images), small.eval()(images)))
