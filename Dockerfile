# A machine that runs the same make targets: docker build -t decoct . && docker run --rm decoct make demo
FROM python:3.11-slim-bookworm
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core git make strace \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 decoct
WORKDIR /home/decoct/decoct
COPY --chown=decoct:decoct . .
RUN chown decoct:decoct .
USER 1000
RUN make .venv/.installed
ENV PATH="/home/decoct/decoct/.venv/bin:${PATH}"
CMD ["decoct", "--help"]
