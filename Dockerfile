# The environment of `make`, with the same versions (constraints.txt). From the repository's folder:
#   docker build -t prune-distil .
#   docker run --rm -v "$PWD/results:/work/results" prune-distil make reproduce
#   docker run --rm -p 8888:8888 prune-distil make lab LAB="--ip=0.0.0.0 --no-browser"
FROM python:3.13-slim-bookworm AS system
RUN apt-get update \
    && apt-get install --no-install-recommends --yes git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /work

FROM system
# The packages come first, so that a change of the code does not install them again.
COPY pyproject.toml setup.py constraints.txt Makefile README.md LICENSE ./
COPY paperlib/__init__.py paperlib/
RUN PIP_NO_CACHE_DIR=1 make .venv/.installed
COPY . .
CMD ["make", "reproduce"]
