"""Deploy a detector: to ONNX, to 8-bit integers, and detect with both in ONNX Runtime."""

from pathlib import Path

import paperlib as pl
from paperlib.deploy.description import Description
from paperlib.deploy.int8 import quantise

SIDE = 96

train = pl.load_dataset("toy-aerial", "train")
detector = pl.build_detector("yolov4-tiny", num_classes=len(train.classes), width=0.25)
pl.fit(detector, train.subset(range(32), "some"), pl.Recipe(epochs=1, batch_size=8, image_size=SIDE))

# What the description says need not be said again by whoever uses the file.
use = Description(classes=train.classes, image_size=SIDE, confidence=0.05)
difference = pl.export_onnx(detector, "detector.onnx", SIDE, description=use)
print(f"largest difference between ONNX Runtime and PyTorch: {difference:.1e}")

# Training images set the ranges of the activations.
quantise("detector.onnx", "detector.int8.onnx", train.subset(range(16), "calibration"))

picture = train.records[0].read_pixels()
for path in map(Path, ("detector.onnx", "detector.int8.onnx")):
    found = pl.predict(path, picture)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(found)} objects", found.names[:3])
