# docker build --build-arg VERSION=0.2.0 --tag eureka-registry:0.2.0 .
# docker run --publish 8761:8761 --volume registry:/data eureka-registry:0.2.0

# The wheel, from the sources that .dockerignore lets in
FROM python:3.11-slim AS builder
WORKDIR /sources
COPY requirements-build.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements-build.lock
COPY . .
# There is no repository here to ask for the tag. Without VERSION it is the development version.
ARG VERSION=
RUN SETUPTOOLS_SCM_PRETEND_VERSION=$VERSION python -m hatchling build -t wheel -d /wheel

# The image: what is locked, the wheel, and a user who owns nothing but the data
FROM python:3.11-slim
COPY requirements.lock /wheel/
RUN pip install --no-cache-dir --require-hashes -r /wheel/requirements.lock
COPY --from=builder /wheel/ /wheel/
RUN pip install --no-cache-dir --no-deps /wheel/*.whl && rm -r /wheel
RUN useradd --system --no-create-home --uid 10001 eureka && mkdir /data && chown 10001:10001 /data
USER 10001:10001
WORKDIR /data
ENV STORE_URL=lmdb:/data
VOLUME /data
EXPOSE 8761
# With TLS, say how to ask in another way: docs/operate/deploying.md.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://localhost:' + os.environ.get('PORT', '8761') + '/health/ready', timeout=3)"]
CMD ["eureka-registry", "serve"]
