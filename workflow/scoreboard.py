"""Put the committed results, and the verdicts they lead to, into the README: `make scoreboard`."""

from paperlib.claims.readme import refresh_readme
from paperlib.paths import repository_root

if __name__ == "__main__":
    refresh_readme(repository_root() / "README.md")
