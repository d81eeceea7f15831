"""The largest and smallest values that an option can sensibly have; others are refused before work begins."""

MOST_CLASSES = 10_000
LEAST_WIDTH, MOST_WIDTH = 0.01, 4.0
"""Range of the factor on channel counts."""
MOST_DEPTH = 10.0
"""Largest factor on the numbers of repeated blocks."""
LARGEST_SIDE = 16_384
"""Largest side of an input, in pixels."""
MOST_THREADS = 1024
LARGEST_SEED = 2**32 - 1
"""The largest seed that every generator of random numbers takes."""
LARGEST_COUNT = 100_000
"""Of epochs, images in a batch and the like."""
LARGEST_NUMBER = 1000.0
"""Of rates, weights of loss terms and the like."""
DETECTOR_NAMES = (
    "yolov3",
    "yolov3-spp",
    "yolov4",
    "yolov4-tiny",
    "centernet-resnet50",
    "faster-rcnn-resnet101",
)
"""The keys of `paperlib.detectors.DETECTORS`, known here without loading torch."""
CLASSIFIER_NAMES = ("resnet50", "resnet101", "vgg16-bn", "yolov4-tiny-trunk")
"""The keys of `paperlib.classifiers.CLASSIFIERS`, likewise."""
IMPORTANCE_NAMES = ("gamma", "l1", "fused", "l1-layerwise", "l2-layerwise", "fpgm", "hrank", "taylor")
"""The keys of `paperlib.pruning.IMPORTANCES`, likewise."""
