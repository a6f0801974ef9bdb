# Two images out of one file: `lambda` for AWS Lambda, `server` (the last, so the default) for anywhere else.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS base
ENV PYTHONUNBUFFERED=1
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt
COPY core/ core/
COPY infra/ infra/
COPY handler/ handler/
# Lambda's file system is read-only: without compiled files each cold start would compile all of them again
RUN python -m compileall -q core infra handler

FROM base AS lambda
ENTRYPOINT ["python", "-m", "awslambdaric"]
CMD ["handler.aws_lambda.handler"]

FROM base AS test
COPY requirements-dev.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements-dev.txt
COPY . ./
CMD ["python", "-m", "pytest", "-m", "not e2e", "--cov", "-p", "no:cacheprovider"]

FROM base AS server
# The runbook's tools; their versions are those of the base image's Debian release
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends procps sqlite3 \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir data \
    && chown 1000:1000 data
USER 1000:1000
ENV HOST=0.0.0.0
EXPOSE 8000
VOLUME /app/data
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('PORT', '8000') + '/ready', timeout=2)"]
CMD ["python", "-m", "handler"]
