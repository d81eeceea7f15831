"""Put the verdicts of the committed results into the README: `make scoreboard`."""

from paperlib.paths import repository_root
from paperlib.scoreboard import refresh_readme

if __name__ == "__main__":
    refresh_readme(repository_root() / "README.md")
