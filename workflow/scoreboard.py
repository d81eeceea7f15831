"""Write the committed results and their verdicts into the README: `make scoreboard`."""

from paperlib.claims.readme import refresh_readme
from paperlib.paths import repository_root

if __name__ == "__main__":
    refresh_readme(repository_root() / "README.md")
