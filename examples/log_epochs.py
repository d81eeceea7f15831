"""Log every epoch of a training: `on_epoch` gets a small record, here written to a CSV file.

TensorBoard in three lines:
    writer = torch.utils.tensorboard.SummaryWriter()
    def log(report: pl.EpochReport) -> None:
        writer.add_scalar("loss", report.loss, report.epoch)

MLflow in two:
    def log(report: pl.EpochReport) -> None:
        mlflow.log_metrics({"loss": report.loss, **report.metrics}, step=report.epoch)
"""

import csv

import paperlib as pl

train = pl.load_dataset("toy-aerial", "train").subset(range(16), "some")
val = pl.load_dataset("toy-aerial", "val").subset(range(4), "few")
detector = pl.build_detector("yolov4-tiny", num_classes=len(train.classes), width=0.125)

with open("epochs.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["epoch", "loss", "map50", "learning_rate", "seconds"])

    def log(report: pl.EpochReport) -> None:
        """Write a line; mAP is empty for epochs without a validation."""
        score = report.metrics.get("map50", "")
        writer.writerow([report.epoch, report.loss, score, report.learning_rate, report.seconds])
        print(f"epoch {report.epoch} of {report.epochs}: loss {report.loss:.2f}")

    recipe = pl.Recipe(epochs=3, batch_size=8, image_size=96, validate_every=3)
    pl.fit(detector, train, recipe, validation=val, on_epoch=log, resume=False)
