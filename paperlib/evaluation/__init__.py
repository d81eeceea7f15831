"""How good a detector is: detections and average precision."""
