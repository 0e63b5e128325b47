FROM python:3.11-slim
WORKDIR /app
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY registry registry
COPY eureka_compat eureka_compat
COPY native_api native_api
COPY catalogs catalogs
COPY eureka_http eureka_http
COPY eureka_server eureka_server
COPY wsgi.py gunicorn.conf.py ./
RUN useradd --system --create-home eureka && mkdir /data && chown eureka /data
USER eureka
ENV STORE_URL=lmdb:/data
VOLUME /data
EXPOSE 8761
CMD ["gunicorn", "wsgi:app"]
