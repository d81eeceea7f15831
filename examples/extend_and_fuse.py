"""Train with partner convolutions and fuse them afterwards: more to learn with, the same network to run (BPL)."""

import torch

import paperlib as pl

train = pl.load_dataset("toy-aerial", "train").subset(range(16), "some")
detector = pl.build_detector("yolov4-tiny", num_classes=len(train.classes), width=0.125)

extended = pl.extend(detector, kernels=(3,))
# The regulariser keeps each convolution and its partner different from each other.
pl.fit(extended, train, pl.Recipe(epochs=2, batch_size=8, image_size=96), regulariser=pl.Partnership())
fused = pl.fuse(extended)

images = torch.rand(2, 3, 96, 96)
with torch.no_grad():
    pairs = zip(extended.eval().head_outputs(images), fused.eval().head_outputs(images), strict=True)
    difference = max(float((one - other).abs().max()) for one, other in pairs)
print(f"largest difference between the extended and the fused network: {difference:.1e}")
for name, each in (("before", detector), ("while training", extended), ("fused", fused)):
    print(f"{name}: {pl.cost(each, image_size=96).parameters:,} parameters")
