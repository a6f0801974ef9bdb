# The images of the service: `lambda` for AWS Lambda, `server` (the last, so the default) for anywhere else; besides
# them `test`, which runs the tests inside the image, `s3`, a local S3 for development, `postgres`, and `monitoring`,
# Prometheus and Alertmanager. No --mount and no syntax line: `sam build` speaks to the builder that knows neither.
# Another base, or this one by its digest: --build-arg BASE_IMAGE=python:3.13-slim@sha256:...
ARG BASE_IMAGE=base

FROM python:3.13-slim AS base

# Packages are installed and compiled here, once for all images
FROM ${BASE_IMAGE} AS build
WORKDIR /build
COPY requirements.txt ./
# Without what nothing here opens: the packages' own tests, the builds of Swagger UI that are not served
RUN pip install --no-cache-dir --disable-pip-version-check --no-warn-script-location --no-deps --require-hashes \
        --prefix /install -r requirements.txt \
    && find /install -depth \( -type d \( -name test -o -name tests \) \
        -o -name swagger-ui.js -o -name 'swagger-ui-standalone*' \) -exec rm -r {} +
# Those of traces and of PostgreSQL apart, for the images that are to have them: traces-no and postgres-no are empty
COPY requirements-otel.txt requirements-postgres.txt ./
RUN mkdir /traces-no /postgres-no \
    && pip install --no-cache-dir --disable-pip-version-check --no-warn-script-location --no-deps --require-hashes \
        --prefix /traces-yes -r requirements-otel.txt \
    && pip install --no-cache-dir --disable-pip-version-check --no-warn-script-location --no-deps --require-hashes \
        --prefix /postgres-yes -r requirements-postgres.txt \
    && find /traces-yes /postgres-yes -depth -type d \( -name test -o -name tests \) -exec rm -r {} +
COPY core/ app/core/
COPY infra/ app/infra/
COPY handler/ app/handler/
RUN rm -r app/infra/monitoring && chmod -R u=rwX,go=rX app && python -m compileall -q app

# What the images have in common. Nothing in it can be written by the user that it runs as
FROM ${BASE_IMAGE} AS runtime
# The official images carry no compiled standard library, and on a read-only disk each start would compile it anew
RUN python -m compileall -q -x '/(site-packages|ensurepip|idlelib|lib2to3|pydoc_data|test|tests|turtledemo)/' \
    "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
LABEL org.opencontainers.image.title="cloud-native-poc" \
      org.opencontainers.image.description="Items service: an ASGI app over SQLite, every commit in the object store" \
      org.opencontainers.image.licenses="MIT"
# Pydantic would look for plugins in what is installed, package by package, at each start; there are none
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYDANTIC_DISABLE_PLUGINS=__all__
WORKDIR /app
COPY --from=build /install /usr/local
COPY --from=build /build/app ./

# Lambda picks the user itself and gives it no writable place but /tmp; a USER line here would break `sam local`,
# which builds upon this image
FROM runtime AS lambda
# APSW brings a SQLite of its own; the distribution's is for Python's sqlite3, which nothing here uses
RUN dpkg --purge libsqlite3-0
# --build-arg TRACES=yes for OTEL_EXPORTER_OTLP_ENDPOINT
ARG TRACES=no
COPY --from=build /traces-${TRACES} /usr/local
# For DATABASE_URL. Who never sets it may leave it out: --build-arg POSTGRES=no
ARG POSTGRES=yes
COPY --from=build /postgres-${POSTGRES} /usr/local
ARG VERSION=dev
ARG REVISION=unknown
ARG COVERAGE=
ENV REVISION=${REVISION} COVERAGE=${COVERAGE}
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["python", "-m", "awslambdaric"]
CMD ["handler.aws_lambda.handler"]

FROM runtime AS test
# PostgreSQL, which tests start, asks who the user is
# hadolint ignore=DL3008
RUN mkdir -p /etc/postgresql-common \
    && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf \
    && useradd --uid 1000 tests \
    && apt-get update \
    && apt-get install -y --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/*
COPY requirements-dev.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.txt
COPY --chown=1000:1000 . ./
RUN chown 1000:1000 .
USER 1000:1000
CMD ["python", "-m", "pytest", "-m", "not e2e", "-n", "auto", "--dist", "worksteal", "--cov", "-p", "no:cacheprovider"]

# ministack, the release that the tests use, with one bucket. For development only: it takes any signature
FROM ${BASE_IMAGE} AS s3
WORKDIR /build
COPY requirements-s3.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r requirements-s3.txt \
    && mkdir /data \
    && chown 1000:1000 /data
COPY --chown=1000:1000 scripts/create_bucket.py /docker-entrypoint-initaws.d/ready.d/
USER 1000:1000
ENV PYTHONUNBUFFERED=1 SERVICES=s3 IOT_MTLS_ENABLED=0 GATEWAY_PORT=9000 S3_PERSIST=1 S3_DATA_DIR=/data BUCKET=items
EXPOSE 9000
VOLUME /data
HEALTHCHECK --interval=3s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import http.client as h, sys; c = h.HTTPConnection('127.0.0.1', 9000, timeout=2); c.request('GET', '/_ministack/ready'); sys.exit(c.getresponse().status != 200)"]
CMD ["ministack"]

# Debian's, of the base image's release. POSTGRES_PASSWORD is that of the user and database `items`, which the first
# start makes
FROM ${BASE_IMAGE} AS postgres
# hadolint ignore=DL3008
RUN mkdir -p /etc/postgresql-common \
    && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf \
    && useradd --uid 1000 --home-dir /var/lib/postgresql postgres \
    && apt-get update \
    && apt-get install -y --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /usr/lib/postgresql/*/bin /usr/lib/postgresql/bin \
    && install -d -o 1000 -g 1000 -m 700 /data
COPY scripts/start_postgres.sh /usr/local/bin/
USER 1000:1000
ENV PATH=/usr/lib/postgresql/bin:$PATH PGDATA=/data/cluster
EXPOSE 5432
VOLUME /data
STOPSIGNAL SIGINT
HEALTHCHECK --interval=3s --timeout=3s --start-period=20s CMD ["pg_isready", "-q", "-h", "127.0.0.1", "-U", "items"]
CMD ["start_postgres.sh"]

# Debian's, of the base image's release. What they read is mounted: infra/monitoring/
FROM ${BASE_IMAGE} AS monitoring
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends prometheus prometheus-alertmanager \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /data \
    && chown 65534:65534 /data
USER 65534:65534
VOLUME /data

FROM runtime AS server
# The runbook's tools. `ps` is that of the base image's Debian release; `sqlite3` is the shell that APSW brings, because
# older releases can lose commits of a live file. So the distribution's library goes, and with it Python's sqlite3
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends procps \
    && apt-get purge -y libsqlite3-0 \
    && ln -s "$(python -m apsw.sqlite_extra --path sqlite3_shell)" /usr/local/bin/sqlite3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old \
    && mkdir data \
    && chown 1000:1000 data
ARG TRACES=yes
COPY --from=build /traces-${TRACES} /usr/local
ARG POSTGRES=yes
COPY --from=build /postgres-${POSTGRES} /usr/local
USER 1000:1000
ENV HOST=0.0.0.0
EXPOSE 8000
VOLUME /app/data
# No urllib: it would ask a proxy that the environment names
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 8000), timeout=2); c.request('GET', '/ready'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "handler"]
ARG VERSION=dev
ARG REVISION=unknown
ARG COVERAGE=
ENV REVISION=${REVISION} COVERAGE=${COVERAGE}
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
