# docker build --target app .     the service
# docker build --target test .    the service, its tests and what they need

FROM python:3.11-slim AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/tasksvc/bin:$PATH
RUN python -m venv /opt/tasksvc
WORKDIR /src
COPY ops/locks/app.txt ops/locks/
RUN pip install --require-hashes --requirement ops/locks/app.txt
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY migrations migrations
COPY tasksvc tasksvc
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && pip install --no-deps /wheels/*.whl \
    && pip uninstall --yes pip setuptools


FROM python:3.11-slim AS app
# A fixed number, so that the owner of the volume's files stays the same.
RUN groupadd --system --gid 10001 tasksvc \
    && useradd --system --uid 10001 --gid tasksvc --home-dir /var/lib/tasksvc --no-create-home tasksvc \
    && install --directory --owner tasksvc --group tasksvc /var/lib/tasksvc
COPY --from=builder /opt/tasksvc /opt/tasksvc
COPY ops/supervisord.conf /etc/tasksvc/supervisord.conf
ENV PATH=/opt/tasksvc/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    LOG_FILE_PATH=logs/app.log \
    TASKSVC_STATE_DIR=/var/lib/tasksvc
# The only folder that the service writes to, besides /tmp: the root file system may be read-only.
WORKDIR /var/lib/tasksvc
VOLUME /var/lib/tasksvc
USER tasksvc
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["tasksvc", "health"]
ENTRYPOINT ["supervisord", "-c", "/etc/tasksvc/supervisord.conf"]


FROM python:3.11-slim AS test
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/tasksvc/bin:$PATH
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl iproute2 iptables libfaketime make prometheus \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --create-home tasksvc \
    && install -d -o tasksvc /opt/tasksvc /src
USER tasksvc
RUN python -m venv /opt/tasksvc
WORKDIR /src
COPY --chown=tasksvc ops/locks/dev.txt ops/locks/
RUN pip install --require-hashes --requirement ops/locks/dev.txt
COPY --chown=tasksvc . .
RUN pip install --no-deps --editable .
CMD ["python", "-m", "pytest", "-n", "2", "--dist", "loadfile"]


# Without --target: the service.
FROM app
